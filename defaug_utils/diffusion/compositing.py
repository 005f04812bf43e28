"""Cropping a working image around a mask, and pasting the painted result back under the mask only."""

from typing import NamedTuple

import cv2
import numpy as np

from defaug_utils.core.images import fit_image, fit_mask


class Box(NamedTuple):
    """Part of an image, in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def choose_box(mask: np.ndarray, size: tuple[int, int], padding: int | None) -> Box:
    """The part of an image to work on: the mask with its padding, inside the image.

    The part has the image's aspect, because DIAG's code stretches the image to the working size (width,
    height) before it crops. The padding is in pixels of the working size; None takes the whole image.
    """
    sides = np.array(mask.shape[::-1])
    if padding is None:
        return Box(0, 0, *sides.tolist())
    corner, extent = np.reshape(cv2.boundingRect(mask.astype(np.uint8)), (2, 2))
    margin = -(-padding * sides // np.array(size))
    start, end = np.maximum(corner - margin, 0), np.minimum(corner + extent + margin, sides)
    share = ((end - start) / sides).max()  # of the image, the same in both directions
    length = np.maximum(np.minimum(np.ceil(share * sides).astype(int), sides), end - start)
    first = np.clip((start + end - length) // 2, 0, sides - length)  # shifted to stay inside the image
    return Box(*first.tolist(), *(first + length).tolist())


def cut_out(
    image_u8: np.ndarray, mask: np.ndarray, box: Box, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Crop image and mask to the box, at the working size (width, height); no defect pixel is lost."""
    part = (slice(box.top, box.bottom), slice(box.left, box.right))
    return fit_image(image_u8[part], size), fit_mask(mask[part], size)


def paste_back(image_u8: np.ndarray, painted_u8: np.ndarray, box: Box) -> np.ndarray:
    """A new image with the painted box, resized from the working size, pasted over its part."""
    size = (box.right - box.left, box.bottom - box.top)
    pasted = image_u8.copy()
    pasted[box.top : box.bottom, box.left : box.right] = fit_image(painted_u8, size)
    return pasted


def composite(image_u8: np.ndarray, painted_u8: np.ndarray, mask: np.ndarray, feather: int = 0) -> np.ndarray:
    """Keep what was painted inside the mask, and restore the original everywhere else, bit for bit.

    The original fades out over `feather` pixels inwards from the mask's edge.
    """
    if image_u8.shape != painted_u8.shape or image_u8.shape[:2] != mask.shape or mask.dtype != bool:
        raise ValueError(
            f"image {image_u8.shape}, painted {painted_u8.shape}, mask {mask.shape} of {mask.dtype}: "
            "expected the same height and width, and a bool mask"
        )
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    weight = np.minimum(depth / (feather + 1), 1)[..., None]
    blended = np.rint(weight * painted_u8 + (1 - weight) * image_u8).astype(np.uint8)
    return np.where(mask[..., None], blended, image_u8)


def add_detail(
    image_u8: np.ndarray, painted_u8: np.ndarray, returned_u8: np.ndarray, share: float
) -> np.ndarray:
    """Add to a painted image a share of what the autoencoder loses of the image that was worked on.

    The loss (grain, fine edges) is the difference to `returned_u8`, the image after a round trip through the
    autoencoder. All are (height, width, 3), uint8. If nothing was painted, a share of 1 restores the image.
    """
    lost = image_u8.astype(np.float32) - returned_u8
    return np.rint(np.clip(painted_u8 + share * lost, 0, 255)).astype(np.uint8)


def cover_cells(mask: np.ndarray, factor: int) -> np.ndarray:
    """Extend a mask to all latent cells that it touches; the factor must divide the mask's sides.

    Pipelines reduce masks to the latent grid by sampling one pixel per cell, which can miss a thin crack.
    """
    height, width = mask.shape
    cells = mask.reshape(height // factor, factor, width // factor, factor).any(axis=(1, 3))
    return cells.repeat(factor, axis=0).repeat(factor, axis=1)
