"""Materials of the procedural world that the embedded model is trained on.

Walls, wood, leather, cloth, tiles, stone, rubber, coated panels, copper and brass, circuit boards,
paper, felt: everyday surfaces, but deliberately no grey brushed, rolled or ground metal, as in the workshop
data set.
"""

from collections.abc import Callable

import cv2
import numpy as np

MONOCHROME_SHARE = 0.35  # share of surfaces without colour, as from line-scan cameras
COLORS = {
    "white": (0.88, 0.88, 0.86),
    "grey": (0.55, 0.55, 0.55),
    "black": (0.13, 0.13, 0.14),
    "beige": (0.80, 0.72, 0.58),
    "brown": (0.46, 0.31, 0.20),
    "red": (0.66, 0.20, 0.17),
    "orange": (0.82, 0.48, 0.20),
    "yellow": (0.84, 0.74, 0.30),
    "green": (0.24, 0.47, 0.29),
    "blue": (0.22, 0.36, 0.60),
    "copper": (0.74, 0.46, 0.33),
    "brass": (0.74, 0.61, 0.33),
}


def draw_noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float]) -> np.ndarray:
    """Smooth noise with unit variance at its lattice; `cells` is a lattice cell's (height, width), pixels."""
    lattice = tuple(max(2, round(side / cell) + 1) for side, cell in zip(shape, cells, strict=True))
    coarse = rng.standard_normal(lattice, dtype=np.float32)
    if lattice[0] > shape[0] and lattice[1] > shape[1]:
        return coarse[: shape[0], : shape[1]]
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def draw_fractal(
    rng: np.random.Generator, shape: tuple[int, int], largest: float, octaves: int, stretch: float = 1.0
) -> np.ndarray:
    """Noise summed over octaves, about unit variance; `stretch` elongates its cells vertically."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        cell = largest / 2**octave
        total += draw_noise(rng, shape, (cell * stretch, cell)) * 0.6**octave
    return total / np.float32(total.std() + 1e-6)


def draw_cells(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Distance to the nearest of random seeds, in units of `cell` pixels: bumps separated by valleys."""
    seeds = np.full(shape, 255, np.uint8)
    count = int(shape[0] * shape[1] / cell**2)
    seeds[rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)] = 0
    return cv2.distanceTransform(seeds, cv2.DIST_L2, 3) / np.float32(cell)


def _ramp(shape: tuple[int, int], angle: float) -> np.ndarray:
    """Pixel coordinate along a direction, in pixels."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (np.cos(angle) * columns + np.sin(angle) * rows).astype(np.float32)


def _colorize(relief: np.ndarray, color: np.ndarray, contrast: float) -> np.ndarray:
    """Turn a relief of about unit variance into an image around one colour."""
    return color * (1 + contrast * relief)[..., None]


def _concrete(rng, shape, color):
    relief = draw_fractal(rng, shape, rng.uniform(30, 120), 6)
    pores = cv2.GaussianBlur(
        (rng.random(shape, dtype=np.float32) < rng.uniform(0, 0.006)) * np.float32(8), (0, 0), 1
    )
    return _colorize(relief + 0.4 * draw_noise(rng, shape, (1, 1)) - pores, color, rng.uniform(0.03, 0.09))


def _plaster(rng, shape, color):
    height = draw_fractal(rng, shape, rng.uniform(6, 24), 3)
    relief = cv2.Sobel(height, cv2.CV_32F, 1, 0) + cv2.Sobel(height, cv2.CV_32F, 0, 1)
    return _colorize(relief / (relief.std() + 1e-6), color, rng.uniform(0.02, 0.07))


def _wood(rng, shape, color):
    bend = draw_fractal(rng, shape, rng.uniform(24, 60), 2, stretch=6) * rng.uniform(3, 10)
    rings = np.sin((_ramp(shape, rng.normal(0, 0.05)) + bend) * np.float32(2 * np.pi / rng.uniform(8, 30)))
    return _colorize(0.7 * rings + 0.6 * draw_noise(rng, shape, (24, 1)), color, rng.uniform(0.05, 0.14))


def _leather(rng, shape, color):
    bumps = 0.4 - draw_cells(rng, shape, rng.uniform(5, 12))
    relief = cv2.GaussianBlur(bumps, (0, 0), 0.8) * 2.5 + 0.5 * draw_fractal(rng, shape, 60, 3)
    return _colorize(relief, color, rng.uniform(0.06, 0.16))


def _fabric(rng, shape, color):
    turn, pitch = rng.choice([0.0, 0.0, np.pi / 4]), rng.uniform(4, 9)
    warp = np.sin(_ramp(shape, turn) * np.float32(2 * np.pi / pitch) + 0.3 * draw_noise(rng, shape, (20, 20)))
    weft = np.sin(_ramp(shape, turn + np.pi / 2) * np.float32(2 * np.pi / pitch))
    weave = warp * weft if rng.random() < 0.5 else np.maximum(warp, weft)
    return _colorize(weave + 0.5 * draw_noise(rng, shape, (2, 2)), color, rng.uniform(0.05, 0.15))


def _tile(rng, shape, color):
    pitch, shift = rng.uniform(40, 110), rng.uniform(0, 100, 2)
    joints = np.zeros(shape, np.float32)
    for angle, offset in zip((0, np.pi / 2), shift, strict=True):
        joints = np.maximum(
            joints, np.abs((_ramp(shape, angle) + offset) % pitch - pitch / 2) > pitch / 2 - 1.6
        )
    relief = 0.5 * draw_fractal(rng, shape, 50, 3) + rng.choice([-6, 5]) * cv2.GaussianBlur(
        joints, (0, 0), 0.7
    )
    return _colorize(relief, color, rng.uniform(0.03, 0.07))


def _marble(rng, shape, color):
    veins = np.exp(-np.abs(draw_fractal(rng, shape, rng.uniform(50, 110), 4)) * rng.uniform(4, 9))
    return _colorize(draw_fractal(rng, shape, 60, 4) - 3 * veins, color, rng.uniform(0.04, 0.09))


def _granite(rng, shape, color):
    relief = (
        np.round(draw_noise(rng, shape, (rng.uniform(2, 4),) * 2) * 1.2)
        + draw_noise(rng, shape, (1.5, 1.5)) * 0.5
    )
    return _colorize(relief, color, rng.uniform(0.06, 0.16))


def _rubber(rng, shape, color):
    dots = np.sin(_ramp(shape, 0.6) * np.float32(rng.uniform(0.5, 1.4))) * rng.choice([0.0, 1.0])
    return _colorize(0.6 * draw_noise(rng, shape, (2, 2)) + dots, color * 0.5, rng.uniform(0.05, 0.15))


def _panel(rng, shape, color):
    return _colorize(draw_fractal(rng, shape, rng.uniform(4, 14), 2), color, rng.uniform(0.005, 0.03))


def _sheet(rng, shape, color):
    glow = np.sin(
        _ramp(shape, rng.uniform(0, np.pi)) * np.float32(2 * np.pi / rng.uniform(90, 400)) + rng.uniform(0, 6)
    )
    patina = draw_fractal(rng, shape, rng.uniform(20, 80), 4)
    return _colorize(2 * glow + patina + 0.4 * draw_noise(rng, shape, (1, 1)), color, rng.uniform(0.03, 0.08))


def _board(rng, shape, color):
    relief = 0.3 * draw_noise(rng, shape, (2, 2))
    pitch, step = int(rng.integers(9, 18)), int(rng.integers(20, 60))
    for column in range(int(rng.integers(3, 9)), shape[1], pitch):
        bend = column + int(rng.integers(-1, 2)) * pitch // 2
        middle = int(rng.integers(step, shape[0] - step))
        path = np.array(
            [(column, 0), (column, middle), (bend, middle + step // 2), (bend, shape[0])], np.int32
        )
        cv2.polylines(relief, [path], False, 2.0, int(rng.integers(1, 4)), cv2.LINE_AA)
        cv2.circle(relief, (column, middle), 4, 4.0, -1, cv2.LINE_AA)
    return _colorize(relief, color, rng.uniform(0.1, 0.2))


def _paper(rng, shape, color):
    fibres = draw_noise(rng, shape, (1.5, 5)) + draw_noise(rng, shape, (5, 1.5))
    return _colorize(fibres + draw_fractal(rng, shape, 30, 3), color, rng.uniform(0.008, 0.035))


def _felt(rng, shape, color):
    fuzz = sum(cv2.GaussianBlur(draw_noise(rng, shape, (1, 1)), (0, 0), *s) for s in ((2.5, 0.6), (0.6, 2.5)))
    return _colorize(
        fuzz / (fuzz.std() + 1e-6) + 0.5 * draw_fractal(rng, shape, 30, 3), color, rng.uniform(0.05, 0.12)
    )


def _cork(rng, shape, color):
    grains = draw_cells(rng, shape, rng.uniform(6, 14)) * draw_noise(rng, shape, (5, 5))
    return _colorize(grains + 0.6 * draw_noise(rng, shape, (3, 3)), color, rng.uniform(0.08, 0.16))


def _plastic(rng, shape, color):
    pitch = np.float32(2 * np.pi / rng.uniform(5, 14))
    knobs = (
        np.sin(_ramp(shape, 0.0) * pitch) * np.sin(_ramp(shape, np.pi / 2) * pitch) * rng.choice([0.0, 1.0])
    )
    return _colorize(knobs + 0.3 * draw_noise(rng, shape, (1.5, 1.5)), color, rng.uniform(0.02, 0.07))


ALWAYS_COLORED = ("wood", "copper metal", "brass metal")  # without colour they would look like brushed steel
STONES = ("white", "grey", "beige", "brown", "black", "green")
PAINTS = ("white", "grey", "beige", "red", "orange", "yellow", "green", "blue", "brown", "black")
Painter = Callable[[np.random.Generator, tuple[int, int], np.ndarray], np.ndarray]
MATERIALS: dict[str, tuple[Painter, tuple[str, ...]]] = {
    "concrete wall": (_concrete, ("grey", "grey", "white", "beige")),
    "plaster wall": (_plaster, ("white", "grey", "beige", "yellow", "blue", "green")),
    "wood": (_wood, ("brown", "beige", "orange", "yellow")),
    "leather": (_leather, ("brown", "black", "red", "beige", "grey")),
    "fabric": (_fabric, PAINTS),
    "tile": (_tile, PAINTS),
    "marble": (_marble, STONES),
    "granite": (_granite, STONES),
    "rubber": (_rubber, ("black", "grey", "red", "blue", "brown")),
    "painted panel": (_panel, PAINTS),
    "copper metal": (_sheet, ("copper",)),
    "brass metal": (_sheet, ("brass",)),
    "circuit board": (_board, ("green", "green", "blue", "red", "black")),
    "paper": (_paper, ("white", "beige", "yellow", "grey")),
    "felt": (_felt, PAINTS),
    "cork": (_cork, ("brown", "beige", "orange")),
    "plastic": (_plastic, PAINTS),
}


def draw_material(rng: np.random.Generator, shape: tuple[int, int], material: str) -> tuple[np.ndarray, str]:
    """Draw a clean surface of one material.

    Args:
        rng: source of every random choice.
        shape: (height, width) in pixels.
        material: a key of `MATERIALS`.

    Returns:
        The image, shape (height, width, 3), float32 in [0, 1], and the name of its colour.
    """
    painter, names = MATERIALS[material]
    name = str(rng.choice(names))
    color = (np.array(COLORS[name]) * rng.uniform(0.75, 1.15) + rng.normal(0, 0.025, 3)).clip(0.04, 0.95)
    is_monochrome = rng.random() < MONOCHROME_SHARE
    if is_monochrome and material not in ALWAYS_COLORED:
        color = np.full(3, color.mean())
        name = name if name in ("white", "black") else "grey"
    picture = painter(rng, shape, color.astype(np.float32))
    slope = _ramp(shape, rng.uniform(0, 2 * np.pi)) * np.float32(rng.exponential(0.12) / max(shape))
    light = 1 + (slope - slope.mean()).clip(-0.6, 0.6)
    return (picture * light[..., None] + rng.normal(0, 0.01)).clip(0, 1).astype(np.float32), name
