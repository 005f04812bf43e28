"""Textures drawn by formula, for when no collection of photographs is at hand.

They are foreign to metal surfaces on purpose: no scratches, cracks, pits or stains among them.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from defaug_utils.masks.shapes import draw_gradients, evaluate_noise

TEXTURE_SIDE = 256  # pixels, width and height of a drawn texture
VARIANTS = 4  # textures drawn of each kind
OCTAVES = 5  # layers of fractal noise, each of half the size and weight of the one before
GREYS = (55, 127, 200)  # about the grey levels of a texture's three colours
MAX_VIVIDNESS = 0.6  # 0 is grey, 1 any colour; chosen to come near photographs of textures

_rows, _columns = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE] / TEXTURE_SIDE


def _turned(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixels, in image sides, along two axes turned by a random angle."""
    angle = generator.uniform(0, np.pi)
    across = np.cos(angle) * _columns + np.sin(angle) * _rows
    return across, np.cos(angle) * _rows - np.sin(angle) * _columns


def _fractal_noise(generator: np.random.Generator, cells: int) -> np.ndarray:
    noise = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for octave in range(OCTAVES):
        lattice = (cells * 2**octave, cells * 2**octave)
        noise += evaluate_noise(draw_gradients(lattice, generator), noise.shape) / 2**octave
    return noise


def draw_stripes(generator: np.random.Generator) -> np.ndarray:
    """Parallel bands with soft edges."""
    across, _ = _turned(generator)
    return np.tanh(3 * np.sin(2 * np.pi * generator.uniform(6, 24) * across))


def draw_checks(generator: np.random.Generator) -> np.ndarray:
    """A chessboard."""
    across, along = _turned(generator)
    count = np.pi * generator.uniform(6, 20)
    return np.sign(np.sin(count * across) * np.sin(count * along))


def draw_weave(generator: np.random.Generator) -> np.ndarray:
    """Threads going over and under each other."""
    across, along = (axis * generator.uniform(8, 24) for axis in _turned(generator))
    is_over = (np.floor(across) + np.floor(along)) % 2 == 0
    return np.where(is_over, np.sin(np.pi * (across % 1)), 0.7 * np.sin(np.pi * (along % 1)))


def draw_dots(generator: np.random.Generator) -> np.ndarray:
    """Round dots on a lattice."""
    count = generator.uniform(6, 20)
    across, along = ((axis * count) % 1 - 0.5 for axis in _turned(generator))
    return np.hypot(across, along) < generator.uniform(0.2, 0.45)


def draw_cells(generator: np.random.Generator) -> np.ndarray:
    """Distance to the nearest of many scattered points, as pebbles or scales."""
    points = generator.random((int(generator.integers(60, 300)), 2)) * 1.2 - 0.1
    pixels = np.stack([_rows.ravel(), _columns.ravel()], axis=-1)
    return cKDTree(points).query(pixels)[0].reshape(_rows.shape)


def draw_clouds(generator: np.random.Generator) -> np.ndarray:
    """Fractal noise."""
    return _fractal_noise(generator, int(generator.integers(2, 8)))


def draw_marble(generator: np.random.Generator) -> np.ndarray:
    """Bands bent by fractal noise."""
    across, _ = _turned(generator)
    bands = 2 * np.pi * generator.uniform(3, 8) * across
    return np.sin(bands + 4 * _fractal_noise(generator, 4))


def draw_grain(generator: np.random.Generator) -> np.ndarray:
    """White noise, smeared more one way than the other."""
    noise = generator.standard_normal(_rows.shape)
    return gaussian_filter(noise, generator.uniform(0.5, 4, size=2), mode="wrap")


TEXTURE_KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "stripes": draw_stripes,
    "checks": draw_checks,
    "weave": draw_weave,
    "dots": draw_dots,
    "cells": draw_cells,
    "clouds": draw_clouds,
    "marble": draw_marble,
    "grain": draw_grain,
}


def draw_procedural_texture(kind: str, variant: int) -> np.ndarray:
    """Draw a texture in three colours of its own; the same kind and variant always give the same.

    Args:
        kind: a word of `TEXTURE_KINDS`.
        variant: number of the texture among those of its kind, from 0.

    Returns:
        Shape (256, 256, 3), uint8.
    """
    generator = np.random.default_rng([list(TEXTURE_KINDS).index(kind), variant])
    pattern = np.asarray(TEXTURE_KINDS[kind](generator), float)
    low, high = np.percentile(pattern, (1, 99))
    greys = generator.permutation(GREYS)[:, None] + generator.uniform(-30, 30, (3, 1))
    vividness = generator.uniform(0, MAX_VIVIDNESS)
    colours = greys + vividness * (generator.uniform(0, 255, (3, 3)) - greys)
    channels = [np.interp(pattern, np.linspace(low, high, 3), colours[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
