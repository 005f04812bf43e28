"""Detectors of defect pixels: a compact U-Net on the classifier's ResNets, score maps and metrics.

Ronneberger et al. 2015 (U-Net), He et al. 2016 (ResNet). The other detector, DeSTSeg, is in `destseg`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from transformers import ResNetModel

from defaug_utils.core.files import read_csv, write_csv, write_json, write_png
from defaug_utils.core.guards import raise_problems
from defaug_utils.core.images import fit_mask, read_mask
from defaug_utils.core.manifest import ManifestError
from defaug_utils.core.origins import Run, parse_run_name
from defaug_utils.data.samples import Samples, load_masked_samples
from defaug_utils.evaluation.destseg import HEAD_RECIPE, DeSTSeg, StudentTeacher, train_destseg
from defaug_utils.evaluation.pixel_metrics import measure_pixels
from defaug_utils.evaluation.recipes import (
    Batch,
    Recipe,
    Start,
    TrainedNetwork,
    fit_epochs,
    refuse_augment,
    show_masked,
    split_batches,
    train_network,
)
from defaug_utils.protocol.mixing import Mix, compose_training_set
from defaug_utils.protocol.run_folder import read_data, read_pools
from defaug_utils.training.backbones import build_classifier, normalise_images
from defaug_utils.training.loop import OnStep

DETECTORS = "segmenter"  # the detectors' folder in a run
# ours; an epoch shows all positives and as many negatives
DETECTOR_RECIPE = Recipe("adam", 2e-3, batch_size=8, epochs=20, balanced=True, flips=True, decay=True)
MAP_LIST = "score_maps.csv"
METRICS_FILE = "pixel_metrics.json"
LARGEST_LOGIT = 16.0  # stored maps keep logits of ±16 in 65,536 steps
LARGEST_LEVEL = 65535
DEFECT_PRIOR = 0.01  # of every pixel before training, so that defects are not swamped (Lin et al. 2017, 3.3)
DICE_SMOOTHING = 1.0  # pixels; without defects, the overlap term then favours few positives


class Detector(nn.Module):
    """A ResNet with a U-Net decoder: each stage is upsampled and joined with the previous one."""

    def __init__(self, resnet: ResNetModel) -> None:
        super().__init__()
        self.encoder = resnet
        channels = [resnet.config.embedding_size, *resnet.config.hidden_sizes]
        pairs = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.decoder = nn.ModuleList()
        for deep, skip in pairs:
            convolution = nn.Conv2d(deep + skip, skip, kernel_size=3, padding=1, bias=False)
            self.decoder.append(nn.Sequential(convolution, nn.BatchNorm2d(skip), nn.ReLU(inplace=True)))
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

    @staticmethod
    def score_images(logits: Tensor) -> Tensor:
        """Scores of whole images, shape (batch,), from logits (batch, height, width): the largest."""
        return logits.amax(dim=(1, 2))


def _stretch(state: Tensor, like: Tensor) -> Tensor:
    return interpolate(state, like.shape[2:], mode="bilinear", align_corners=False)


def build_detector(backbone: str, weights: str = "", kind: str = "unet") -> Detector | DeSTSeg:
    """Make a detector, see `build_classifier`; all but the pretrained ResNet is initialised randomly.

    Raises a ValueError if the kind is neither "unet" nor "destseg".
    """
    check_kind(kind)
    resnet = build_classifier(backbone, weights).resnet
    return (Detector(resnet) if kind == "unet" else DeSTSeg(StudentTeacher(resnet))).eval()


def detection_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of the pixels plus one minus the overlap (soft Dice, Milletari et al. 2016, section 3).

    The first term keeps scores comparable between images; the second weights small and large defects equally.
    Logits and masks (1 on the defect) have shape (batch, height, width).
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
    """Train on images and masks, see `train_classifier`; `weights` are those of the encoder.

    Raises a ValueError for a recipe with `augment`, which would not transform the masks.
    """
    refuse_augment(recipe)

    def measure_loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, masks = show_masked(masked, batch, recipe, next(model.parameters()).device)
        return detection_loss(model(inputs).float(), masks)

    start = Start(backbone, weights, seed, DETECTORS)
    return train_network(build_detector, measure_loss, masked, folder, recipe, start, on_step)


# Kind of a detector → its name, its recipe, and its training.
KINDS = {
    "unet": ("U-Net", DETECTOR_RECIPE, train_detector),
    "destseg": ("DeSTSeg", HEAD_RECIPE, train_destseg),
}


def check_kind(kind: str) -> None:
    """Refuse a kind of detector that there isn't."""
    if kind not in KINDS:
        raise ValueError(f"detector {kind!r} is not one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class DetectorPlan:
    """How all detectors of a comparison are trained; 0 keeps the recipe's value."""

    backbone: str  #: a name in `BACKBONES`
    weights: str = ""  #: of the encoder, as for `build_classifier`
    training_images: int = 0  #: shown to each detector in total, see `fit_epochs`
    batch_size: int = 0  #: images per step
    learning_rate: float = 0.0  #: of the first epoch; of DeSTSeg's head only
    input_size: tuple[int, int] = (0, 0)  #: (width, height); (0, 0) for the size of the stored images
    kind: str = "unet"  #: or "destseg"

    def __post_init__(self) -> None:
        check_kind(self.kind)

    @property
    def label(self) -> str:
        """Kind and backbone, for captions."""
        return f"{KINDS[self.kind][0]} on {self.backbone}"

    def fit_recipe(self, rows: pd.DataFrame) -> Recipe:
        """The recipe for a training set's rows."""
        given = {"batch_size": self.batch_size, "learning_rate": self.learning_rate}
        recipe = replace(KINDS[self.kind][1], **{name: value for name, value in given.items() if value})
        labels = (rows.loc[rows["split"] == "train", "label"] == "positive").to_numpy(int)
        return fit_epochs(recipe, labels, self.training_images)


def compose_detector_set(run_dir: Path | str, run: Run, mix: Mix | None = None) -> pd.DataFrame:
    """The training set of a run, see `compose_training_set`, without validation: no threshold is needed."""
    rows = compose_training_set(read_data(run_dir), read_pools(run_dir, run), run, mix)
    return rows[rows["split"] != "val"]


def finish_detector(
    run_dir: Path | str,
    name: str,
    rows: pd.DataFrame,
    plan: DetectorPlan,
    folder: str = DETECTORS,
    on_step: OnStep | None = None,
) -> TrainedNetwork:
    """Train the detector of a run, write its score maps and measure them; existing results are reused.

    Args:
        rows: the training set, its paths relative to `run_dir`.
        name: of the run, see `run_name`; its seed is the detector's.
        folder: of all such detectors in the run's folder; each has a subfolder with its name.
        on_step: see `run_steps`.

    Raises:
        ManifestError: images, masks or (for DeSTSeg) sources are missing or broken (all are listed).
        ValueError: the folder contains a detector with other settings, or a score is not finite.
    """
    target, recipe = Path(run_dir) / folder / name, plan.fit_recipe(rows)
    masked = load_masked_samples(rows, run_dir, plan.input_size)
    seed = parse_run_name(name).seed
    train = KINDS[plan.kind][2]
    trained = train(masked, target, recipe, plan.backbone, seed, plan.weights, on_step)
    if trained.resumed_epochs < recipe.epochs or not (target / METRICS_FILE).is_file():
        write_score_maps(trained.model, masked, target, recipe.normalisation)
        measure_score_maps(target, run_dir)
    return trained


@torch.inference_mode()
def write_score_maps(
    model: nn.Module, masked: Samples, run_folder: Path | str, normalisation: str, batch_size: int = 8
) -> pd.DataFrame:
    """Score every pixel of the test images: 16-bit PNGs in `score_maps`, listed last in `score_maps.csv`.

    Returns that list, one row per test image: image, mask, label, category, defect_type, `score_map` (its
    file, relative to `run_folder`) and `score` (the image's score, see the detector's `score_images`).
    """
    run_folder, test = Path(run_folder), masked.indices("test")
    (run_folder / MAP_LIST).unlink(missing_ok=True)
    device, names, scores = next(model.parameters()).device, [], []
    for batch in split_batches(test, batch_size):
        logits = model(normalise_images(masked.images_u8[batch].to(device), normalisation)).float()
        scores += model.score_images(logits).tolist()
        for index, one in zip(batch.tolist(), logits.cpu().numpy(), strict=True):
            names.append(f"score_maps/{index:06d}.png")
            write_png(run_folder / names[-1], logits_to_levels(one))
    table = masked.table.loc[test, ["image", "mask", "label", "category", "defect_type"]]
    table = table.reset_index(drop=True).assign(score_map=names, score=scores)
    write_csv(table, run_folder / MAP_LIST)
    return table


def logits_to_levels(logits: np.ndarray) -> np.ndarray:
    """Finite logits as 16-bit levels: -16 … 16 is mapped to 0 … 65535, values beyond are clipped."""
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
    """Stored score maps of some test images, by their names in the manifest."""
    files = _read_list(Path(run_folder)).set_index("image")["score_map"]
    return [read_score_map(Path(run_folder) / files[image]) for image in images]


def _read_list(run_folder: Path) -> pd.DataFrame:
    if not (run_folder / MAP_LIST).is_file():
        raise FileNotFoundError(f"no {MAP_LIST} in {run_folder}: write the score maps first")
    return read_csv(run_folder / MAP_LIST, keep_default_na=False)


def measure_score_maps(run_folder: Path | str, folder: Path | str) -> dict[str, float]:
    """Metrics of stored score maps, see `measure_pixels`, also written to `pixel_metrics.json`.

    `image_ap` is the AP of the images' scores. Masks are relative to `folder`; masks and maps are read one at
    a time. Raises a ManifestError that lists missing files.
    """
    run_folder, folder = Path(run_folder), Path(folder)
    table = _read_list(run_folder)
    files = [run_folder / name for name in table["score_map"]]
    files += [folder / name for name in table["mask"] if name]
    missing = [f"{path}: does not exist" for path in files if not path.is_file()]
    raise_problems(f"score maps of {run_folder}", missing, ManifestError)

    def read_pair(row: tuple) -> tuple[np.ndarray, np.ndarray]:
        score_map = read_score_map(run_folder / row.score_map)
        if not row.mask:
            return score_map, np.zeros(score_map.shape, bool)
        return score_map, fit_mask(read_mask(folder / row.mask), score_map.shape[::-1])

    labels = table["label"] == "positive"
    numbers = measure_pixels(map(read_pair, table.itertuples()))
    numbers |= {"image_ap": float(average_precision_score(labels, table["score"]))}
    write_json(run_folder / METRICS_FILE, numbers)
    return numbers
