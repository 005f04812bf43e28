"""Cutting a working picture out around a mask, and putting what was painted back under the mask only."""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from defaug_utils.core.images import fit_image, fit_mask


class Box(NamedTuple):
    """Part of an image, in pixels; right and bottom are one past the last."""

    left: int
    top: int
    right: int
    bottom: int


def choose_box(mask: np.ndarray, size: tuple[int, int], padding: int | None) -> Box:
    """The part of an image that is worked on: the mask with its padding, as far as the image reaches.

    As in DIAG's code, where the image is stretched to the working size (width, height) before it is cut, the
    part has the image's own aspect. The padding is in pixels of the working size; None takes the whole image.

    Raises:
        ValueError: the padding is negative or the mask empty.
    """
    height, width = mask.shape
    if padding is None:
        return Box(0, 0, width, height)
    if padding < 0 or not mask.any():
        raise ValueError(
            f"padding_mask_crop {padding} and a mask of {np.count_nonzero(mask)} pixels: expected None or at "
            "least 0, and a mask with a defect"
        )
    spans = []
    for axis, (side, working) in enumerate(((width, size[0]), (height, size[1]))):
        used = np.flatnonzero(mask.any(axis=axis))
        margin = -(-padding * side // working)
        spans.append((max(0, used[0] - margin), min(side, used[-1] + 1 + margin)))
    share = max((end - start) / side for (start, end), side in zip(spans, (width, height), strict=True))
    left, right = _widen(*spans[0], min(width, int(np.ceil(share * width))), width)
    top, bottom = _widen(*spans[1], min(height, int(np.ceil(share * height))), height)
    return Box(left, top, right, bottom)


def _widen(start: int, end: int, length: int, side: int) -> tuple[int, int]:
    """Lengthen a span about its middle, moved where it would leave the image."""
    length = max(length, end - start)
    first = min(max(0, (start + end - length) // 2), side - length)
    return int(first), int(first + length)


def cut_out(
    image_u8: np.ndarray, mask: np.ndarray, box: Box, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The box of an image and of its mask at the working size (width, height); no defect's pixel is lost."""
    part = (slice(box.top, box.bottom), slice(box.left, box.right))
    return fit_image(image_u8[part], size), fit_mask(mask[part], size)


def paste_back(image_u8: np.ndarray, painted_u8: np.ndarray, box: Box) -> np.ndarray:
    """A new image with a painted box, brought back from the working size, over the part it was cut out of."""
    size = (box.right - box.left, box.bottom - box.top)
    pasted = image_u8.copy()
    pasted[box.top : box.bottom, box.left : box.right] = np.asarray(
        Image.fromarray(painted_u8).resize(size, Image.Resampling.LANCZOS)
    )
    return pasted


def composite(image_u8: np.ndarray, painted_u8: np.ndarray, mask: np.ndarray, feather: int = 0) -> np.ndarray:
    """Keep what was painted inside the mask, and the original's own pixels, bit for bit, everywhere else.

    Over so many pixels of `feather`, inwards from the mask's edge, the original fades out.

    Raises:
        ValueError: shapes or types differ, or the feather is negative.
    """
    if image_u8.shape != painted_u8.shape or image_u8.shape[:2] != mask.shape or mask.dtype != bool:
        raise ValueError(
            f"image {image_u8.shape}, painted {painted_u8.shape}, mask {mask.shape} of {mask.dtype}: "
            "expected one height and width, and a mask of bool"
        )
    if feather < 0:
        raise ValueError(f"feather {feather} must be 0 or more pixels")
    if not feather:
        return np.where(mask[..., None], painted_u8, image_u8)
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    weight = np.minimum(depth / (feather + 1), 1)[..., None]
    blended = np.rint(weight * painted_u8 + (1 - weight) * image_u8).astype(np.uint8)
    return np.where(mask[..., None], blended, image_u8)


def cover_cells(mask: np.ndarray, factor: int) -> np.ndarray:
    """Grow a mask, whose sides the factor divides, to whole cells of the latent grid: all that it touches.

    Pipelines bring masks to the latent grid by taking one pixel a cell, and a thin crack slips through.
    """
    height, width = mask.shape
    cells = mask.reshape(height // factor, factor, width // factor, factor).any(axis=(1, 3))
    return cells.repeat(factor, axis=0).repeat(factor, axis=1)
