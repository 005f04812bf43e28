"""Reading images and masks of any PNG flavour, and fitting them to a size without losing thin defects."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

FITS = ("resize", "centre_crop")


def read_image(path: Path | str) -> np.ndarray:
    """Read an image as RGB.

    16-bit grey is scaled to 8 bits, a palette is resolved, an alpha channel is dropped and grey is
    repeated over three channels.

    Args:
        path: an image file that Pillow reads.

    Returns:
        Shape (height, width, 3), uint8.

    Raises:
        ValueError: the file is missing, truncated or no image; the message names it.
    """
    return np.asarray(_open(path).convert("RGB"))


def read_mask(path: Path | str) -> np.ndarray:
    """Read a mask: true where any colour channel is above 0 (an alpha channel does not count).

    Args:
        path: an image file that Pillow reads.

    Returns:
        Shape (height, width), bool.

    Raises:
        ValueError: as `read_image`.
    """
    opened = _open(path, scale=False)
    if opened.mode not in ("1", "L", "I", "F"):
        opened = opened.convert("RGB")
    values = np.asarray(opened)
    return values.any(axis=2) if values.ndim == 3 else values > 0


def _open(path: Path | str, scale: bool = True) -> Image.Image:
    try:
        with Image.open(path) as opened:
            opened.load()
            if opened.mode.startswith("I"):
                values = np.asarray(opened).astype(np.int64)
                return Image.fromarray(_to_u8(values) if scale else (values > 0).astype(np.uint8) * 255)
            return opened.copy()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def _to_u8(values: np.ndarray) -> np.ndarray:
    """16-bit values to 8 bits: 0 … 65535 onto 0 … 255."""
    return (np.clip(values, 0, 65535) // 257).astype(np.uint8)


def fit_image(image_u8: np.ndarray, size: tuple[int, int], fit: str = "resize") -> np.ndarray:
    """Bring an image to a size, by stretching it or by cutting the centre out at the right aspect first.

    Args:
        image_u8: shape (height, width, 3), uint8.
        size: (width, height) in pixels.
        fit: "resize" or "centre_crop".

    Returns:
        Shape (size[1], size[0], 3), uint8.
    """
    box = _crop_box(image_u8.shape[:2], size, fit)
    left, top, right, bottom = box
    cropped = Image.fromarray(image_u8[top:bottom, left:right])
    return np.asarray(cropped.resize(size, Image.Resampling.LANCZOS))


def fit_mask(mask: np.ndarray, size: tuple[int, int], fit: str = "resize") -> np.ndarray:
    """Bring a mask to a size: a pixel is positive when any source pixel that it covers is.

    Args:
        mask: shape (height, width), bool.
        size: (width, height) in pixels.
        fit: "resize" or "centre_crop".

    Returns:
        Shape (size[1], size[0]), bool.
    """
    left, top, right, bottom = _crop_box(mask.shape, size, fit)
    counts = mask[top:bottom, left:right].astype(np.int64).cumsum(0).cumsum(1)
    counts = np.pad(counts, ((1, 0), (1, 0)))
    width, height = size
    first_row, last_row = _covered(bottom - top, height)
    first_column, last_column = _covered(right - left, width)
    inside = counts[last_row][:, last_column] - counts[first_row][:, last_column]
    inside -= counts[last_row][:, first_column] - counts[first_row][:, first_column]
    return inside > 0


def _covered(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last source pixel that each of `target` pixels covers."""
    index = np.arange(target)
    return index * source // target, -(-(index + 1) * source // target)


def _crop_box(shape: tuple[int, ...], size: tuple[int, int], fit: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of an image that is kept."""
    if fit not in FITS:
        raise ValueError(f"fit {fit!r} is none of {', '.join(FITS)}")
    if min(size) < 1:
        raise ValueError(f"size {size} must be (width, height) of at least 1 × 1 pixel")
    height, width = shape[:2]
    if fit == "resize":
        return 0, 0, width, height
    scale = min(width / size[0], height / size[1])
    kept_width, kept_height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return left, top, left + kept_width, top + kept_height
