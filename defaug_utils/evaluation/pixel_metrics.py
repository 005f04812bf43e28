"""Metrics from score maps: pixel AUROC and AP, per-region overlap (PRO), instance AP (IAP, IAP90).

All five are computed from one table that counts the pixels of each distinct score. Maps are counted one at a
time, so memory grows with the number of distinct scores (at most 65,536 for stored maps), not of images.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from skimage.measure import label
from sklearn.metrics import auc

from defaug_utils.core.guards import raise_problems

MAX_FPR = 0.3  # of PRO's curve (Bergmann et al. 2020)
IOI = 0.5  # share of an instance's pixels that must be found (DeSTSeg: Zhang et al. 2023, section 4.1)
MIN_RECALL = 0.9  # of IAP90 (DeSTSeg, section 4.1)
CONNECTIVITY = 2  # pixels that touch at a corner belong together
MERGE_AFTER = 2**22  # distinct scores to collect before merging


class PixelCounts(NamedTuple):
    """The pixels of a test set, counted by score; all arrays but the last have the shape (scores,)."""

    scores: np.ndarray  #: the distinct scores, in descending order
    normal: np.ndarray  #: pixels without defect that have this score
    defect: np.ndarray  #: defect pixels that have it
    overlap: np.ndarray  #: share of a defect region that has it, mean over all regions; adds up to 1
    instance_scores: np.ndarray  #: for every region the score that half of its pixels reach, ascending


def count_pixels(maps_and_masks: Iterable[tuple[np.ndarray, np.ndarray]]) -> PixelCounts:
    """Count the pixels of score maps by score, see `measure_pixels`."""
    tables, instance_scores, problems = [], [], []
    for index, (score_map, mask) in enumerate(maps_and_masks):
        found = _find_problems(index, score_map, mask)
        problems += found
        if not found:
            table, scores = _count_image(score_map, mask)
            instance_scores += scores
            tables.append(table)
            if sum(len(table[0]) for table in tables) > MERGE_AFTER:
                tables = [_merge(tables)]
    raise_problems("these score maps can't be evaluated", problems, ValueError)
    scores, normal, defect, overlap = _merge(tables) if tables else np.zeros((4, 0))
    if not normal.sum() or not defect.sum():
        raise ValueError(
            f"these score maps can't be evaluated: {defect.sum():.0f} of {normal.sum() + defect.sum():.0f} "
            "pixels are defective, but both kinds are needed"
        )
    columns = [column[::-1] for column in (scores, normal, defect, overlap / len(instance_scores))]
    return PixelCounts(*columns, np.sort(np.array(instance_scores)))


def _find_problems(index: int, score_map: np.ndarray, mask: np.ndarray) -> list[str]:
    if score_map.shape != mask.shape or mask.ndim != 2 or mask.dtype != bool:
        found = f"scores of shape {score_map.shape} and a mask of shape {mask.shape}, {mask.dtype}"
        return [f"image {index}: {found}; expected the same (height, width), and bool"]
    if not np.isfinite(score_map).all():
        return [f"image {index}: {(~np.isfinite(score_map)).sum()} of {score_map.size} scores are not finite"]
    return []


def _count_image(score_map: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """One image's table (see `_merge`; overlap summed over regions), and its regions' scores."""
    scores, regions = score_map.astype(float).ravel(), label(mask, connectivity=CONNECTIVITY).ravel()
    areas = np.bincount(regions)
    weight = np.where(regions > 0, 1 / areas[regions], 0.0)
    table = _merge([np.stack([scores, regions == 0, regions > 0, weight])])
    order = np.lexsort((-scores, regions))  # by region, descending in each
    starts = np.concatenate([[0], np.cumsum(areas)])[:-1]
    middles = starts + np.floor(IOI * areas).astype(int)
    return table, scores[order[middles[1:]]].tolist()


def _merge(tables: list[np.ndarray]) -> np.ndarray:
    """Join tables with the rows score, normal, defect, overlap; each score then occurs once, ascending."""
    scores, *columns = np.concatenate(tables, axis=1)
    distinct, place = np.unique(scores, return_inverse=True)
    return np.stack([distinct, *(np.bincount(place, column, len(distinct)) for column in columns)])


def _accumulate(counts: np.ndarray) -> np.ndarray:
    """Share of the total at or above each score, starting with 0 (above all)."""
    return np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])


def pixel_auroc(counts: PixelCounts) -> float:
    """Share of (defect, normal) pairs of pixels in which the defect scores higher; ties count half."""
    return float(auc(_accumulate(counts.normal), _accumulate(counts.defect)))


def pixel_average_precision(counts: PixelCounts) -> float:
    """AP over all pixels, as the step-wise sum Σ (Rₙ − Rₙ₋₁) Pₙ."""
    found = np.cumsum(counts.defect)
    precision = found / (found + np.cumsum(counts.normal))
    return float((counts.defect * precision).sum() / counts.defect.sum())


def region_overlap_area(counts: PixelCounts, max_fpr: float = MAX_FPR) -> float:
    """PRO: the area under the per-region overlap up to a false-positive rate, divided by that rate.

    Every region counts the same, however large it is (Bergmann et al. 2020).
    """
    fpr, overlap = _accumulate(counts.normal), _accumulate(counts.overlap)
    inside = fpr <= max_fpr
    ends = np.append(fpr[inside], max_fpr), np.append(overlap[inside], np.interp(max_fpr, fpr, overlap))
    return float(auc(*ends) / max_fpr)


def instance_average_precision(counts: PixelCounts, min_recall: float = MIN_RECALL) -> tuple[float, float]:
    """IAP and, for the default recall, IAP90 (DeSTSeg: Zhang et al. 2023, section 4.1).

    An instance is found at a threshold that half of its pixels reach. Each instance contributes the precision
    over all pixels with at least that score, made monotone (the largest at this or a higher recall). IAP is
    the mean of these, IAP90 the one at the smallest recall of at least `min_recall`.
    """
    last = np.searchsorted(-counts.scores, -counts.instance_scores, side="right") - 1
    found = np.cumsum(counts.defect)[last]
    precision = np.maximum.accumulate(found / (found + np.cumsum(counts.normal)[last]))
    total = len(precision)
    missed = int(np.floor((1 - min_recall) * total + 1e-9))
    return float(precision.mean()), float(precision[missed])


def measure_pixels(maps_and_masks: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """All metrics of a test set's score maps; images may differ in size.

    A region (instance) is a connected part of a mask; pixels connect at edges and corners.

    Args:
        maps_and_masks: scores (higher on defects) and mask (bool) of each image, both (height, width).

    Returns:
        pixel_auroc, pro, pixel_ap, iap, iap90, and the numbers of `pixels`, `defect_pixels` and `instances`.

    Raises:
        ValueError: maps and masks don't match, scores are not finite (all listed), or all or no pixels are
            defective.
    """
    counts = count_pixels(maps_and_masks)
    iap, iap90 = instance_average_precision(counts)
    return {
        "pixel_auroc": pixel_auroc(counts),
        "pro": region_overlap_area(counts),
        "pixel_ap": pixel_average_precision(counts),
        "iap": iap,
        "iap90": iap90,
        "pixels": int(counts.normal.sum() + counts.defect.sum()),
        "defect_pixels": int(counts.defect.sum()),
        "instances": len(counts.instance_scores),
    }
