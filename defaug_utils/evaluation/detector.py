"""A compact detector of defect pixels: a U-Net on the classifier's ResNets, its score maps and their numbers.

Ronneberger et al. 2015 (U-Net), He et al. 2016 (ResNet). Taken instead of DeSTSeg (Zhang et al. 2023), the
detector of AdaBLDM's tables, for two reasons. DeSTSeg's teacher is a frozen network that must know
ImageNet, and the workshop's small backbone has seen drawn shapes only. And its student learns from
anomalies that DeSTSeg simulates itself, which would blur what is compared here: the generated images. The
U-Net learns from the given images and masks alone. Its numbers stand beside each other, not beside
DeSTSeg's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from transformers import ResNetModel

from defaug_utils.core.files import write_csv, write_json, write_png
from defaug_utils.core.guards import raise_problems
from defaug_utils.core.images import fit_mask, read_mask
from defaug_utils.core.manifest import ManifestError
from defaug_utils.core.origins import Run, parse_run_name
from defaug_utils.data.samples import Samples, hash_samples, load_masked_samples
from defaug_utils.evaluation.pixel_metrics import measure_pixels
from defaug_utils.evaluation.recipes import (
    Batch,
    Recipe,
    TrainedNetwork,
    describe_training,
    fit_epochs,
    flip_images,
    plan_batches,
    split_batches,
    train_network,
)
from defaug_utils.protocol.mixing import Mix, compose_training_set
from defaug_utils.protocol.run_folder import read_data, read_pools
from defaug_utils.training.backbones import build_classifier, normalise_images
from defaug_utils.training.loop import OnStep

DETECTORS = "segmenter"  # the detectors' folder in a run's
# ours; an epoch is all positives and as many negatives
DETECTOR_RECIPE = Recipe("adam", 2e-3, batch_size=8, epochs=20, balanced=True, flips=True, decay=True)
MAP_LIST = "score_maps.csv"
METRICS_FILE = "pixel_metrics.json"
LARGEST_LOGIT = 16.0  # stored maps keep logits of ±16 in 65,536 steps
LARGEST_LEVEL = 65535
DEFECT_PRIOR = 0.01  # of every pixel before training, so that defects are not drowned (Lin et al. 2017, 3.3)
DICE_SMOOTHING = 1.0  # pixels; without defects the overlap term then asks for few positives


class Detector(nn.Module):
    """A ResNet whose stages are read back up, each joined with the one before it."""

    def __init__(self, resnet: ResNetModel) -> None:
        """Put a decoder with random weights on an encoder."""
        super().__init__()
        self.encoder = resnet
        channels = [resnet.config.embedding_size, *resnet.config.hidden_sizes]
        pairs = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.decoder = nn.ModuleList(_make_block(deep + skip, skip) for deep, skip in pairs)
        self.head = nn.Conv2d(channels[0], 1, kernel_size=1)
        nn.init.constant_(self.head.bias, math.log(DEFECT_PRIOR / (1 - DEFECT_PRIOR)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of "this pixel is defective" (batch, height, width), for images of any height and width."""
        stem = self.encoder.embedder.embedder(images)
        state, skips = self.encoder.embedder.pooler(stem), [stem]
        for stage in self.encoder.encoder.stages:
            state = stage(state)
            skips.append(state)
        state = skips.pop()
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            state = block(torch.cat([_stretch(state, skip), skip], dim=1))
        return _stretch(self.head(state), images)[:, 0]


def _make_block(channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _stretch(state: Tensor, like: Tensor) -> Tensor:
    return interpolate(state, like.shape[2:], mode="bilinear", align_corners=False)


def build_detector(backbone: str, weights: str = "") -> Detector:
    """Make a detector, see `build_classifier`; the decoder starts at random."""
    return Detector(build_classifier(backbone, weights).resnet).eval()


def detection_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of the pixels plus one minus the overlap (soft Dice, Milletari et al. 2016, section 3).

    The first keeps the scores comparable between images, the second counts a small defect as a large one.
    Logits and masks (1 on the defect) have the shape (batch, height, width).
    """
    found = logits.sigmoid()
    shared, total = (found * masks).sum(), found.sum() + masks.sum()
    overlap = (2 * shared + DICE_SMOOTHING) / (total + DICE_SMOOTHING)
    return binary_cross_entropy_with_logits(logits, masks) + 1 - overlap


def train_detector(
    masked: Samples,
    folder: Path | str,
    recipe: Recipe,
    backbone: str,
    seed: int = 0,
    weights: str = "",
    on_step: OnStep | None = None,
) -> TrainedNetwork:
    """Train on the train split, or go on where an earlier call with the same settings stopped.

    Arguments, files, repeatability, restarts and refusals are those of `train_classifier`; the weights are
    the encoder's.
    """
    height, width = masked.masks.shape[1:]
    digest = hash_samples(masked, "train")
    settings = describe_training(recipe, backbone, weights, seed, (width, height), digest)
    train = torch.from_numpy(masked.indices("train"))

    def measure_loss(model: nn.Module, batch: Batch) -> Tensor:
        device, chosen = next(model.parameters()).device, train[batch.images]
        inputs = normalise_images(masked.images_u8[chosen].to(device), recipe.normalisation)
        masks = masked.masks[chosen].to(device, torch.float32)
        if recipe.flips:
            flipped = flip_images(torch.cat([inputs, masks[:, None]], dim=1), batch.flips)
            inputs, masks = flipped[:, :3], flipped[:, 3]
        return detection_loss(model(inputs).float(), masks)

    return train_network(
        lambda: build_detector(backbone, weights),
        measure_loss,
        plan_batches(masked.labels[train].numpy(), recipe, seed),
        folder,
        recipe,
        settings | {"detector": "segmenter"},
        on_step,
    )


@dataclass(frozen=True)
class DetectorPlan:
    """How all detectors of a comparison are trained; 0 keeps the recipe's own value.

    Attributes:
        backbone: a name in `BACKBONES`.
        weights: of the encoder, as `build_classifier` takes them.
        training_images: shown to each detector in all epochs together, see `fit_epochs`.
        batch_size: images a step.
        learning_rate: of the first epoch.
        input_size: (width, height) of the input; (0, 0) for that of the stored images.
    """

    backbone: str
    weights: str = ""
    training_images: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    input_size: tuple[int, int] = (0, 0)

    def fit_recipe(self, rows: pd.DataFrame) -> Recipe:
        """The recipe for a training set's rows."""
        given = {"batch_size": self.batch_size, "learning_rate": self.learning_rate}
        recipe = replace(DETECTOR_RECIPE, **{name: value for name, value in given.items() if value})
        labels = (rows.loc[rows["split"] == "train", "label"] == "positive").to_numpy(int)
        return fit_epochs(recipe, labels, self.training_images)


def compose_detector_set(run_dir: Path | str, run: Run, mix: Mix | None = None) -> pd.DataFrame:
    """The training set of a run, see `compose_training_set`, without validation: no threshold is chosen."""
    rows = compose_training_set(read_data(run_dir), read_pools(run_dir, run), run, mix)
    return rows[rows["split"] != "val"]


def finish_detector(
    run_dir: Path | str, name: str, rows: pd.DataFrame, plan: DetectorPlan, folder: str = DETECTORS
) -> TrainedNetwork:
    """Train the detector of a run, write its score maps and measure them; what is there already is taken.

    Args:
        run_dir: the run's folder.
        name: of the run, see `run_name`; its seed is the detector's.
        rows: the training set, paths relative to `run_dir`.
        plan: how to train.
        folder: of all such detectors in the run's folder; each has one in it by its name.
    """
    target, recipe = Path(run_dir) / folder / name, plan.fit_recipe(rows)
    masked = load_masked_samples(rows, run_dir, plan.input_size)
    seed = parse_run_name(name).seed
    trained = train_detector(masked, target, recipe, plan.backbone, seed, plan.weights)
    if trained.resumed_epochs < recipe.epochs or not (target / METRICS_FILE).is_file():
        write_score_maps(trained.model, masked, target, recipe.normalisation)
        measure_score_maps(target, run_dir)
    return trained


def write_score_maps(
    model: nn.Module,
    masked: Samples,
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
    table = masked.table.loc[masked.indices("test")].reset_index(drop=True)
    table = table[["image", "mask", "label", "category", "defect_type"]]
    table = table.assign(score_map=names, score=scores)
    write_csv(table, Path(run_folder) / MAP_LIST)
    return table


@torch.inference_mode()
def _score(
    model: nn.Module, masked: Samples, normalisation: str, batch_size: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Positions of test images, and their logits, shape (batch, height, width), float32."""
    device = next(model.parameters()).device
    for batch in split_batches(masked.indices("test"), batch_size):
        inputs: Tensor = normalise_images(masked.images_u8[batch].to(device), normalisation)
        yield batch.tolist(), model(inputs).float().cpu().numpy()


def logits_to_levels(logits: np.ndarray) -> np.ndarray:
    """Finite logits as 16-bit levels: -16 … 16 onto 0 … 65535, what is beyond is cut."""
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
    """Stored score maps of some test images, by the images' names in the manifest."""
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
    raise_problems(f"score maps of {run_folder}", missing, ManifestError)
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
