"""The ten augmenters from which MemSeg's structural anomalies draw three.

They are those of the usual re-implementation, which takes them from the imgaug library; ranges are its.
Each takes an image, shape (height, width, 3), uint8, and a generator, and returns a new image.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageOps

Augmenter = Callable[[np.ndarray, np.random.Generator], np.ndarray]

GAMMA = (0.5, 2.0)  # exponent, one a channel
BRIGHTNESS_FACTOR = (0.8, 1.2)
BRIGHTNESS_SHIFT = (-30, 30)  # grey levels of 256
SHARPNESS = (0.0, 3.0)  # 0 is smoothed, 1 the image, above 1 sharpened
HUE_AND_SATURATION_SHIFT = (-50, 50)  # of 256: hue is a circle of 256 steps
SOLARISE_PROBABILITY = 0.5
SOLARISE_THRESHOLD = (32, 128)  # grey levels from which values are inverted
POSTERISE_BITS = (1, 8)  # bits kept of a channel
AUTOCONTRAST_CUTOFF = (0, 20)  # percent of the darkest and of the brightest pixels
ROTATION = (-45.0, 45.0)  # degrees
SMOOTHING = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's SMOOTH filter


def change_gamma(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Raise each channel to its own power."""
    exponents = generator.uniform(*GAMMA, size=3)
    table = 255 * (np.arange(256)[:, None] / 255) ** exponents
    return cv2.LUT(image_u8, np.rint(table).astype(np.uint8)[None])


def change_brightness(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Multiply and shift all channels alike."""
    table = np.arange(256) * generator.uniform(*BRIGHTNESS_FACTOR) + generator.uniform(*BRIGHTNESS_SHIFT)
    return cv2.LUT(image_u8, np.rint(table.clip(0, 255)).astype(np.uint8))


def change_sharpness(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Go from the smoothed image through the image itself, or past it."""
    sharpness = generator.uniform(*SHARPNESS)
    smooth = cv2.filter2D(image_u8, -1, SMOOTHING, borderType=cv2.BORDER_REPLICATE)
    return cv2.addWeighted(image_u8, sharpness, smooth, 1 - sharpness, 0)


def shift_hue_and_saturation(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Turn the hue round its circle and shift the saturation."""
    hue, saturation = generator.integers(*HUE_AND_SATURATION_SHIFT, size=2, endpoint=True)
    levels = np.arange(256)
    table = np.stack([(levels + hue) % 256, (levels + saturation).clip(0, 255), levels], axis=-1)
    hsv = cv2.LUT(cv2.cvtColor(image_u8, cv2.COLOR_RGB2HSV_FULL), table.astype(np.uint8)[None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def solarise(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Invert the values from a threshold up, in half of the cases."""
    threshold = generator.integers(*SOLARISE_THRESHOLD, endpoint=True)
    if generator.random() >= SOLARISE_PROBABILITY:
        return image_u8.copy()
    levels = np.arange(256)
    return cv2.LUT(image_u8, np.where(levels >= threshold, 255 - levels, levels).astype(np.uint8))


def posterise(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Keep only the upper bits of every value."""
    bits = int(generator.integers(*POSTERISE_BITS, endpoint=True))
    return image_u8 & np.uint8(256 - 2 ** (8 - bits))


def invert(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Make the negative."""
    return cv2.bitwise_not(image_u8)


def stretch_contrast(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Cut off the darkest and brightest values of each channel and stretch what is left."""
    cutoff = int(generator.integers(*AUTOCONTRAST_CUTOFF, endpoint=True))
    return np.asarray(ImageOps.autocontrast(Image.fromarray(image_u8), cutoff))


def equalise(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Make all values of a channel equally frequent."""
    return np.asarray(ImageOps.equalize(Image.fromarray(image_u8)))


def rotate(image_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Turn about the centre; what comes in from outside is black."""
    height, width = image_u8.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), generator.uniform(*ROTATION), 1.0)
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
    """Apply `count` of the ten augmenters, drawn without replacement; gives the image and their names."""
    names = tuple(str(name) for name in generator.choice(list(AUGMENTERS), count, replace=False))
    for name in names:
        image_u8 = AUGMENTERS[name](image_u8, generator)
    return image_u8, names
