"""What painting methods share: planning, automatic checks, and repeated attempts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import pandas as pd
from scipy.ndimage import binary_erosion

from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import image_seed
from defaug_utils.core.pools import GeneratedImage, list_versions
from defaug_utils.core.prompts import Prompt, choose_prompt
from defaug_utils.core.sources import count_grey, list_sources, read_dataset, survey_sources
from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob
from defaug_utils.masks.patches import widen_mask
from defaug_utils.masks.sources import MaskDraw, MaskSource, choose_shape
from defaug_utils.methods.likeness import Likeness

BLANK_SPREAD = 1.0  # grey levels; an image with a smaller spread is blank
MAX_DRAWS = 50  # masks to draw for one image until one fits into its object
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "opencv-python-headless", "pillow")


@dataclass(frozen=True)
class CheckLimits:
    """What an image must reach to pass the checks."""

    changed_from: float = 10.0  #: grey levels that count as a change, above the autoencoder's haze
    contrast: float = 4.0  #: minimum mean change inside the mask, grey levels
    completeness: float = 0.1  #: minimum share of the mask that changed
    precision: float = 0.0  #: minimum share of all changes, before restoring the original, in the mask
    boundary_iou: float = 0.0  #: minimum agreement of the outlines of the change and of the mask
    boundary_width: int = 2  #: of these outlines, pixels

    def __post_init__(self) -> None:
        are_shares = all(0 <= share <= 1 for share in (self.completeness, self.precision, self.boundary_iou))
        if not are_shares or self.changed_from <= 0 or self.contrast < 0 or self.boundary_width < 1:
            raise ValueError(
                f"{self}: expected shares in 0 … 1, changed_from above 0, contrast of 0 or more grey levels "
                "and a boundary_width of at least 1 pixel"
            )


class Check(NamedTuple):
    """The measurements for `CheckLimits`, in the order of the manifest's columns `check_…`."""

    contrast: float
    completeness: float
    precision: float  #: 1 if nothing changed
    boundary_iou: float
    #: largest change outside mask and margin in the finished image, grey levels; must be 0, unless the image
    #: is the whole of the model's output
    outside: int
    passed: bool  #: whether all limits are met
    reason: str  #: what failed; empty if it passed

    def as_row(self) -> dict:
        """Manifest columns, rounded for readability."""
        values = self._asdict().items()
        return {f"check_{name}": round(v, 4) if isinstance(v, float) else v for name, v in values}


def check_image(job: InpaintJob, painted: InpaintedImage, limits: CheckLimits, margin: int = 0) -> Check:
    """Compare an image with its negative, before and after the original was restored outside the mask.

    `margin` pixels around the mask may have changed, too.
    """
    mask, difference = job.mask, find_change(job.image_u8, painted.image_u8)
    is_changed = find_change(job.image_u8, painted.painted_u8) >= limits.changed_from
    measured = {
        "contrast": float(difference[mask].mean()),
        "completeness": float(np.mean(difference[mask] >= limits.changed_from)),
        "precision": float(mask[is_changed].mean()) if is_changed.any() else 1.0,
        "boundary_iou": measure_boundary_iou(mask, is_changed, limits.boundary_width),
    }
    outside = int(difference[~widen_mask(mask, margin)].max(initial=0))
    least = asdict(limits)
    reasons = [f"{name} {v:.3g} below {least[name]:g}" for name, v in measured.items() if v < least[name]]
    if outside and painted.is_restored:
        reasons.append(f"changed by {outside} outside the mask")
    if not painted.is_finite:
        reasons.insert(0, "not a number")
    elif is_blank(painted.painted_u8):
        reasons.insert(0, "blank")
    return Check(**measured, outside=outside, passed=not reasons, reason="; ".join(reasons))


def find_change(before_u8: np.ndarray, after_u8: np.ndarray) -> np.ndarray:
    """Largest change over a pixel's three channels, shape (height, width), uint8."""
    return cv2.absdiff(before_u8, after_u8).max(axis=2)


def is_blank(image_u8: np.ndarray) -> bool:
    """Whether an image is one plain colour, as from a failed decoder."""
    return bool(image_u8.reshape(-1, 3).std(axis=0).max() < BLANK_SPREAD)


def measure_boundary_iou(first: np.ndarray, second: np.ndarray, width: int = 2) -> float:
    """IoU of two regions' outlines, `width` pixels inwards (Cheng et al. 2021); 1 if both are empty."""
    square = np.ones((3, 3))
    one, other = (region & ~binary_erosion(region, square, iterations=width) for region in (first, second))
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 1.0


class PaintResult(NamedTuple):
    """An image, its checks, and its attempt (from 0)."""

    painted: InpaintedImage
    check: Check
    attempt: int

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """The best of several attempts has the highest rank."""
        return self.check.passed, self.painted.is_finite, self.check.contrast

    def as_row(self) -> dict:
        """Manifest columns."""
        told = {"attempt": self.attempt, "latent_cells": self.painted.latent_cells}
        whole = {} if self.painted.is_restored else {"paste_back": False}
        return self.check.as_row() | told | whole | dict(self.painted.further)


@dataclass(frozen=True, eq=False, kw_only=True)
class Painting(ABC):
    """Defects painted into training negatives, checked, and painted again if they fail.

    Rows also have the columns `negative_prompt`, `attempt`, `latent_cells` and `check_…`, and `paste_back`,
    false, if the original was not restored outside the mask. Images that never passed stay, with
    `check_passed` false. Grey images are painted in grey, see `finish_image`.
    """

    margin: ClassVar[int] = 0  #: pixels around the mask that are also painted
    data: Path  #: folder of the prepared data set
    prompts: Sequence[Prompt]  #: the board, see `make_prompts`
    limits: CheckLimits = field(default_factory=CheckLimits)  #: of the automatic checks
    max_attempts: int = 3  #: attempts at an image until one passes the checks
    group: int = 4  #: images painted at once; part of the recipe, because the last bits depend on it
    likeness: Likeness | None = None  #: a defect must also resemble a known one; adds `check_distance`

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.group < 1:
            raise ValueError(f"max_attempts {self.max_attempts} and group {self.group} must be 1 or more")

    @abstractmethod
    def paint(self, jobs: Sequence[InpaintJob]) -> Sequence[InpaintedImage]:
        """One image for each job."""

    @abstractmethod
    def plan_image(self, index: int, seed: int) -> tuple[InpaintJob, dict]:
        """The job of an image, and its row."""

    def find_limits(self, text: str) -> CheckLimits:
        """The limits of an image with this prompt, which may demand a stronger contrast."""
        strongest = max((prompt.contrast for prompt in self.prompts if prompt.text == text), default=0.0)
        return replace(self.limits, contrast=max(self.limits.contrast, strongest))

    def judge(self, job: InpaintJob, painted: InpaintedImage, attempt: int) -> "PaintResult":
        """The automatic checks of an image and, if it passes them, its likeness to the known defects."""
        check = check_image(job, painted, self.find_limits(job.prompt), self.margin)
        if not (self.likeness and painted.is_finite):
            return PaintResult(painted, check, attempt)
        distance = self.likeness.measure(painted.image_u8, job.mask)
        if distance > self.likeness.threshold:
            told = f"unlike the known defects: distance {distance:.3g} above {self.likeness.threshold:.3g}"
            check = check._replace(passed=False, reason="; ".join(filter(None, [check.reason, told])))
        further = dict(painted.further) | {"check_distance": round(distance, 4)}
        return PaintResult(replace(painted, further=further), check, attempt)

    @property
    def texts(self) -> list[str]:
        """All prompts of the board that are not empty."""
        return [text for prompt in self.prompts for text in (prompt.text, prompt.negative) if text]

    def describe(self) -> dict:
        """Everything that does not depend on the model."""
        return {
            "checks": {**asdict(self.limits), "max_attempts": self.max_attempts},
            "prompts": [prompt.describe() for prompt in self.prompts],
            "batch_size": self.group,
            "versions": list_versions(*LIBRARIES),
            **({"likeness": self.likeness.describe()} if self.likeness else {}),
        }

    def make(self, indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        """Images painted at once, with their masks and rows."""
        jobs, rows = zip(*map(self.plan_image, indices, seeds), strict=True)
        results = zip(jobs, rows, paint_until_passed(self, jobs), strict=True)
        return [
            GeneratedImage(one.painted.image_u8, job.mask, row | one.as_row()) for job, row, one in results
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskPainting(Painting):
    """Negatives drawn with replacement, and masks from a source; rows also have the column `mask_name`."""

    masks: MaskSource  #: where defects go, see `open_masks`; a mask may come with a prompt of the board

    def __post_init__(self) -> None:
        super().__post_init__()
        for prompt in self.prompts:
            choose_shape(self.masks, prompt)  # refuses what is unknown

    def fit_mask(
        self, image_u8: np.ndarray, mask: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray | None:
        """A drawn mask, moved to an allowed position; None if it fits nowhere."""
        return mask

    @cached_property
    def sources(self) -> pd.DataFrame:
        """The negatives to paint on."""
        return list_sources(read_dataset(self.data))

    def describe(self) -> dict:
        """Negatives and masks, and the number of grey negatives, which are painted in grey."""
        grey = count_grey(self.sources, self.data)
        return {
            **super().describe(),
            "sources": survey_sources(self.sources, self.data) | ({"stay_grey": grey} if grey else {}),
            **self.masks.describe(),
        }

    def plan_image(self, index: int, seed: int) -> tuple[InpaintJob, dict]:
        """Choose the prompt by the image's index, negative and mask by its seed; return job and row."""
        generator = np.random.default_rng(seed)
        source = self.sources.iloc[int(generator.integers(len(self.sources)))]
        image_u8 = read_image(Path(self.data) / source["image"])
        turn = choose_prompt(self.prompts, index)
        masks = choose_shape(self.masks, turn)
        drawn = self._draw_mask(masks, image_u8, source["image"], generator)
        prompt = next((prompt for prompt in self.prompts if prompt.text == drawn.text), turn)
        row = {
            "source_image": source["image"],
            "category": source["category"],
            "mask_source": self.masks.word,
            "mask_name": drawn.name,
            "prompt": prompt.text,
            "negative_prompt": prompt.negative,
        }
        return InpaintJob(image_u8, drawn.mask, prompt.text, prompt.negative, seed), row

    def _draw_mask(
        self, masks: MaskSource, image_u8: np.ndarray, image: str, generator: np.random.Generator
    ) -> MaskDraw:
        """Draw a mask, again if it fits nowhere."""
        for _ in range(MAX_DRAWS):
            drawn = masks.draw(int(generator.integers(2**63)), (image_u8.shape[1], image_u8.shape[0]))
            mask = self.fit_mask(image_u8, drawn.mask, generator)
            if mask is not None:
                return drawn._replace(mask=mask)
        raise ValueError(
            f"{image}: none of {MAX_DRAWS} masks ({self.masks.word}) fits into its object; the last one "
            f"({drawn.name}) has {np.count_nonzero(drawn.mask)} pixels: use smaller masks, or another "
            "foreground"
        )


def attempt_seed(seed: int, attempt: int) -> int:
    """Seed of the noise: the image's own for the first attempt, then one derived from it."""
    return seed if attempt == 0 else image_seed(seed, attempt)


def paint_until_passed(method: Painting, jobs: Sequence[InpaintJob]) -> list[PaintResult]:
    """Paint jobs together, and repeat those that fail their checks with their next seeds.

    For a job that never passes, the result with the strongest contrast is kept.
    """
    best: dict[int, PaintResult] = {}
    failed = list(range(len(jobs)))
    for attempt in range(method.max_attempts):
        if not failed:
            break
        asked = [jobs[number]._replace(seed=attempt_seed(jobs[number].seed, attempt)) for number in failed]
        for number, job, painted in zip(failed, asked, method.paint(asked), strict=True):
            result = method.judge(job, painted, attempt)
            best[number] = max(best.get(number, result), result, key=lambda one: one.rank)
        failed = [number for number in failed if not best[number].check.passed]
    return [best[number] for number in range(len(jobs))]
