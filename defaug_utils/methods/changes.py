"""Did a defect appear where it was asked for? Automatic checks of every generated image."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

BLANK_SPREAD = 1.0  # grey levels; a picture whose spread is less shows nothing


@dataclass(frozen=True)
class CheckLimits:
    """What an image must reach to pass.

    Attributes:
        changed_from: grey levels from which a pixel counts as changed, above the autoencoder's haze.
        contrast: least mean change inside the mask, grey levels.
        completeness: least share of the mask that changed.
        precision: least share of what changed, before the original was put back, that lies in the mask.
        boundary_iou: least agreement of the outlines of what changed and of the mask.
        boundary_width: width of these outlines, pixels.
    """

    changed_from: float = 10.0
    contrast: float = 4.0
    completeness: float = 0.1
    precision: float = 0.0
    boundary_iou: float = 0.0
    boundary_width: int = 2

    def __post_init__(self) -> None:
        """Refuse limits that nothing or everything would meet by mistake."""
        shares = {
            name: getattr(self, name)
            for name in ("completeness", "precision", "boundary_iou")
            if not 0 <= getattr(self, name) <= 1
        }
        if shares or self.changed_from <= 0 or self.contrast < 0 or self.boundary_width < 1:
            raise ValueError(
                f"{self}: expected shares in 0 … 1, changed_from above 0, contrast of 0 or more grey levels "
                "and a boundary_width of at least 1 pixel"
            )


class Check(NamedTuple):
    """What was measured, in the order of the manifest's columns `check_…`.

    Attributes:
        contrast: mean change inside the mask, grey levels.
        completeness: share of the mask that changed.
        precision: share of what the model changed that lies in the mask; 1 where nothing changed.
        boundary_iou: agreement of the outlines of what the model changed and of the mask.
        outside: largest change outside the mask in the finished image, grey levels; must be 0.
        passed: whether all limits are met.
        reason: what failed, in words; empty when it passed.
    """

    contrast: float
    completeness: float
    precision: float
    boundary_iou: float
    outside: int
    passed: bool
    reason: str

    def as_row(self) -> dict:
        """Manifest columns, rounded so that they read well."""
        values = self._asdict().items()
        return {f"check_{name}": round(v, 4) if isinstance(v, float) else v for name, v in values}


def check_image(
    original_u8: np.ndarray,
    painted_u8: np.ndarray,
    finished_u8: np.ndarray,
    mask: np.ndarray,
    limits: CheckLimits,
    is_finite: bool = True,
) -> Check:
    """Compare an image before and after.

    Args:
        original_u8: the negative, shape (height, width, 3), uint8.
        painted_u8: what the model made of it, before the original was put back outside the mask.
        finished_u8: the image of the pool.
        mask: shape (height, width), bool.
        limits: what to reach.
        is_finite: false when the model gave values that are no numbers.

    Returns:
        The measurements and the verdict.
    """
    difference = find_change(original_u8, finished_u8)
    is_changed = find_change(original_u8, painted_u8) >= limits.changed_from
    measured = {
        "contrast": float(difference[mask].mean()) if mask.any() else 0.0,
        "completeness": float(np.mean(difference[mask] >= limits.changed_from)) if mask.any() else 0.0,
        "precision": float(mask[is_changed].mean()) if is_changed.any() else 1.0,
        "boundary_iou": measure_boundary_iou(mask, is_changed, limits.boundary_width),
    }
    outside = int(difference[~mask].max(initial=0))
    reasons = [
        f"{name} {value:.3g} below {getattr(limits, name):g}"
        for name, value in measured.items()
        if value < getattr(limits, name)
    ]
    if outside:
        reasons.append(f"changed by {outside} outside the mask")
    if not is_finite:
        reasons.insert(0, "not a number")
    elif is_blank(painted_u8):
        reasons.insert(0, "blank")
    return Check(**measured, outside=outside, passed=not reasons, reason="; ".join(reasons))


def find_change(before_u8: np.ndarray, after_u8: np.ndarray) -> np.ndarray:
    """Largest change of a pixel's three channels, shape (height, width), uint8."""
    return cv2.absdiff(before_u8, after_u8).max(axis=2)


def is_blank(image_u8: np.ndarray) -> bool:
    """Tell whether a picture is one plain colour, as a failed decoder leaves it."""
    return bool(image_u8.reshape(-1, 3).std(axis=0).max() < BLANK_SPREAD)


def measure_boundary_iou(first: np.ndarray, second: np.ndarray, width: int = 2) -> float:
    """Intersection over union of the outlines of two regions (boundary IoU, Cheng et al. 2021).

    Args:
        first: shape (height, width), bool.
        second: same shape.
        width: of the outlines, from each region's edge inwards, pixels.

    Returns:
        In [0, 1]; 1 when both regions are empty.
    """
    outlines = [_find_outline(region, width) for region in (first, second)]
    union = np.count_nonzero(outlines[0] | outlines[1])
    return float(np.count_nonzero(outlines[0] & outlines[1]) / union) if union else 1.0


def _find_outline(region: np.ndarray, width: int) -> np.ndarray:
    padded = np.pad(region.astype(np.uint8), width)
    kept = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
    return region & ~kept[width:-width, width:-width].astype(bool)
