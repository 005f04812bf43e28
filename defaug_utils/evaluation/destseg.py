"""DeSTSeg (Zhang et al. 2023): a denoising student, a frozen teacher, and a head that marks differences.

The student sees an image with a defect and learns the teacher's features of the same image without it. Here
the defects are the generated positives of the training set, so that arms differ in nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_max_pool2d,
    binary_cross_entropy_with_logits,
    interpolate,
    normalize,
)
from transformers import ResNetConfig, ResNetModel
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer

from defaug_utils.core.guards import raise_problems
from defaug_utils.core.manifest import ManifestError
from defaug_utils.data.datasets import data_key
from defaug_utils.data.samples import Samples, select_samples
from defaug_utils.evaluation.recipes import (
    Batch,
    Recipe,
    Start,
    TrainedNetwork,
    fit_epochs,
    flip_images,
    plan_epochs,
    refuse_augment,
    show_masked,
    train_network,
)
from defaug_utils.training.backbones import build_classifier, normalise_images
from defaug_utils.training.loop import CHECKPOINT, OnStep

STUDENT = "student"  # folder of the first stage's training, in the detector's
LEVELS = 3  # of features that are compared: 1/4, 1/8 and 1/16 of the image's size (section 3.1)
FOCUS = 4.0  # γ of the focal loss, as in the published code
TOP_PIXELS = 100  # T: an image's score is the mean of its highest pixels (section 3.4)
DILATIONS = (6, 12, 18)  # of the head's parallel convolutions (Chen et al. 2017)
HEAD_CHANNELS = 256  # at most; small backbones have those of their third stage
STUDENT_SHARE = 0.25  # of the images shown to the head: the published code takes 1,000 steps, then 4,000
# The published code's rate and batch; flips are ours.
STUDENT_RECIPE = Recipe("sgd", 0.4, batch_size=32, epochs=1, balanced=False, momentum=0.9, flips=True)
# The published code's rate for the head's residual blocks; ours for the rest (there 0.01), and to lower it.
HEAD_RECIPE = Recipe(
    "sgd", 0.1, batch_size=32, epochs=20, balanced=True, momentum=0.9, flips=True, decay=True
)


class StudentTeacher(nn.Module):
    """A frozen pretrained ResNet without its last stage, and a student that is to reproduce its features.

    The student is a whole ResNet of the same kind with random weights, and a decoder without skips, so that
    what it reproduces has passed through 1/32 of the size (section 3.1).
    """

    def __init__(self, teacher: ResNetModel) -> None:
        super().__init__()
        config: ResNetConfig = teacher.config
        self.teacher, self.encoder = teacher.requires_grad_(requires_grad=False), ResNetModel(config)
        channels = config.hidden_sizes
        self.decoder = nn.ModuleList(
            nn.Sequential(ResNetBasicLayer(deep, shallow), ResNetBasicLayer(shallow, shallow))
            for deep, shallow in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )

    def train(self, mode: bool = True) -> "StudentTeacher":
        """As usual, but the teacher's BatchNorm keeps ImageNet's statistics."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def teach(self, images: Tensor) -> list[Tensor]:
        """The teacher's features, finest first: (batch, channels, height / 4, …), then / 8 and / 16."""
        return self._run_stages(self.teacher, images)[:LEVELS]

    def forward(self, images: Tensor) -> list[Tensor]:
        """The student's features, of the same shapes as the teacher's."""
        *shallower, state = self._run_stages(self.encoder, images)
        found = []
        for block, like in zip(self.decoder, reversed(shallower), strict=True):
            state = block(_stretch(state, like.shape[2:]))
            found.append(state)
        return found[::-1]

    @staticmethod
    def _run_stages(network: ResNetModel, images: Tensor) -> list[Tensor]:
        state, states = network.embedder(images), []
        for stage in network.encoder.stages:
            state = stage(state)
            states.append(state)
        return states


def _stretch(state: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(state, tuple(size), mode="bilinear", align_corners=False)


def multiply_features(taught: Sequence[Tensor], learned: Sequence[Tensor]) -> list[Tensor]:
    """Products of both networks' features, normalised over channels; their sum over channels is the cosine.

    Features are (batch, channels, height, width), one pair per level (section 3.2, X̂).
    """
    pairs = zip(taught, learned, strict=True)
    return [normalize(one.float(), dim=1) * normalize(other.float(), dim=1) for one, other in pairs]


def cosine_loss(taught: Sequence[Tensor], learned: Sequence[Tensor]) -> Tensor:
    """Cosine distance averaged over positions and summed over levels (section 3.2, L_cos)."""
    distances = [1 - product.sum(dim=1) for product in multiply_features(taught, learned)]
    return torch.stack([distance.mean() for distance in distances]).sum()


class ParallelConvolutions(nn.Module):
    """Convolutions at several dilations and a global mean, side by side (ASPP, Chen et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernels = [{"kernel_size": 1}, *({"kernel_size": 3, "padding": d, "dilation": d} for d in DILATIONS)]
        self.branches = nn.ModuleList(_convolve(channels, channels, **kernel) for kernel in kernels)
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.ReLU())
        self.join = _convolve(channels * (len(kernels) + 1), channels, kernel_size=1)

    def forward(self, state: Tensor) -> Tensor:
        """State and result have shape (batch, channels, height, width)."""
        parts = [branch(state) for branch in self.branches]
        return self.join(torch.cat([*parts, self.mean(state).expand_as(state)], dim=1))


def _convolve(before: int, after: int, **kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, bias=False, **kernel), nn.BatchNorm2d(after), nn.ReLU())


class DeSTSeg(nn.Module):
    """A trained pair, which no longer changes, and the segmentation head over it (section 3.3)."""

    def __init__(self, pair: StudentTeacher) -> None:
        super().__init__()
        self.pair = pair.requires_grad_(requires_grad=False)
        sizes = pair.teacher.config.hidden_sizes[:LEVELS]
        channels = min(sizes[-1], HEAD_CHANNELS)
        self.head = nn.Sequential(
            ResNetBasicLayer(sum(sizes), channels),
            ResNetBasicLayer(channels, channels),
            ParallelConvolutions(channels),
            nn.Conv2d(channels, 1, kernel_size=1),
        )

    def train(self, mode: bool = True) -> "DeSTSeg":
        """Only the head is ever in training mode."""
        super().train(mode)
        self.pair.eval()
        return self

    def segment(self, images: Tensor) -> Tensor:
        """Logits of "this position is defective" at a quarter of the size (batch, height / 4, width / 4)."""
        with torch.no_grad():
            products = multiply_features(self.pair.teach(images), self.pair(images))
        finest = products[0].shape[2:]
        return self.head(torch.cat([_stretch(product, finest) for product in products], dim=1))[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        """The same at the images' size: (batch, height, width)."""
        return _stretch(self.segment(images)[:, None], images.shape[2:])[:, 0]

    @staticmethod
    def score_images(logits: Tensor) -> Tensor:
        """Scores of whole images, shape (batch,): the mean of the T highest pixels (section 3.4)."""
        pixels = logits.sigmoid().flatten(1)
        highest, _ = pixels.topk(min(TOP_PIXELS, pixels.shape[1]))
        return highest.mean(dim=1)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Focal loss plus the mean absolute difference (section 3.3, L_seg = L_focal + L_l1).

    Logits and masks (1 on the defect) have shape (batch, height, width).
    """
    entropy = binary_cross_entropy_with_logits(logits, masks, reduction="none")
    focal = ((1 - torch.exp(-entropy)) ** FOCUS * entropy).mean()
    return focal + (logits.sigmoid() - masks).abs().mean()


def shrink_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (batch, height, width) at a smaller size: a position is defective if any pixel under it is."""
    return adaptive_max_pool2d(masks[:, None], tuple(size))[:, 0]


def find_clean(samples: Samples) -> np.ndarray:
    """For each image of the train split its place without the defect, and -1 for real positives.

    A negative is its own, a generated positive's is its source. Raises a ManifestError that lists generated
    positives without a source among the training negatives.
    """
    table = samples.table
    is_negative = (table["split"] == "train") & (table["label"] == "negative")
    place_of = {data_key(name): place for place, name in table.loc[is_negative, "image"].items()}
    clean, problems = np.full(len(table), -1), []
    for place, row in table[table["split"] == "train"].iterrows():
        if row["label"] == "negative":
            clean[place] = place
        elif row["origin"] != "real":
            clean[place] = place_of.get(data_key(row["source_image"]), -1)
            if clean[place] < 0:
                found = row["source_image"] or "not given"
                problems.append(f"{row['image']}: its source ({found}) is not among the training negatives")
    raise_problems(
        "DeSTSeg's student needs the good image behind every generated one", problems, ManifestError
    )
    return clean


def train_student(
    masked: Samples, folder: Path | str, recipe: Recipe, start: Start, on_step: OnStep | None = None
) -> TrainedNetwork:
    """First stage: the student learns the teacher's features of the image without the defect.

    Real positives have no such image and are left out; without generated ones (arm "none"), it only learns
    good images. The recipe's `balanced` is set where there are generated positives.
    """
    clean = find_clean(masked)
    taken = select_samples(masked, masked.table.loc[clean >= 0, "image"])
    clean = find_clean(taken)
    recipe = replace(recipe, balanced=bool(taken.labels.any()))

    def measure_loss(pair: StudentTeacher, batch: Batch) -> Tensor:
        device = next(pair.parameters()).device
        sources = torch.from_numpy(clean[batch.images.numpy()])
        shown, good = (
            flip_images(
                normalise_images(taken.images_u8[places].to(device), recipe.normalisation), batch.flips
            )
            for places in (batch.images, sources)
        )
        return cosine_loss(pair.teach(good), pair(shown))

    return train_network(build_pair, measure_loss, taken, folder, recipe, start, on_step)


def build_pair(backbone: str, weights: str) -> StudentTeacher:
    """An untrained student beside its teacher, see `build_classifier`."""
    return StudentTeacher(build_classifier(backbone, weights).resnet)


def plan_student(recipe: Recipe, rows: pd.DataFrame) -> Recipe:
    """The student's recipe beside that of the head: a quarter as many images, in batches of the same size.

    `rows` are the training set's, with their split, label and origin.
    """
    rows = rows[rows["split"] == "train"]
    labels = (rows["label"] == "positive").to_numpy(int)
    known = labels[(labels == 0) | (rows["origin"] != "real")]
    (epoch,) = plan_epochs(labels, replace(recipe, epochs=1), seed=0)
    own = replace(STUDENT_RECIPE, batch_size=recipe.batch_size, balanced=bool(known.any()))
    return fit_epochs(own, known, max(1, round(STUDENT_SHARE * len(epoch) * recipe.epochs)))


def train_destseg(
    masked: Samples,
    folder: Path | str,
    recipe: Recipe,
    backbone: str,
    seed: int = 0,
    weights: str = "",
    on_step: OnStep | None = None,
) -> TrainedNetwork:
    """Train the student, then the segmentation head on all positives; arguments as for `train_detector`.

    The recipe is the head's; `plan_student` derives that of the student, whose training is in the subfolder
    `student`. Both resume. The head's checkpoint contains the trained student, whose own is removed at the
    end.

    Raises:
        ManifestError: generated positives name no source among the training negatives (all are listed).
        ValueError: the recipe has `augment`, or a folder contains another training.
    """
    refuse_augment(recipe)
    folder, start = Path(folder), Start(backbone, weights, seed, "destseg")
    pair = None  # the head's checkpoint brings the weights
    if not (folder / CHECKPOINT).is_file():
        of_student, plan = start._replace(detector="destseg-student"), plan_student(recipe, masked.table)
        pair = train_student(masked, folder / STUDENT, plan, of_student, on_step).model

    def measure_loss(model: DeSTSeg, batch: Batch) -> Tensor:
        inputs, masks = show_masked(masked, batch, recipe, next(model.parameters()).device)
        logits = model.segment(inputs).float()
        return segmentation_loss(logits, shrink_masks(masks, logits.shape[1:]))

    def build(backbone: str, weights: str) -> DeSTSeg:
        return DeSTSeg(pair or build_pair(backbone, weights))

    trained = train_network(build, measure_loss, masked, folder, recipe, start, on_step)
    (folder / STUDENT / CHECKPOINT).unlink(missing_ok=True)
    return trained
