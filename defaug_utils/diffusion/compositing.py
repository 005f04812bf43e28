"""Cutting a working picture out around a mask, and putting what was painted back under the mask only."""

from typing import NamedTuple

import cv2
import numpy as np

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
    """
    sides = np.array(mask.shape[::-1])
    if padding is None:
        return Box(0, 0, *sides.tolist())
    corner, extent = np.reshape(cv2.boundingRect(mask.astype(np.uint8)), (2, 2))
    margin = -(-padding * sides // np.array(size))
    start, end = np.maximum(corner - margin, 0), np.minimum(corner + extent + margin, sides)
    share = ((end - start) / sides).max()  # of the image, alike in either direction
    length = np.maximum(np.minimum(np.ceil(share * sides).astype(int), sides), end - start)
    first = np.clip((start + end - length) // 2, 0, sides - length)  # moved where it would leave the image
    return Box(*first.tolist(), *(first + length).tolist())


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
    pasted[box.top : box.bottom, box.left : box.right] = fit_image(painted_u8, size)
    return pasted


def composite(image_u8: np.ndarray, painted_u8: np.ndarray, mask: np.ndarray, feather: int = 0) -> np.ndarray:
    """Keep what was painted inside the mask, and the original's own pixels, bit for bit, everywhere else.

    Over so many pixels of `feather`, inwards from the mask's edge, the original fades out.
    """
    if image_u8.shape != painted_u8.shape or image_u8.shape[:2] != mask.shape or mask.dtype != bool:
        raise ValueError(
            f"image {image_u8.shape}, painted {painted_u8.shape}, mask {mask.shape} of {mask.dtype}: "
            "expected one height and width, and a mask of bool"
        )
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    weight = np.minimum(depth / (feather + 1), 1)[..., None]
    blended = np.rint(weight * painted_u8 + (1 - weight) * image_u8).astype(np.uint8)
    return np.where(mask[..., None], blended, image_u8)


def add_detail(
    image_u8: np.ndarray, painted_u8: np.ndarray, returned_u8: np.ndarray, share: float
) -> np.ndarray:
    """Give a painted picture a share of what the autoencoder loses of the image that was worked on.

    The image as it `returned` from the autoencoder tells what is lost: grain and fine edges. All are
    (height, width, 3), uint8. Where nothing was painted, with the whole share, the image itself is left.
    """
    lost = image_u8.astype(np.float32) - returned_u8
    return np.rint(np.clip(painted_u8 + share * lost, 0, 255)).astype(np.uint8)


def cover_cells(mask: np.ndarray, factor: int) -> np.ndarray:
    """Grow a mask, whose sides the factor divides, to whole cells of the latent grid: all that it touches.

    Pipelines bring masks to the latent grid by taking one pixel a cell, and a thin crack slips through.
    """
    height, width = mask.shape
    cells = mask.reshape(height // factor, factor, width // factor, factor).any(axis=(1, 3))
    return cells.repeat(factor, axis=0).repeat(factor, axis=1)
