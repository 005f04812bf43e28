"""The quality of pools before any training: closeness to real positives, diversity, and copies.

DIAG measures distances to the positives of the train split (Girella et al. 2024); no test image is read.
In&Out suspects that fine-tuning on few images memorises them (Capogrosso et al. 2024). A softened or mirrored
copy is missed, so finding few copies doesn't prove that nothing was memorised.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from torch import nn

from defaug_utils.core.guards import raise_problems
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import ManifestError
from defaug_utils.core.origins import pool_scenarios
from defaug_utils.core.pools import find_unrestored
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.diffusion.autoencoder import autoencode_images
from defaug_utils.evaluation.distances import (
    FeatureSummary,
    compare_features,
    frechet_distance,
    spread_over_draws,
    squared_kernel_distance,
    summarise_images,
)
from defaug_utils.masks.patches import widen_mask
from defaug_utils.protocol.mixing import find_leaking_scenarios, usable_rows
from defaug_utils.protocol.run_folder import list_pools, read_data, read_rebased
from defaug_utils.training.backbones import DIAG_LAYERS, FeatureNetwork, average_features

REAL, UNTOUCHED = "real positives, two parts", "real negatives, untouched"
COPY_QUANTILE = 0.05  # a choice of this project, not of a paper
DRAWS = 50  # of equal numbers of images
MOST_NEGATIVES = 200  # enough to show the distance of images without defects


def measure_pools(
    run_dir: Path | str,
    network: FeatureNetwork,
    draws: int = DRAWS,
    batch_size: int = 16,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Compare every existing pool with the real positives of the train split.

    Two rows serve as references: two disjoint parts of the real positives (what a perfect pool would reach),
    and untouched negatives (what a pool without any defect would reach).

    Args:
        network: from `open_features`.
        draws: number of draws of equally many images from both sides.
        on_images: called with the number of images just processed.

    Returns:
        One row per set and layer: set, masks (their source), leaks_in (scenarios), layer, channels, fd_name
        and kd_name (names of the distances), n and n_real (images on each side), fd (for all of them),
        n_equal, fd_equal and kd with their `…_std` (for n_equal images on each side, half of the real
        positives), and diversity. NaN if there are too few images, or if a value does not exist for two
        parts.

    Raises:
        ValueError: the train split has no real positives, or an image can't be read.
    """
    data = read_data(run_dir)
    is_known = (data["split"] == "train") & (data["origin"] == "real")
    positives, negatives = (data[is_known & (data["label"] == label)] for label in ("positive", "negative"))
    if positives.empty:
        raise ValueError(f"{run_dir}: the train split has no real positives to compare with")
    negatives = negatives.sample(min(len(negatives), MOST_NEGATIVES), random_state=seed)
    width, height = read_image(Path(run_dir) / positives["image"].iloc[0]).shape[1::-1]

    def summarise(rows: pd.DataFrame) -> dict[str, FeatureSummary]:
        images = (read_image(Path(run_dir) / image) for image in rows["image"])
        return summarise_images(network, images, DIAG_LAYERS, (width, height), batch_size, seed, on_images)

    real = summarise(positives)
    table = _measure_set(REAL, positives, real, real, draws, seed)
    pools = {name: usable_rows(read_rebased(folder, run_dir)) for name, folder in list_pools(run_dir).items()}
    for name, rows in ({UNTOUCHED: negatives} | pools).items():
        if len(rows) or name == UNTOUCHED:
            table += _measure_set(name, rows, summarise(rows), real, draws, seed)
    names = {f"{kind.lower()}_name": network.name_distance(kind) for kind in ("FD", "KD")}
    return pd.DataFrame(table).assign(**names)


def _measure_set(
    name: str,
    rows: pd.DataFrame,
    found: dict[str, FeatureSummary],
    real: dict[str, FeatureSummary],
    draws: int,
    seed: int,
) -> list[dict]:
    """One row per layer; for the real positives themselves, of two parts of them."""
    table = []
    for layer, own in found.items():
        known = real[layer]
        other, n_equal = None if own is known else known.kept, known.count // 2
        can_compare = own is not known and min(own.count, known.count) > 1
        means = {}
        for kind, distance in (("fd_equal", compare_features), ("kd", squared_kernel_distance)):
            spread = spread_over_draws(distance, own.kept, other, n_equal, draws, seed)
            means[kind], means[f"{kind}_std"] = spread
        table.append(
            {
                "set": name,
                "masks": ", ".join(sorted(set(rows["mask_source"]) - {""})),
                "leaks_in": ", ".join(find_leaking_scenarios(rows, pool_scenarios(name))),
                "layer": layer,
                "channels": own.kept.shape[1],
                "n": own.count,
                "n_real": known.count,
                "fd": frechet_distance(own.moments, known.moments) if can_compare else np.nan,
                "n_equal": n_equal,
                **means,
                "diversity": own.diversity,
            }
        )
    return table


def copy_threshold(real: np.ndarray, quantile: float = COPY_QUANTILE) -> float:
    """The distance up to which an image counts as a copy: a quantile of the real images' nearest distances.

    About that share of the real images would count as copies of each other, which is the rate of false alarms
    for new images of the same kind. It is imprecise for five images; a duplicated real image pulls it towards
    0. Features have shape (images, channels).
    """
    if len(real) < 2:
        raise ValueError(f"real: {len(real)} images, expected at least 2 to measure their similarity")
    distances = cdist(real, real)
    np.fill_diagonal(distances, np.inf)
    return float(np.quantile(distances.min(axis=1), quantile))


def find_copies(
    generated: np.ndarray,
    trained: np.ndarray,
    threshold: float,
    images: Sequence[str] | None = None,
    trained_images: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The nearest real image for every generated image, and whether the latter is a copy.

    Features, from one network, have shape (images, channels); images without names are numbered. Rows are in
    the order of generated images: image, nearest_real (the first if several are equally near), distance,
    threshold, is_copy (distance up to the threshold).
    """
    names = [*map(str, range(len(generated)))] if images is None else list(images)
    known = [*map(str, range(len(trained)))] if trained_images is None else trained_images
    if len(names) != len(generated):
        raise ValueError(f"{len(names)} names for {len(generated)} images")
    distances = cdist(generated, trained)
    nearest = [known[place] for place in distances.argmin(axis=1)]
    table = pd.DataFrame({"image": names, "nearest_real": nearest, "distance": distances.min(axis=1)})
    return table.assign(threshold=threshold, is_copy=table["distance"] <= threshold)


class CopySearch(NamedTuple):
    """Compares generated images with the real ones (names and features) that their generator saw.

    An image is a copy if its distance is at most `limit`, see `copy_threshold`.
    """

    network: FeatureNetwork
    layer: str
    shown: list[str]
    features: np.ndarray
    limit: float

    def find(self, images_u8: Sequence[np.ndarray], names: Sequence[str] | None = None) -> pd.DataFrame:
        """See `find_copies`."""
        generated = average_features(self.network, images_u8, self.layer)
        return find_copies(generated, self.features, self.limit, names, self.shown)


def open_copy_search(
    network: FeatureNetwork,
    layer: str,
    folder: Path | str,
    shown: Sequence[str],
    others: Sequence[str],
    vae: nn.Module,
    size: tuple[int, int],
) -> CopySearch:
    """Prepare a search for copies of real images.

    Args:
        network, layer: from `open_features`, and its layer to compare.
        shown: names of the images in `folder` that the generator saw.
        others: names of more images, which also show how similar real images are.
        vae: the generator's autoencoder, which real images also pass through.
        size: (width, height) of generated images.

    Raises:
        ValueError: an image or the layer is missing, or there are fewer than two real images.
    """
    names = list(dict.fromkeys([*shown, *others]))
    images_u8 = autoencode_images(vae, [read_image(Path(folder) / name) for name in names], size)
    features = average_features(network, images_u8, layer)
    count = len(set(shown))
    return CopySearch(network, layer, names[:count], features[:count], copy_threshold(features))


def count_copies(copies: pd.DataFrame, by: Sequence[str] = ("share", "epoch")) -> pd.DataFrame:
    """Copies by setting, from tables of `find_copies` with the columns `by`.

    One row per setting, sorted: the columns of `by`, images, copies, copied_reals (distinct ones),
    share_of_copies, median_distance. Raises a ValueError for missing columns or no images.
    """
    missing = [name for name in (*by, "nearest_real", "distance", "is_copy") if name not in copies.columns]
    if missing or copies.empty:
        raise ValueError(f"{len(copies)} images, columns missing: {', '.join(missing) or 'none'}")
    groups = copies.assign(copied=copies["nearest_real"].where(copies["is_copy"])).groupby(list(by))
    return groups.agg(
        images=("is_copy", "size"),
        copies=("is_copy", "sum"),
        copied_reals=("copied", "nunique"),
        share_of_copies=("is_copy", "mean"),
        median_distance=("distance", "median"),
    ).reset_index()


def check_pool(folder: Path | str, pool: pd.DataFrame, data_folder: Path | str, looked: int = 20) -> None:
    """Check a finished pool: positives only, made from training negatives, unchanged outside their masks.

    A row may have a `margin`: pixels around its mask that may also have changed; if its `paste_back` is
    false, all may. For the first `looked` rows, the pixels are compared with those of the source, in the
    folder of the data set.

    Raises:
        ManifestError: lists every row that fails.
    """
    known = set(list_sources(read_dataset(data_folder))["image"])
    problems = []
    pool = pool.assign(is_whole=find_unrestored(pool))
    for place, row in enumerate(pool.to_dict("records")):
        if row["label"] != "positive":
            problems.append(f"{row['image']}: label {row['label']!r}, expected 'positive'")
        if row["source_image"] and row["source_image"] not in known:
            problems.append(f"{row['image']}: its source {row['source_image']} is not a training negative")
        elif row["source_image"] and row["mask"] and place < looked:
            problems += _compare_outside(Path(folder), row, Path(data_folder))
    raise_problems(f"pool {folder}", problems, ManifestError)


def _compare_outside(folder: Path, row: dict, data_folder: Path) -> list[str]:
    before_u8, after_u8 = read_image(data_folder / row["source_image"]), read_image(folder / row["image"])
    mask = read_mask(folder / row["mask"])
    if before_u8.shape != after_u8.shape or mask.shape != after_u8.shape[:2]:
        return [f"{row['image']}: image, mask and source {row['source_image']} differ in size"]
    if not mask.any() or mask.all():
        return [f"{row['image']}: its mask is {'full' if mask.any() else 'empty'}"]
    if row["is_whole"]:
        return []
    outside = ~widen_mask(mask, int(row.get("margin", 0)))
    changed = int((before_u8[outside] != after_u8[outside]).any(axis=-1).sum())
    return [f"{row['image']}: {changed} pixels changed outside its mask"] if changed else []
