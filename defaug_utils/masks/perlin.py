"""Perlin noise of any height and width, and the masks cut out of it.

Noise on a regular lattice is linear in its gradients, so a whole image of it is a product of three small
matrices: no Python loop over pixels, and no demand that the sides be divisible by the lattice.
"""

import math
from functools import lru_cache

import cv2
import numpy as np

LATTICE_EXPONENTS = (0, 5)  # lattice of 2^i × 2^j cells, i and j from 0 … 5 (MemSeg, section 3.1)
ROTATION_DEGREES = 90.0  # the noise is turned by U(-90°, 90°) (MemSeg's usual re-implementation)
NOISE_THRESHOLD = 0.5  # the mask is where the noise is above it (MemSeg's usual re-implementation)
NOISE_SCALE = math.sqrt(2)  # brings the values into [-1, 1] (the usual re-implementation, after DRAEM)


def draw_lattice(
    generator: np.random.Generator, exponents: tuple[int, int] = LATTICE_EXPONENTS
) -> tuple[int, int]:
    """Draw the number of lattice cells, (columns, rows), each 2 to a power of the given range."""
    columns, rows = 2 ** generator.integers(exponents[0], exponents[1], size=2, endpoint=True)
    return int(columns), int(rows)


def draw_gradients(lattice: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Draw one unit vector, (x, y), in a uniform direction for every corner of the lattice.

    Args:
        lattice: (columns, rows) of cells.
        generator: source of randomness.

    Returns:
        Shape (rows + 1, columns + 1, 2), float32.
    """
    columns, rows = lattice
    angles = generator.uniform(0.0, 2 * math.pi, (rows + 1, columns + 1))
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def evaluate_noise(gradients: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Perlin noise (Perlin 1985) of given gradients at every pixel of an image.

    Pixel x of a row stands at x · columns / width in lattice units, whether or not that is whole.

    Args:
        gradients: shape (rows + 1, columns + 1, 2), a vector (x, y) for every corner.
        size: (width, height) in pixels.

    Returns:
        Shape (height, width), float32, about in [-1, 1].

    Raises:
        ValueError: the size is not positive or the gradients have another shape.
    """
    if gradients.ndim != 3 or gradients.shape[2] != 2 or min(gradients.shape[:2]) < 2 or min(size) < 1:
        raise ValueError(
            f"gradients of shape {gradients.shape} and size {size}: expected (rows + 1, columns + 1, 2) "
            "and (width, height) of at least 1 × 1"
        )
    width, height = size
    fade_rows, ramp_rows = _corner_weights(height, gradients.shape[0] - 1)
    fade_columns, ramp_columns = _corner_weights(width, gradients.shape[1] - 1)
    # noise = fade_y · g_x · ramp_xᵀ + ramp_y · g_y · fade_xᵀ, both products at once
    from_rows = np.hstack([fade_rows @ gradients[..., 0], ramp_rows @ gradients[..., 1]])
    noise = from_rows @ np.hstack([ramp_columns, fade_columns]).T
    noise *= np.float32(NOISE_SCALE)
    return noise


@lru_cache(maxsize=64)
def _corner_weights(length: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """How much each lattice corner counts for each pixel of a side, without and with its distance.

    Args:
        length: pixels along the side.
        cells: lattice cells along the side.

    Returns:
        Two matrices of shape (length, cells + 1), float32: the fade weights, and the same times the
        pixel's signed distance from the corner.
    """
    position = np.arange(length) * (cells / length)
    cell = np.minimum(position.astype(int), cells - 1)
    offset = position - cell
    fade = 6 * offset**5 - 15 * offset**4 + 10 * offset**3
    pixels = np.arange(length)
    weights, ramps = np.zeros((2, length, cells + 1), np.float32)
    weights[pixels, cell], weights[pixels, cell + 1] = 1 - fade, fade
    ramps[pixels, cell], ramps[pixels, cell + 1] = (1 - fade) * offset, fade * (offset - 1)
    weights.flags.writeable = ramps.flags.writeable = False
    return weights, ramps


def draw_perlin_noise(
    size: tuple[int, int],
    generator: np.random.Generator,
    exponents: tuple[int, int] = LATTICE_EXPONENTS,
) -> np.ndarray:
    """Draw a lattice and its gradients, and evaluate the noise.

    Args:
        size: (width, height) in pixels, any.
        generator: source of randomness.
        exponents: smallest and largest exponent of the lattice's sides.

    Returns:
        Shape (height, width), float32, about in [-1, 1].
    """
    return evaluate_noise(draw_gradients(draw_lattice(generator, exponents), generator), size)


def rotate_noise(noise: np.ndarray, angle: float) -> np.ndarray:
    """Turn noise about the image's centre; what comes in from outside is 0, which is never a defect.

    Args:
        noise: shape (height, width), float32.
        angle: degrees, counter-clockwise.

    Returns:
        Same shape and type, interpolated linearly.
    """
    height, width = noise.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return cv2.warpAffine(noise, turn, (width, height), flags=cv2.INTER_LINEAR)


def threshold_noise(noise: np.ndarray, threshold: float = NOISE_THRESHOLD) -> np.ndarray:
    """The mask: shape (height, width), bool, true where the noise is above the threshold."""
    return noise > threshold
