"""Defects of the procedural world: shapes with exact masks, painted over a clean surface."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from world_materials import draw_fractal, draw_noise

MASK_LEVEL = 0.25  # coverage from which a pixel counts as defect


class Defect(NamedTuple):
    """A shape to be painted.

    Attributes:
        coverage: shape (height, width), float32 in [0, 1]: share of the pixel that the defect covers.
        shade: "dark", "light" or "any": how it may differ from the surface.
        opacity: weight of the defect's colour under full coverage.
        look: words that describe it, for the caption.
    """

    coverage: np.ndarray
    shade: str
    opacity: float
    look: str


def _draw_path(canvas: np.ndarray, points: np.ndarray, thickness: float) -> None:
    """Draw an anti-aliased line through (x, y) points; thinner than a pixel means fainter."""
    fixed = np.round(points * 16).astype(np.int32)
    width = max(1, round(thickness))
    cv2.polylines(canvas, [fixed], False, 255, width, cv2.LINE_AA, shift=4)


def _walk(rng, start: np.ndarray, angle: float, length: float, jitter: float, step: float) -> np.ndarray:
    """Points of a random walk that roughly keeps its direction; `jitter` is radians per step."""
    turns = angle + np.cumsum(rng.normal(0, jitter, max(2, int(length / step))))
    steps = np.stack([np.cos(turns), np.sin(turns)], 1) * step
    return np.vstack([start, start + np.cumsum(steps, 0)])


def _draw_blob(rng, shape, radius: float, roughness: float, squeeze: float) -> np.ndarray:
    """Coverage of a closed, irregular outline around a random centre."""
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    wobble = sum(rng.normal(0, roughness / k) * np.sin(k * turns + rng.uniform(0, 6)) for k in range(2, 7))
    around = (
        np.stack([np.cos(turns), np.sin(turns) * squeeze], 1)
        * (radius * np.clip(1 + wobble, 0.35, 2))[:, None]
    )
    spin = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(spin), -np.sin(spin)], [np.sin(spin), np.cos(spin)]])
    outline = around @ rotation.T + _pick_center(rng, shape)
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) / 255


def _pick_center(rng, shape) -> np.ndarray:
    """A random (x, y) at least a twelfth of the side from the border."""
    return np.array([shape[1], shape[0]]) * rng.uniform(1 / 12, 11 / 12, 2)


def _scratch(rng, shape):
    canvas, angle = np.zeros(shape, np.uint8), rng.uniform(0, 2 * np.pi)
    center, count = _pick_center(rng, shape), int(rng.choice([1, 1, 1, 2, 3]))
    length = rng.uniform(25, 130)
    for _ in range(count):
        start = center + rng.normal(0, 8, 2) - length / 2 * np.array([np.cos(angle), np.sin(angle)])
        heading = angle + rng.normal(0, 0.12)
        _draw_path(canvas, _walk(rng, start, heading, length, 0.03, 6), rng.uniform(1.5, 4))
    look = ("long " if length > 80 else "short ") + ("straight" if count == 1 else "parallel")
    return Defect(canvas / np.float32(255), "any", rng.uniform(0.7, 1), look)


def _crack(rng, shape):
    canvas, thickness = np.zeros(shape, np.uint8), rng.uniform(1.5, 4.5)
    length, angle = rng.uniform(40, 150), rng.uniform(0, 2 * np.pi)
    start = _pick_center(rng, shape) - length / 2 * np.array([np.cos(angle), np.sin(angle)])
    path = _walk(rng, start, angle, length, 0.35, 5)
    _draw_path(canvas, path, thickness)
    branches = int(rng.integers(0, 4))
    for _ in range(branches):
        turn = angle + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        branch = _walk(rng, path[rng.integers(2, len(path))], turn, length * rng.uniform(0.2, 0.5), 0.35, 5)
        _draw_path(canvas, branch, thickness * 0.7)
    return Defect(
        canvas / np.float32(255), "dark", rng.uniform(0.75, 1), "branching" if branches else "jagged"
    )


def _pit(rng, shape):
    canvas, center = np.zeros(shape, np.uint8), _pick_center(rng, shape)
    count = int(rng.integers(3, 14))
    for x, y in center + rng.normal(0, 14, (count, 2)):
        cv2.circle(
            canvas, (round(x * 16), round(y * 16)), round(rng.uniform(1.2, 3.6) * 16), 255, -1, cv2.LINE_AA, 4
        )
    return Defect(canvas / np.float32(255), "dark", rng.uniform(0.7, 1), "scattered" if count > 7 else "few")


def _spot(rng, shape):
    coverage = _draw_blob(rng, shape, rng.uniform(4, 16), 0.06, rng.uniform(0.75, 1))
    return Defect(
        cv2.GaussianBlur(coverage, (0, 0), rng.uniform(0.4, 1.5)), "any", rng.uniform(0.6, 1), "round"
    )


def _stain(rng, shape):
    coverage = cv2.GaussianBlur(
        _draw_blob(rng, shape, rng.uniform(15, 42), 0.3, rng.uniform(0.4, 1)), (0, 0), 3
    )
    mottled = coverage * (1 + 0.25 * draw_fractal(rng, shape, 12, 2))
    return Defect(mottled.clip(0, 1), "dark", rng.uniform(0.3, 0.65), "blurred")


def _white_mark(rng, shape):
    angle, canvas = rng.uniform(0, 2 * np.pi), np.zeros(shape, np.uint8)
    start = _pick_center(rng, shape)
    for _ in range(int(rng.integers(1, 4))):
        path = _walk(
            rng, start + rng.normal(0, 9, 2), angle + rng.normal(0, 0.4), rng.uniform(15, 60), 0.15, 5
        )
        _draw_path(canvas, path, rng.uniform(3, 11))
    chalk = (0.75 + 0.45 * draw_noise(rng, shape, (3, 3))).clip(0, 1)
    return Defect(canvas / np.float32(255) * chalk, "white", rng.uniform(0.75, 1), "smeared")


def _hole(rng, shape):
    coverage = _draw_blob(rng, shape, rng.uniform(5, 15), 0.1, rng.uniform(0.6, 1))
    return Defect(coverage, "black", rng.uniform(0.85, 1), "deep")


def _fibre(rng, shape):
    canvas = np.zeros(shape, np.uint8)
    path = _walk(rng, _pick_center(rng, shape), rng.uniform(0, 2 * np.pi), rng.uniform(40, 120), 0.3, 4)
    smooth = np.stack([np.convolve(side, np.ones(5) / 5, "valid") for side in path.T], 1)
    _draw_path(canvas, smooth, rng.uniform(1.5, 3))
    return Defect(canvas / np.float32(255), "colored", rng.uniform(0.8, 1), "curled")


def _scuff(rng, shape):
    area = _draw_blob(rng, shape, rng.uniform(14, 36), 0.2, rng.uniform(0.3, 0.6))
    angle = rng.uniform(0, np.pi)
    streaks = np.zeros(shape, np.uint8)
    for start in np.array([shape[1], shape[0]]) * rng.uniform(0, 1, (120, 2)):
        _draw_path(streaks, np.stack([start, start + 70 * np.array([np.cos(angle), np.sin(angle)])]), 1)
    dense = np.maximum(streaks / np.float32(255), 0.35)
    return Defect(area * dense, "light", rng.uniform(0.6, 0.95), "rough")


def _dent(rng, shape):
    coverage = cv2.GaussianBlur(
        _draw_blob(rng, shape, rng.uniform(10, 26), 0.06, rng.uniform(0.6, 1)), (0, 0), 2.5
    )
    return Defect(coverage, "relief", rng.uniform(0.5, 1), "pressed")


DEFECTS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Defect]] = {
    "scratch": _scratch,
    "crack": _crack,
    "pit": _pit,
    "spot": _spot,
    "stain": _stain,
    "white mark": _white_mark,
    "hole": _hole,
    "fibre": _fibre,
    "scuff": _scuff,
    "dent": _dent,
}


def _choose_color(rng, surface: np.ndarray, shade: str) -> tuple[np.ndarray, str]:
    """A colour that differs visibly from the mean `surface` colour, and its word."""
    level = float(surface.mean())
    if shade in ("white", "black"):
        return np.full(3, rng.uniform(0.88, 1.0) if shade == "white" else rng.uniform(0.0, 0.08)), shade
    if shade == "colored":
        color = rng.uniform(0.05, 0.95, 3)
        return (
            (color, "colored") if np.abs(color - surface).max() > 0.35 else (1 - surface.round(), "colored")
        )
    is_light = shade == "light" or (shade == "any" and rng.random() < 0.5)
    is_light = False if level > 0.72 else True if level < 0.2 else is_light
    change = rng.uniform(0.25, 0.55)
    goal = level + (1 - level) * max(change, 0.4) if is_light else level * (1 - max(change, 0.4))
    return (surface * 0.4 * goal / max(level, 0.05) + 0.6 * goal).clip(0, 1), "light" if is_light else "dark"


def paint_defect(
    rng: np.random.Generator, picture: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Paint a defect of the named type at a random place.

    Args:
        rng: source of every random choice.
        image: the clean surface, shape (height, width, 3), float32 in [0, 1].
        name: a key of `DEFECTS`.

    Returns:
        The image with the defect, its mask of shape (height, width), bool, its shade and words for its look.
        Pixels outside the mask keep the surface's values.
    """
    defect = DEFECTS[name](rng, picture.shape[:2])
    mask = defect.coverage > MASK_LEVEL
    if mask.sum() < 12:
        return paint_defect(rng, picture, name)
    weight = np.where(mask, defect.coverage * defect.opacity, 0)[..., None].astype(np.float32)
    if defect.shade == "relief":
        slope = cv2.Sobel(defect.coverage, cv2.CV_32F, 1, 0, ksize=5) + cv2.Sobel(
            defect.coverage, cv2.CV_32F, 0, 1, ksize=5
        )
        lit = slope / (np.abs(slope).max() + 1e-6) * 0.4 * rng.choice([-1, 1]) * mask - 0.06 * mask
        return (picture + lit[..., None] * max(defect.opacity, 0.6)).clip(0, 1), mask, "pressed", defect.look
    color, shade = _choose_color(rng, picture[mask].mean(0), defect.shade)
    grain = 1 + 0.06 * draw_noise(rng, picture.shape[:2], (2, 2))[..., None]
    painted = picture * (1 - weight) + color.astype(np.float32) * grain * weight
    return np.where(mask[..., None], painted.clip(0, 1), picture), mask, shade, defect.look
