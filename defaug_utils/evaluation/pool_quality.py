"""How near the pools of a run lie to its real training positives, and how much their images differ.

DIAG measures so against the positives of the train split (Girella et al. 2024); no test image is read.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import read_manifest, rebase_manifest
from defaug_utils.core.runs import pool_scenarios
from defaug_utils.evaluation.distances import (
    FeatureSummary,
    Spread,
    compare_features,
    frechet_distance,
    spread_over_draws,
    squared_kernel_distance,
    summarise_images,
)
from defaug_utils.protocol.mixing import find_leaking_scenarios, usable_rows
from defaug_utils.protocol.run_folder import list_pools, read_data
from defaug_utils.training.features import DIAG_LAYERS, FeatureNetwork

REAL, UNTOUCHED = "real positives, two parts", "real negatives, untouched"
DRAWS = 50  # of equally many images
MOST_NEGATIVES = 200  # that are enough to show how far no defect at all is


def measure_pools(
    run_dir: Path | str,
    network: FeatureNetwork,
    draws: int = DRAWS,
    batch_size: int = 16,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Measure every pool that exists against the real positives of the train split.

    Two rows frame them: the real positives against each other, in two parts that share no image (what a
    perfect pool would reach), and untouched negatives (what a pool without any defect would).

    Args:
        run_dir: the run's folder.
        network: from `open_features`.
        draws: how often equally many images are drawn from both sides.
        batch_size: images looked at together.
        seed: of all draws.
        on_images: called with the number of images just looked at.

    Returns:
        One row a set and layer: set, masks (where they came from), leaks_in (scenarios), layer, channels,
        fd_name and kd_name (what the distances may be called), n and n_real (images on either side), fd
        (of all of them), n_equal, fd_equal and kd with their `…_std` (between n_equal images on either
        side, half of the real positives), and diversity. NaN where images are too few, or where two parts
        have no such number.

    Raises:
        ValueError: the train split has no real positive, or an image can't be read.
    """
    data = read_data(run_dir)
    is_known = (data["split"] == "train") & (data["origin"] == "real")
    positives, negatives = (data[is_known & (data["label"] == label)] for label in ("positive", "negative"))
    if positives.empty:
        raise ValueError(f"{run_dir}: the train split has no real positive to compare with")
    negatives = negatives.sample(min(len(negatives), MOST_NEGATIVES), random_state=seed)
    width, height = read_image(Path(run_dir) / positives["image"].iloc[0]).shape[1::-1]

    def summarise(rows: pd.DataFrame) -> dict[str, FeatureSummary]:
        images = _read_images(run_dir, rows)
        return summarise_images(network, images, DIAG_LAYERS, (width, height), batch_size, seed, on_images)

    real = summarise(positives)
    table = _measure_set(REAL, positives, real, real, draws, seed)
    for name, rows in ({UNTOUCHED: negatives} | _read_pools(run_dir)).items():
        table += _measure_set(name, rows, summarise(rows), real, draws, seed)
    names = {f"{kind.lower()}_name": network.name_distance(kind) for kind in ("FD", "KD")}
    return pd.DataFrame(table).assign(**names)


def _read_pools(run_dir: Path | str) -> dict[str, pd.DataFrame]:
    """The usable rows of every pool that has some, rebased to the run's folder."""
    pools = {
        name: usable_rows(rebase_manifest(read_manifest(folder / "manifest.csv"), folder, run_dir))
        for name, folder in list_pools(run_dir).items()
    }
    return {name: rows for name, rows in pools.items() if len(rows)}


def _read_images(run_dir: Path | str, rows: pd.DataFrame) -> Iterator[np.ndarray]:
    return (read_image(Path(run_dir) / image) for image in rows["image"])


def _measure_set(
    name: str,
    rows: pd.DataFrame,
    found: dict[str, FeatureSummary],
    real: dict[str, FeatureSummary],
    draws: int,
    seed: int,
) -> list[dict]:
    """One row a layer; where the set is the real positives themselves, of two parts of them."""
    table = []
    for layer, own in found.items():
        n_equal = real[layer].count // 2
        second = None if own is real[layer] else real[layer].kept
        spreads = [
            spread_over_draws(distance, own.kept, second, n_equal, draws, seed)
            for distance in (compare_features, squared_kernel_distance)
        ]
        table.append(
            {
                "set": name,
                "masks": ", ".join(sorted(set(rows["mask_source"]) - {""})),
                "leaks_in": ", ".join(find_leaking_scenarios(rows, pool_scenarios(name))),
                "layer": layer,
                "channels": own.kept.shape[1],
                "n": own.count,
                "n_real": real[layer].count,
                "fd": np.nan if second is None else _measure_all(own, real[layer]),
                "n_equal": n_equal,
                **_name_spread("fd_equal", spreads[0]),
                **_name_spread("kd", spreads[1]),
                "diversity": own.diversity,
            }
        )
    return table


def _measure_all(own: FeatureSummary, real: FeatureSummary) -> float:
    """The Fréchet distance of all images; NaN where a side has one only."""
    return frechet_distance(own.moments, real.moments) if min(own.count, real.count) > 1 else np.nan


def _name_spread(name: str, spread: Spread) -> dict[str, float]:
    return {name: spread.mean, f"{name}_std": spread.deviation}
