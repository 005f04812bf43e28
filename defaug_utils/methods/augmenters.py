"""The ten augmenters from which MemSeg's structural anomalies draw three.

They and their ranges are those of the usual re-implementation, which takes them from the imgaug library.
Each takes an image, shape (height, width, 3), uint8, and a generator, and returns a new image.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageOps

Augmenter = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SMOOTHING = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's SMOOTH filter


def change_gamma(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Raise each channel to its own power, 0.5 to 2."""
    exponents = generator.uniform(0.5, 2.0, size=3)
    table = 255 * (np.arange(256)[:, None] / 255) ** exponents
    return cv2.LUT(image_u8, np.rint(table).astype(np.uint8)[None])


def change_brightness(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Multiply all channels by 0.8 to 1.2, and shift them by up to 30 grey levels."""
    table = np.arange(256) * generator.uniform(0.8, 1.2) + generator.uniform(-30, 30)
    return cv2.LUT(image_u8, np.rint(table.clip(0, 255)).astype(np.uint8))


def change_sharpness(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Interpolate between the smoothed image (0) and the image (1), or extrapolate, up to 3."""
    sharpness = generator.uniform(0.0, 3.0)
    smooth = cv2.filter2D(image_u8, -1, SMOOTHING, borderType=cv2.BORDER_REPLICATE)
    return cv2.addWeighted(image_u8, sharpness, smooth, 1 - sharpness, 0)


def shift_hue_and_saturation(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shift hue (on a circle of 256 steps) and saturation, both by up to 50."""
    hue, saturation = generator.integers(-50, 50, size=2, endpoint=True)
    levels = np.arange(256)
    table = np.stack([(levels + hue) % 256, (levels + saturation).clip(0, 255), levels], axis=-1)
    hsv = cv2.LUT(cv2.cvtColor(image_u8, cv2.COLOR_RGB2HSV_FULL), table.astype(np.uint8)[None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def solarise(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Invert values above a threshold (grey level 32 to 128), in half of the cases."""
    threshold = generator.integers(32, 128, endpoint=True)
    if generator.random() >= 0.5:
        return image_u8.copy()
    return np.asarray(ImageOps.solarize(Image.fromarray(image_u8), int(threshold)))


def posterise(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Keep only the upper 1 to 8 bits of every value."""
    bits = int(generator.integers(1, 8, endpoint=True))
    return image_u8 & np.uint8(256 - 2 ** (8 - bits))


def invert(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Make the negative."""
    return cv2.bitwise_not(image_u8)


def stretch_contrast(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Clip up to 20 % of the darkest and brightest pixels of each channel, and stretch the rest."""
    cutoff = int(generator.integers(0, 20, endpoint=True))
    return np.asarray(ImageOps.autocontrast(Image.fromarray(image_u8), cutoff))


def equalise(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Make all values of a channel equally frequent."""
    return np.asarray(ImageOps.equalize(Image.fromarray(image_u8)))


def rotate(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rotate about the centre by up to 45°; areas from outside are black."""
    height, width = image_u8.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), generator.uniform(-45.0, 45.0), 1.0)
    return cv2.warpAffine(image_u8, turn, (width, height), flags=cv2.INTER_LINEAR)


AUGMENTERS: dict[str, Augmenter] = {
    "gamma": change_gamma,
    "brightness": change_brightness,
    "sharpness": change_sharpness,
    "hue and saturation": shift_hue_and_saturation,
    "solarise": solarise,
    "posterise": posterise,
    "invert": invert,
    "autocontrast": stretch_contrast,
    "equalise": equalise,
    "rotation": rotate,
}


def augment(
    image_u8: np.ndarray, generator: np.random.Generator, count: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Apply `count` of the ten augmenters, drawn without replacement; return the image and their names."""
    names = tuple(str(name) for name in generator.choice(list(AUGMENTERS), count, replace=False))
    for name in names:
        image_u8 = AUGMENTERS[name](image_u8, generator)
    return image_u8, names
