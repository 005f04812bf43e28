"""Reading images and masks of any common format, fitting them to a size, finding the foreground."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

FITS = ("resize", "centre_crop")
MAX_PIXELS = 2**26  # of a written image; Pillow suspects a decompression bomb at a third more
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF")
# What Pillow raises on damaged files (found by corrupting and truncating files of all common formats).
DECODING_ERRORS = (OSError, SyntaxError, ValueError, LookupError, EOFError, Image.DecompressionBombError)


def read_image(path: Path | str) -> np.ndarray:
    """Read an image as RGB, shape (height, width, 3), uint8.

    16 bits are scaled to 8 (0 … 65535 to 0 … 255), palettes are resolved, alpha is dropped, grey is
    repeated over three channels, and the orientation tag is applied. Raises a ValueError if the file is
    missing, truncated, not an image, has several pages or frames, or stores floating-point values.
    """
    opened = _open(path)
    if opened.mode == "F":
        raise ValueError(f"{path}: has floating-point pixels, expected 8 or 16 bits: convert it first")
    if opened.mode.startswith("I"):
        values = np.clip(np.asarray(opened).astype(np.int64), 0, 65535)
        opened = Image.fromarray((values // 257).astype(np.uint8))
    return np.asarray(opened.convert("RGB"))


def read_mask(path: Path | str) -> np.ndarray:
    """Read a mask (height, width), bool: true where any colour channel is above 0 (alpha does not count).

    Raises a ValueError if the file is missing, truncated, not an image, has several pages or frames, or uses
    lossy compression, whatever its name.
    """
    opened = _open(path)
    if lossy := _find_loss(opened, path):
        raise ValueError(
            f"{path}: is a {lossy} file, whose compression noise would count as defect: export the mask as "
            "PNG from the program that drew it, or set a threshold when you convert it"
        )
    if opened.mode in ("1", "L", "F") or opened.mode.startswith("I"):
        return np.asarray(opened) > 0
    if opened.info["has_16_bit_colours"]:
        # Pillow keeps only the high byte, which would lose defects drawn with values below 256.
        opened_u16 = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        return opened_u16[..., :3].any(axis=2)
    return np.asarray(opened.convert("RGB")).any(axis=2)


def is_grey(image_u8: np.ndarray) -> bool:
    """Whether the three channels of an image (height, width, 3) are exactly equal."""
    return bool((image_u8 == image_u8[..., :1]).all())


def make_grey(image: np.ndarray) -> np.ndarray:
    """An image (height, width, 3) with the mean of its channels in all three; its dtype stays."""
    grey = image.mean(axis=2, keepdims=True)
    grey = np.rint(grey) if image.dtype == np.uint8 else grey
    return grey.astype(image.dtype).repeat(3, axis=2)


def _open(path: Path | str) -> Image.Image:
    """Decode a file completely, resolving its palette and applying the orientation tag."""
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe would wait forever
        raise ValueError(f"{path}: is not a regular file: replace it")
    try:
        with Image.open(path) as opened:
            count = getattr(opened, "n_frames", 1)
            rawmode = str(opened.tile[0].args) if opened.tile else ""
            file_format = opened.format
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in ("P", "PA"):
                upright = upright.convert("RGBA")
    except DECODING_ERRORS as error:
        raise ValueError(f"{path}: not a readable image ({error}): replace the file") from error
    if count > 1 and file_format != "MPO":  # its further images are previews of the first
        raise ValueError(
            f"{path}: contains {count} images (pages or frames): save the one you need as a separate file"
        )
    upright.info["format"] = file_format
    upright.info["has_16_bit_colours"] = ";16" in rawmode and not upright.mode.startswith("I")
    return upright


def _find_loss(opened: Image.Image, path: Path | str) -> str:
    """Name of the format if a file uses lossy compression, otherwise empty."""
    name = opened.info["format"]
    if "jpeg" in str(opened.info.get("compression")):
        return f"JPEG-compressed {name}"
    if name == "WEBP" and b"VP8L" not in Path(path).read_bytes():
        return "lossy WEBP"
    return name if name in LOSSY_FORMATS else ""


def fit_image(image_u8: np.ndarray, size: tuple[int, int], fit: str = "resize") -> np.ndarray:
    """Fit an image (height, width, 3), uint8, to a size (width, height); see `crop_box` for the fits."""
    left, top, right, bottom = crop_box(image_u8.shape, size, fit)
    cropped = Image.fromarray(image_u8[top:bottom, left:right])
    return np.asarray(cropped.resize(size, Image.Resampling.LANCZOS))


def fit_mask(mask: np.ndarray, size: tuple[int, int], fit: str = "resize") -> np.ndarray:
    """Fit a mask (height, width), bool: a pixel is true if any source pixel that it covers is true."""
    left, top, right, bottom = crop_box(mask.shape, size, fit)
    fitted = mask[top:bottom, left:right]
    for axis, target in enumerate(size[::-1]):
        source, index = fitted.shape[axis], np.arange(target)
        first, end = index * source // target, -(-(index + 1) * source // target)
        counts = np.insert(fitted.cumsum(axis, np.int32), 0, 0, axis)
        fitted = counts.take(end, axis) > counts.take(first, axis)
    return fitted


def crop_box(shape: tuple[int, ...], size: tuple[int, int], fit: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of an image that a fit keeps.

    Args:
        shape: (height, width, …) of the image.
        size: (width, height) that this part will be resized to.
        fit: "resize" keeps everything, "centre_crop" the largest centred part with the aspect of `size`.
    """
    if fit not in FITS:
        raise ValueError(f"fit {fit!r} is not one of {', '.join(FITS)}")
    if min(size) < 1:
        raise ValueError(f"size {size} must be (width, height) of at least 1 × 1 pixel")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"size {size} must be (width, height) of at most {MAX_PIXELS:,} pixels in all")
    height, width = shape[:2]
    if fit == "resize":
        return 0, 0, width, height
    scale = min(width / size[0], height / size[1])
    kept_width, kept_height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return left, top, left + kept_width, top + kept_height


def window_boxes(shape: tuple[int, ...], size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The fewest parts with the aspect of `size`, as large as possible, that together cover an image.

    They are evenly spaced along the axis with pixels to spare. Each is (left, top, right, bottom); see
    `crop_box` for the arguments.
    """
    left, top, right, bottom = crop_box(shape, size, "centre_crop")
    kept_width, kept_height = right - left, bottom - top
    lefts, tops = _spread_starts(shape[1], kept_width), _spread_starts(shape[0], kept_height)
    return [(x, y, x + kept_width, y + kept_height) for y in tops for x in lefts]


def _spread_starts(length: int, kept: int) -> list[int]:
    """First pixels of the fewest parts of `kept` pixels that cover `length`, evenly spaced."""
    return np.linspace(0, length - kept, -(-length // kept)).round().astype(int).tolist()


def hash_pixels(pixels: np.ndarray) -> str:
    """SHA-256 of an image's or a mask's shape and values."""
    return hashlib.sha256(f"{pixels.shape}\n".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


FOREGROUNDS = ("whole", "auto", "bright", "dark")


def find_foreground(image_u8: np.ndarray, foreground: str = "whole") -> np.ndarray:
    """Separate the object from its background by Otsu's grey-level threshold.

    Args:
        image_u8: shape (height, width, 3), uint8.
        foreground: what the object is: "whole" for everything (surfaces, textures), "bright" or "dark" for
            the brighter or darker part, "auto" for the part with fewer pixels on the image's border.

    Returns:
        Shape (height, width), bool, true on the object; false everywhere if all pixels are equal.
    """
    if foreground not in FOREGROUNDS:
        raise ValueError(f"foreground {foreground!r} is not one of {', '.join(FOREGROUNDS)}")
    if foreground == "whole":
        return np.ones(image_u8.shape[:2], bool)
    grey = cv2.cvtColor(image_u8, cv2.COLOR_RGB2GRAY)
    if grey.min() == grey.max():
        return np.zeros(grey.shape, bool)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    is_bright = grey > threshold
    if foreground == "auto":
        border = np.concatenate([is_bright[0], is_bright[-1], is_bright[:, 0], is_bright[:, -1]])
        foreground = "dark" if 2 * np.count_nonzero(border) > border.size else "bright"
    return is_bright if foreground == "bright" else ~is_bright
