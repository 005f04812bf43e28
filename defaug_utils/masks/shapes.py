"""Procedural defect shapes: scratches, cracks and blobs within an expert's limits, and Perlin noise.

Noise on a regular lattice is linear in its gradients, so a whole image is a product of small matrices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from defaug_utils.core.guards import check_demands

SHIFT = 4  # fractional bits of OpenCV's coordinates
MAX_DRAWS = 50  # after this many empty shapes, we give up
RANGES = {  # of the priors' pairs: smallest, largest, and the requirement
    "length": (1e-6, math.inf, "rise, above 0"),
    "width": (1, math.inf, "rise from 1 pixel or more"),
    "orientation": (-180, 180, "rise within −180 … 180 degrees"),
    "roundness": (1e-6, 1, "rise within 0 … 1, 0 excluded"),
}

PLACES = {  # of a shape's centre: smallest and largest x and y, as shares of width and height
    "left": ((0, 0), (1 / 3, 1)),
    "right": ((2 / 3, 0), (1, 1)),
    "top": ((0, 0), (1, 1 / 3)),
    "bottom": ((0, 2 / 3), (1, 1)),
    "middle": ((1 / 3, 1 / 3), (2 / 3, 2 / 3)),
}

LATTICE_EXPONENTS = (0, 5)  # lattice of 2^i × 2^j cells, i and j from 0 … 5 (MemSeg, section 3.1)
ROTATION_DEGREES = 90.0  # the noise is rotated by U(-90°, 90°) (MemSeg's usual re-implementation)
NOISE_THRESHOLD = 0.5  # the mask is where the noise is above it (MemSeg's usual re-implementation)
NOISE_SCALE = math.sqrt(2)  # scales the values to [-1, 1] (the usual re-implementation, after DRAEM)


@dataclass(frozen=True)
class ShapePriors:
    """An expert's expectations, as pairs (smallest, largest); the defaults suit unknown surfaces."""

    #: relative frequency of each kind in `SHAPES`
    weights: dict[str, float] = field(default_factory=lambda: {"scratch": 1.0, "crack": 1.0, "blob": 1.0})
    length: tuple[float, float] = (0.15, 0.8)  #: as shares of the image's shorter side
    width: tuple[float, float] = (2.0, 6.0)  #: of scratches and cracks, pixels
    orientation: tuple[float, float] = (-90.0, 90.0)  #: of the long axis, degrees from the horizontal
    roundness: tuple[float, float] = (0.3, 1.0)  #: ratio of a blob's short to its long axis

    def __post_init__(self) -> None:
        names, counts = ", ".join(SHAPES), self.weights.values()
        are_usable = self.weights.keys() <= SHAPES.keys() and min(counts, default=0) >= 0 and sum(counts) > 0
        message = f"weights {self.weights} must name some of {names}, none negative and not all 0"
        demands = {message: are_usable}
        for name, (low, high, demand) in RANGES.items():
            smallest, largest = getattr(self, name)
            demands[f"{name} {(smallest, largest)} must {demand}"] = low <= smallest <= largest <= high
        check_demands("shape priors", demands)


def draw_shape(
    kind: str, size: tuple[int, int], priors: ShapePriors, generator: np.random.Generator, place: str = ""
) -> np.ndarray:
    """Draw one of `SHAPES` with its centre in the image: (height, width), bool, neither empty nor full.

    `place` is a word of `PLACES` for the centre; empty for the whole image.
    """
    low, high = np.array(PLACES[place] if place else ((0, 0), (1, 1)), float)
    for _ in range(MAX_DRAWS):
        canvas = np.zeros((size[1], size[0]), np.uint8)
        centre = (low + (high - low) * generator.uniform(0, 1, 2)) * size
        length = generator.uniform(*priors.length) * min(size)
        angle = np.deg2rad(generator.uniform(*priors.orientation))
        axis = np.array([np.cos(angle), -np.sin(angle)])  # rows are counted downwards
        SHAPES[kind](canvas, centre, length * axis, priors, generator)
        if canvas.any() and not canvas.all():
            return canvas.astype(bool)
    raise ValueError(
        f"{MAX_DRAWS} shapes ({kind}) on {size[0]} × {size[1]} pixels are all empty or "
        f"cover everything: change the lengths {priors.length}"
    )


def _draw_scratch(canvas, centre, span, priors, generator) -> None:
    """A thin, slightly bent arc that is thinner towards its ends."""
    along = np.linspace(-0.5, 0.5, 32)
    across = np.array([-span[1], span[0]]) * generator.normal(0, 0.08)
    points = centre + along[:, None] * span + (0.25 - along**2)[:, None] * 4 * across
    widths = generator.uniform(*priors.width) * (0.5 + 2 * (0.25 - along**2))
    _draw_line(canvas, points, widths)


def _draw_crack(canvas, centre, span, priors, generator) -> None:
    """A jagged line that wanders off its axis, with up to three branches."""
    width = generator.uniform(*priors.width)
    points = _wander(centre - span / 2, span, 14, generator)
    _draw_line(canvas, points, np.full(len(points), width))
    for start in generator.choice(np.arange(3, 12), int(generator.integers(0, 4)), replace=False):
        turn = np.deg2rad(generator.uniform(25, 60) * generator.choice((-1, 1)))
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ span
        branch = _wander(points[start], turned * generator.uniform(0.15, 0.4), 6, generator)
        _draw_line(canvas, branch, np.full(len(branch), max(1.0, 0.7 * width)))


def _draw_blob(canvas, centre, span, priors, generator) -> None:
    """An ellipse with a wavy outline."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    orders = np.arange(2, 7)
    waves = generator.normal(0, 0.12, orders.size) / np.sqrt(orders - 1)
    phases = generator.uniform(0, 2 * np.pi, orders.size)
    radius = np.clip(1 + (waves * np.cos(angles[:, None] * orders + phases)).sum(axis=1), 0.3, 1.7) / 2
    across = np.array([-span[1], span[0]]) * generator.uniform(*priors.roundness)
    rim = centre + radius[:, None] * (np.cos(angles)[:, None] * span + np.sin(angles)[:, None] * across)
    cv2.fillPoly(canvas, [np.rint(rim * 2**SHIFT).astype(np.int32)], 1, shift=SHIFT)


def _wander(start: np.ndarray, span: np.ndarray, steps: int, generator: np.random.Generator) -> np.ndarray:
    """Points along a span, each displaced randomly to the side, shape (steps + 1, 2)."""
    aside = np.array([-span[1], span[0]]) * 0.06
    pushes = np.concatenate([[0], np.cumsum(generator.normal(0, 1, steps))])
    return start + np.linspace(0, 1, steps + 1)[:, None] * span + pushes[:, None] * aside


def _draw_line(canvas: np.ndarray, points: np.ndarray, widths: np.ndarray) -> None:
    """A line of varying width through points (x, y)."""
    fixed = np.rint(points * 2**SHIFT).astype(int)
    for start, end, width in zip(fixed, fixed[1:], widths, strict=False):
        cv2.line(canvas, start.tolist(), end.tolist(), 1, max(1, round(width)), cv2.LINE_8, SHIFT)


# canvas, centre, span from end to end (both x, y), priors and random generator
Draw = Callable[[np.ndarray, np.ndarray, np.ndarray, ShapePriors, np.random.Generator], None]
SHAPES: dict[str, Draw] = {"scratch": _draw_scratch, "crack": _draw_crack, "blob": _draw_blob}


def draw_lattice(
    generator: np.random.Generator, exponents: tuple[int, int] = LATTICE_EXPONENTS
) -> tuple[int, int]:
    """Draw the number of lattice cells (columns, rows), powers of 2 within the given range."""
    columns, rows = 2 ** generator.integers(exponents[0], exponents[1], size=2, endpoint=True)
    return int(columns), int(rows)


def draw_gradients(lattice: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Random unit vectors (x, y) for a lattice's corners: (rows + 1, columns + 1, 2), float32."""
    columns, rows = lattice
    angles = generator.uniform(0.0, 2 * math.pi, (rows + 1, columns + 1))
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def evaluate_noise(gradients: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Perlin noise (Perlin 1985) with given gradients, at every pixel of an image.

    Pixel x of a row is at x · columns / width in lattice units, which need not be an integer. Values are
    float32, roughly in [-1, 1].
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
    """Fade weights of corners for a side's pixels, and the same times distance, each (length, cells + 1)."""
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
    size: tuple[int, int], generator: np.random.Generator, exponents: tuple[int, int] = LATTICE_EXPONENTS
) -> np.ndarray:
    """Draw a lattice and its gradients, and evaluate the noise at a size (width, height)."""
    return evaluate_noise(draw_gradients(draw_lattice(generator, exponents), generator), size)


def rotate_noise(noise: np.ndarray, angle: float) -> np.ndarray:
    """Rotate noise (degrees) about its centre; areas from outside are 0, which is never a defect."""
    height, width = noise.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return cv2.warpAffine(noise, turn, (width, height), flags=cv2.INTER_LINEAR)


def threshold_noise(noise: np.ndarray, threshold: float = NOISE_THRESHOLD) -> np.ndarray:
    """The mask: shape (height, width), bool, true where the noise is above the threshold."""
    return noise > threshold
