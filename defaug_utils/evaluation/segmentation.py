"""Training the detector of defect pixels, its score maps on disk, and their numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from defaug_utils.core.files import write_csv, write_json, write_png
from defaug_utils.core.images import fit_mask, read_mask
from defaug_utils.core.manifest import raise_problems
from defaug_utils.data.samples import MaskedSamples, hash_masked_samples
from defaug_utils.evaluation.pixel_metrics import measure_pixels
from defaug_utils.evaluation.segmenter import build_segmenter, segmentation_loss
from defaug_utils.training.classifier import normalise_images
from defaug_utils.training.epochs import (
    TrainingRun,
    TrainingState,
    begin_epoch,
    flip_images,
    hash_file,
    run_epochs,
    take_step,
)
from defaug_utils.training.recipes import Recipe, plan_epochs, split_batches

# ours; an epoch is all positives and as many negatives
SEGMENTER_RECIPE = Recipe("adam", 2e-3, batch_size=8, epochs=20, balanced=True, flips=True, decay=True)
MAP_LIST = "score_maps.csv"
METRICS_FILE = "pixel_metrics.json"
LARGEST_LOGIT = 16.0  # stored maps keep logits of ±16 in 65,536 steps
LARGEST_LEVEL = 65535


def train_segmenter(
    masked: MaskedSamples,
    run_folder: Path | str,
    recipe: Recipe,
    backbone: str,
    seed: int = 0,
    weights: str = "",
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainingRun:
    """Train on the train split, or go on where an earlier run with the same settings stopped.

    The last epoch's model is the result. Files, repeatability and restarts are those of `train_classifier`.

    Args:
        masked: the training set in memory.
        run_folder: where the files of this run go.
        recipe: how to train, such as `SEGMENTER_RECIPE`.
        backbone: a name in `classifier.BACKBONES`.
        seed: seeds the random weights, the order of images and their flips.
        weights: of the encoder, as `build_classifier` takes them.
        on_epoch: called after every epoch with its number (from 1) and loss.

    Returns:
        The model with its history.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
    """
    train = masked.samples.indices("train")
    plan = plan_epochs(masked.samples.labels[train].numpy(), recipe, seed)
    height, width = masked.masks.shape[1:]
    settings = {
        **asdict(recipe),
        "detector": "segmenter",
        "backbone": backbone,
        "weights": weights,
        "weights_content": hash_file(weights),
        "seed": seed,
        "input_size": [width, height],
        "training_set": hash_masked_samples(masked, "train"),
    }

    def train_epoch(state: TrainingState, epoch: int) -> float:
        return _train_epoch(state, masked, train[plan[epoch]], recipe, seed, epoch)

    def make_model() -> nn.Module:
        return build_segmenter(backbone, weights)

    trained = run_epochs(make_model, train_epoch, run_folder, recipe, settings, seed, on_epoch)
    if trained.resumed_epochs < recipe.epochs:
        _forget_results(Path(run_folder))
    return trained


def _forget_results(run_folder: Path) -> None:
    """Score maps and numbers of a model that is no more."""
    for name in (MAP_LIST, METRICS_FILE):
        with suppress(FileNotFoundError):
            (run_folder / name).unlink()


def _train_epoch(
    state: TrainingState, masked: MaskedSamples, indices: np.ndarray, recipe: Recipe, seed: int, epoch: int
) -> float:
    """One pass over the given images; returns their mean loss."""
    generator, total = begin_epoch(state, recipe, seed, epoch), 0.0
    for batch in split_batches(indices, recipe.batch_size):
        inputs = normalise_images(masked.samples.images_u8[batch].to(state.device), recipe.normalisation)
        masks = masked.masks[batch].to(state.device, torch.float32)
        if recipe.flips:
            flipped = flip_images(torch.cat([inputs, masks[:, None]], dim=1), generator)
            inputs, masks = flipped[:, :3], flipped[:, 3]
        loss = take_step(
            state,
            lambda inputs=inputs: state.model(inputs),
            lambda logits, masks=masks: segmentation_loss(logits, masks),
        )
        total += loss * len(batch)
    return total / len(indices)


def write_score_maps(
    model: nn.Module,
    masked: MaskedSamples,
    run_folder: Path | str,
    normalisation: str,
    batch_size: int = 8,
    on_images: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Score every pixel of the test images: 16-bit PNGs in `score_maps`, listed in `score_maps.csv`.

    The list is written last. Memory does not grow with the number of images.

    Args:
        model: the detector, in evaluation mode.
        masked: the training set in memory.
        run_folder: where the files go.
        normalisation: the one that the model was trained with.
        batch_size: images at a time; changes speed only, up to rounding.
        on_images: called with the number of images just scored.

    Returns:
        One row a test image: image, mask, label, category, defect_type, `score_map` (its file, relative to
        `run_folder`) and `score` (the largest logit, as the image's own).

    Raises:
        ValueError: a score is not finite.
    """
    (Path(run_folder) / MAP_LIST).unlink(missing_ok=True)
    names, scores = [], []
    for indices, logits in _score(model, masked, normalisation, batch_size):
        for index, one in zip(indices, logits, strict=True):
            names.append(f"score_maps/{index:06d}.png")
            scores.append(float(one.max()))
            write_png(Path(run_folder) / names[-1], logits_to_levels(one))
        if on_images:
            on_images(len(indices))
    table = masked.samples.table.loc[masked.samples.indices("test")].reset_index(drop=True)
    table = table[["image", "mask", "label", "category", "defect_type"]]
    table = table.assign(score_map=names, score=scores)
    write_csv(table, Path(run_folder) / MAP_LIST)
    return table


@torch.inference_mode()
def _score(
    model: nn.Module, masked: MaskedSamples, normalisation: str, batch_size: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Positions of test images, and their logits, shape (batch, height, width), float32."""
    device = next(model.parameters()).device
    for batch in split_batches(masked.samples.indices("test"), batch_size):
        inputs: Tensor = normalise_images(masked.samples.images_u8[batch].to(device), normalisation)
        yield batch.tolist(), model(inputs).float().cpu().numpy()


def logits_to_levels(logits: np.ndarray) -> np.ndarray:
    """Logits as 16-bit levels: -16 … 16 onto 0 … 65535, what is beyond is cut.

    Raises:
        ValueError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError(f"{(~np.isfinite(logits)).sum()} of {logits.size} scores are not finite")
    share = (np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT) + LARGEST_LOGIT) / (2 * LARGEST_LOGIT)
    return np.rint(share.astype(np.float64) * LARGEST_LEVEL).astype(np.uint16)


def read_score_map(path: Path | str) -> np.ndarray:
    """A stored score map as logits, shape (height, width), float32."""
    with Image.open(path) as opened:
        levels = np.asarray(opened).astype(np.float64)
    return (levels / LARGEST_LEVEL * 2 * LARGEST_LOGIT - LARGEST_LOGIT).astype(np.float32)


def read_score_maps(run_folder: Path | str, images: Sequence[str]) -> list[np.ndarray]:
    """Stored score maps of some test images, by the images' names in the manifest.

    Raises:
        FileNotFoundError: there are no finished score maps.
        KeyError: an image has none.
    """
    files = _read_list(Path(run_folder)).set_index("image")["score_map"]
    return [read_score_map(Path(run_folder) / files[image]) for image in images]


def _read_list(run_folder: Path) -> pd.DataFrame:
    if not (run_folder / MAP_LIST).is_file():
        raise FileNotFoundError(f"no {MAP_LIST} in {run_folder}: write the score maps first")
    return pd.read_csv(run_folder / MAP_LIST, keep_default_na=False)


def measure_score_maps(run_folder: Path | str, folder: Path | str) -> dict[str, float]:
    """The pixel-level numbers of stored score maps, also written to `pixel_metrics.json`.

    Args:
        run_folder: where `write_score_maps` wrote.
        folder: what the manifest's paths are relative to; masks are read from there, one at a time.

    Returns:
        See `measure_pixels`.

    Raises:
        FileNotFoundError: there are no finished score maps.
        ManifestError: lists every score map or mask that is missing.
    """
    run_folder, folder = Path(run_folder), Path(folder)
    table = _read_list(run_folder)
    files = [run_folder / name for name in table["score_map"]]
    files += [folder / name for name in table["mask"] if name]
    missing = [f"{path}: does not exist" for path in files if not path.is_file()]
    raise_problems(f"score maps of {run_folder}", missing)
    numbers = measure_pixels(_read_pairs(table, run_folder, folder))
    write_json(run_folder / METRICS_FILE, numbers)
    return numbers


def _read_pairs(
    table: pd.DataFrame, run_folder: Path, folder: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for row in table.itertuples():
        score_map = read_score_map(run_folder / row.score_map)
        size = score_map.shape[::-1]
        mask = fit_mask(read_mask(folder / row.mask), size) if row.mask else np.zeros(score_map.shape, bool)
        yield score_map, mask
