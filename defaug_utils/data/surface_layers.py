"""The components of drawn surfaces: the layers of a ground metal part, and its defects.

Lengths are in pixels of the design size, 128 × 384, and scale with the size that is drawn.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np


class Canvas(NamedTuple):
    """What a layer draws on: its random stream, (height, width), and pixels per design pixel."""

    rng: np.random.Generator
    shape: tuple[int, int]
    scale: float

    def noise(self, across: float, along: float) -> np.ndarray:
        """Noise with mean 0 and deviation 1, smooth over `across` and `along` design pixels."""
        height, width = self.shape
        lengths = (across * self.scale, width), (along * self.scale, height)
        step_x, step_y = (max(1, min(int(length / 2), side // 4)) for length, side in lengths)
        coarse = self.rng.standard_normal((height // step_y + 4, width // step_x + 4), np.float32)
        sigmas = max(across * self.scale / step_x, 0.1), max(along * self.scale / step_y, 0.1)
        coarse = cv2.GaussianBlur(coarse, (0, 0), sigmaX=sigmas[0], sigmaY=sigmas[1])
        full_size = (coarse.shape[1] * step_x, coarse.shape[0] * step_y)
        fine = cv2.resize(coarse, full_size, interpolation=cv2.INTER_CUBIC)[:height, :width]
        return (fine - fine.mean()) / (fine.std() + 1e-6)

    def place(self) -> np.ndarray:
        """A random (x, y) well inside the frame, in pixels."""
        return self.rng.uniform(0.1, 0.9, 2) * self.shape[::-1]

    def line(self, points: np.ndarray, thickness: float) -> np.ndarray:
        """Strength 0 … 1 of a line through points (number, 2) of (x, y) pixels."""
        drawn = np.zeros(self.shape, np.uint8)
        fixed_point = np.round(points * 16).astype(np.int32)
        width = max(1, round(thickness * self.scale))
        cv2.polylines(drawn, [fixed_point], False, 255, width, cv2.LINE_AA, shift=4)
        return cv2.GaussianBlur(drawn.astype(np.float32) / 255, (0, 0), 0.6 * self.scale)

    def blob(self, centre: np.ndarray, radii: tuple[float, float], ragged: float, soft: float) -> np.ndarray:
        """A randomly rotated ellipse; `ragged` and `soft` are shares of its radii (outline, border)."""
        angle, smallest = self.rng.uniform(0, np.pi), 1.5 / self.scale  # so that it covers a pixel
        radii = max(radii[0], smallest), max(radii[1], smallest)
        y, x = np.ogrid[: self.shape[0], : self.shape[1]]
        x, y = (x - centre[0]) / self.scale, (y - centre[1]) / self.scale
        first = (x * np.cos(angle) + y * np.sin(angle)) / radii[0]
        second = (y * np.cos(angle) - x * np.sin(angle)) / radii[1]
        stray = np.clip(self.noise(min(radii) / 3, min(radii) / 3), -1.5, 1.5)
        distance = np.hypot(first, second) * (1 + ragged * stray)
        return np.clip((1 - distance) / soft, 0, 1).astype(np.float32)

    def dots(self, count: float, size: float) -> np.ndarray:
        """About `count` (at the design size) round dots of the given size, with strengths of 0.3 … 1."""
        drawn = np.zeros(self.shape, np.float32)
        number = self.rng.poisson(count)
        rows, columns = (self.rng.integers(0, side, number) for side in self.shape)
        drawn[rows, columns] = self.rng.uniform(0.3, 1, number)
        sigma = size * self.scale
        return cv2.GaussianBlur(drawn, (0, 0), sigma) * (2 * np.pi * sigma**2)


# The harmless layers: each returns grey levels to add, shape (height, width).


def draw_grain(canvas: Canvas) -> np.ndarray:
    """Fine streaks along the part, on a mottled background without direction."""
    streaks = canvas.noise(0.6, canvas.rng.uniform(6, 16)) * canvas.rng.uniform(3, 4.5)
    return streaks + canvas.noise(1.1, 1.3) * canvas.rng.uniform(3, 4.5)


def draw_bands(canvas: Canvas) -> np.ndarray:
    """Bands along the part from the rolls, and faint chatter marks across it."""
    rolled = canvas.noise(canvas.rng.uniform(2, 8), 300) * canvas.rng.uniform(0, 4)
    return rolled + canvas.noise(400, canvas.rng.uniform(2, 6)) * canvas.rng.uniform(0, 2)


def draw_illumination(canvas: Canvas) -> np.ndarray:
    """Brightness of the part, uneven light and dull clouds."""
    light = canvas.noise(150, 300) * canvas.rng.uniform(2, 7)
    return canvas.rng.uniform(138, 158) + light + canvas.noise(25, 40) * canvas.rng.uniform(1, 4)


def draw_pores_and_dust(canvas: Canvas) -> np.ndarray:
    """Small dark inclusions and bright specks, everywhere and in any number."""
    pores = canvas.dots(canvas.rng.uniform(20, 100), canvas.rng.uniform(0.8, 1.5))
    specks = canvas.dots(canvas.rng.uniform(0, 12), canvas.rng.uniform(0.6, 1.1))
    return specks * canvas.rng.uniform(15, 40) - pores * canvas.rng.uniform(10, 25)


def draw_roller_lines(canvas: Canvas) -> np.ndarray:
    """Faint lines along the grain, bright or dark, from the rolls."""
    height, width = canvas.shape
    lines = np.zeros(canvas.shape, np.float32)
    for _ in range(canvas.rng.poisson(1.0)):
        left, lean = canvas.rng.uniform(0, width), canvas.rng.normal(0, 0.02) * width
        top, bottom = np.sort(canvas.rng.uniform(-0.3, 1.3, 2)) * height
        lines += canvas.line(np.array([[left, top], [left + lean, bottom]]), 1) * canvas.rng.normal(0, 10)
    return lines


def draw_lint(canvas: Canvas) -> np.ndarray:
    """Occasional fibres: smooth, evenly curved lines, bright or dark."""
    fibres = np.zeros(canvas.shape, np.float32)
    for _ in range(canvas.rng.poisson(0.25)):
        turn = canvas.rng.uniform(0, 2 * np.pi) + np.linspace(0, canvas.rng.uniform(1, 3), 24)
        steps = np.stack([np.cos(turn), np.sin(turn)], axis=1) * canvas.rng.uniform(0.5, 1.6) * canvas.scale
        strength = canvas.rng.uniform(8, 30) * canvas.rng.choice([-1, 1])
        fibres += canvas.line(canvas.place() + steps.cumsum(axis=0), 1) * strength
    return fibres


def draw_edge_chips(canvas: Canvas) -> np.ndarray:
    """Bright chips at the left or right border."""
    chips = np.zeros(canvas.shape, np.float32)
    for _ in range(canvas.rng.poisson(0.5)):
        side = canvas.rng.choice([0, canvas.shape[1] - 1])
        centre = np.array([side, canvas.rng.uniform(0, canvas.shape[0])])
        y, x = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
        depth, length = canvas.rng.uniform(1.5, 6) * canvas.scale, canvas.rng.uniform(4, 30) * canvas.scale
        distance = np.hypot((x - centre[0]) / depth, (y - centre[1]) / length) + 0.2 * canvas.noise(2, 3)
        chips = np.maximum(chips, np.clip((1 - distance) / 0.3, 0, 1).astype(np.float32))
    return chips * canvas.rng.uniform(30, 90)


HARMLESS_LAYERS = (
    *(draw_grain, draw_bands, draw_illumination, draw_pores_and_dust),
    *(draw_roller_lines, draw_lint, draw_edge_chips),
)


# The defects: each returns its strength, 0 … 1, shape (height, width); `size` grows with severity.


def draw_scratch(canvas: Canvas, size: float) -> np.ndarray:
    """One to three thin, nearly straight, parallel lines across the grain, fading in and out."""
    angle = canvas.rng.choice([-1, 1]) * canvas.rng.uniform(0.25, 1.3)  # radians from the grain
    direction, normal = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    strength, middle = np.zeros(canvas.shape, np.float32), canvas.place()
    bow = canvas.rng.normal(0, 0.2)
    for _ in range(canvas.rng.integers(1, 4)):
        along = np.linspace(-0.5, 0.5, 12) * canvas.rng.uniform(40, 120) * size * canvas.scale
        points = middle + along[:, None] * direction + (bow * along**2 / np.ptp(along))[:, None] * normal
        strength = np.maximum(strength, canvas.line(points, canvas.rng.uniform(0.6, 2.2)))
        middle = middle + canvas.rng.normal(0, 10) * canvas.scale * normal
    return strength * (1 + 0.2 * canvas.noise(8, 8))


def draw_crack(canvas: Canvas, size: float) -> np.ndarray:
    """A thin, jagged line that wanders over the part, with up to three branches."""
    strength, root = np.zeros(canvas.shape, np.float32), canvas.place()
    heading, trunk = canvas.rng.uniform(0, 2 * np.pi), root[None]
    for branch in range(canvas.rng.integers(1, 5)):
        count = max(4, round(canvas.rng.uniform(12, 30) * size * (0.4 if branch else 1)))
        turns = heading + canvas.rng.normal(0, 0.2, count).cumsum() + canvas.rng.normal(0, 0.5, count)
        steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * canvas.rng.uniform(2, 5, (count, 1))
        points = trunk[canvas.rng.integers(len(trunk))] + steps.cumsum(axis=0) * canvas.scale
        strength = np.maximum(strength, canvas.line(points, canvas.rng.uniform(0.6, 1.8)))
        trunk = trunk if branch else points
        heading = heading + canvas.rng.choice([-1, 1]) * 0.8
    return strength * (1 + 0.2 * canvas.noise(6, 6))


def draw_pit(canvas: Canvas, size: float) -> np.ndarray:
    """A loose group of one to eight deep spots."""
    first, strength = canvas.place(), np.zeros(canvas.shape, np.float32)
    centre = first
    for _ in range(canvas.rng.integers(1, 9)):
        radii = tuple(canvas.rng.uniform(2.2, 5.5, 2) * size)
        strength = np.maximum(strength, canvas.blob(centre, radii, 0.15, 0.5))
        centre = canvas.rng.normal(first, 12 * canvas.scale)
    return strength


def draw_stain(canvas: Canvas, size: float) -> np.ndarray:
    """A wide dull patch with a soft outline."""
    return canvas.blob(canvas.place(), tuple(canvas.rng.uniform(14, 40, 2) * size), 0.25, 0.6)


def draw_white_mark(canvas: Canvas, size: float) -> np.ndarray:
    """A smear with a ragged outline."""
    return canvas.blob(canvas.place(), tuple(canvas.rng.uniform(5, 20, 2) * size), 0.35, 0.5)


class DefectLook(NamedTuple):
    """How a defect looks."""

    draw: Callable[[Canvas, float], np.ndarray]  #: draws its strength on a canvas, for a size (about 1)
    #: change of brightness at severity 0 and 1, in deviations of the surrounding texture
    contrast: tuple[float, float]
    is_bright: bool
    colour: tuple[float, float, float] = (1, 1, 1)  #: share of the change in red, green and blue


LOOKS = {
    "scratch": DefectLook(draw_scratch, (3.6, 16), is_bright=True),
    "crack": DefectLook(draw_crack, (3.6, 16), is_bright=False),
    "pit": DefectLook(draw_pit, (3.3, 14), is_bright=False),
    "stain": DefectLook(draw_stain, (1.5, 9), is_bright=False, colour=(0.85, 1, 1.2)),
    "white_mark": DefectLook(draw_white_mark, (2, 13), is_bright=True),
}
