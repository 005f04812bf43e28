"""Perlin noise against a slow, written-out computation, at any size."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from defaug_utils.masks.shapes import (
    draw_gradients,
    draw_lattice,
    draw_perlin_noise,
    evaluate_noise,
    rotate_noise,
    threshold_noise,
)


def slow_noise(gradients: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Perlin's definition, pixel by pixel: faded mean of the corners' gradients times the distances."""
    rows, columns = gradients.shape[0] - 1, gradients.shape[1] - 1
    width, height = size
    noise = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v, u = y * rows / height, x * columns / width
            row, column = min(int(v), rows - 1), min(int(u), columns - 1)
            for next_row in (0, 1):
                for next_column in (0, 1):
                    dy, dx = v - row - next_row, u - column - next_column
                    weight = fade(1 - abs(dy)) * fade(1 - abs(dx))
                    gradient_x, gradient_y = gradients[row + next_row, column + next_column]
                    noise[y, x] += weight * (gradient_x * dx + gradient_y * dy)
    return math.sqrt(2) * noise


def fade(t: float) -> float:
    return 6 * t**5 - 15 * t**4 + 10 * t**3


@pytest.mark.parametrize("lattice", [(1, 1), (2, 8), (32, 4), (3, 5)])
@pytest.mark.parametrize("size", [(64, 64), (23, 63), (37, 10)])
def test_agrees_with_the_definition(lattice, size):
    gradients = draw_gradients(lattice, np.random.default_rng(1))
    assert evaluate_noise(gradients, size) == pytest.approx(slow_noise(gradients, size), abs=2e-5)


def test_gradients_are_unit_vectors_one_a_corner():
    gradients = draw_gradients((4, 2), np.random.default_rng(0))
    assert gradients.shape == (3, 5, 2)
    assert np.linalg.norm(gradients, axis=-1) == pytest.approx(np.ones((3, 5)), abs=1e-6)


def test_noise_is_zero_on_the_lattice():
    noise = evaluate_noise(draw_gradients((4, 2), np.random.default_rng(0)), (64, 64))
    assert np.abs(noise[::32, ::16]).max() == 0


def test_height_and_width_are_not_swapped():
    gradients = np.zeros((2, 9, 2), np.float32)
    gradients[..., 0] = 1  # eight cells along x, one along y: the noise changes along x only
    noise = evaluate_noise(gradients, (128, 384))
    assert noise.shape == (384, 128)
    assert np.ptp(noise, axis=0).max() < 1e-5 < np.ptp(noise, axis=1).min()


@settings(max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_any_size_works_and_stays_in_range(width, height, seed):
    noise = draw_perlin_noise((width, height), np.random.default_rng(seed))
    assert noise.shape == (height, width)
    assert np.abs(noise).max() <= 1.0 + 1e-5


def test_lattice_sides_are_powers_of_two_up_to_32():
    generator = np.random.default_rng(0)
    sides = {side for _ in range(400) for side in draw_lattice(generator)}
    assert sides == {1, 2, 4, 8, 16, 32}


def test_rotation_turns_counter_clockwise_and_fills_with_no_defect():
    noise = np.zeros((5, 5), np.float32)
    noise[2, 4] = 1  # right of the centre
    turned = rotate_noise(noise, 90)
    assert turned[0, 2] == pytest.approx(1, abs=1e-4)  # above it
    assert not threshold_noise(rotate_noise(np.ones((9, 41), np.float32), 90))[:, 0].any()


def usual_noise(side: int, generator: np.random.Generator) -> np.ndarray:
    """The usual re-implementation: a full-size array for each of the four corners, float64."""
    rows, columns = 2 ** generator.integers(0, 6, 2)
    grid = np.stack(np.mgrid[0 : rows : rows / side, 0 : columns : columns / side], axis=-1) % 1
    angles = 2 * np.pi * generator.random((rows + 1, columns + 1))
    gradients = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    t = 6 * grid**5 - 15 * grid**4 + 10 * grid**3
    noise = np.zeros((side, side))
    for down in (0, 1):
        for right in (0, 1):
            corners = gradients[down : down + rows, right : right + columns]
            corners = corners.repeat(side // rows, axis=0).repeat(side // columns, axis=1)
            weight = np.abs(1 - down - t[..., 0]) * np.abs(1 - right - t[..., 1])
            noise += weight * ((grid - [down, right]) * corners).sum(axis=-1)
    return math.sqrt(2) * noise


def test_masks_cover_as_much_as_the_usual_recipes():
    ours, usual = np.random.default_rng(0), np.random.default_rng(1)
    coverages = [
        [
            threshold_noise(rotate_noise(noise.astype(np.float32), generator.uniform(-90, 90))).mean()
            for noise in noises
        ]
        for generator, noises in (
            (ours, (draw_perlin_noise((64, 64), ours) for _ in range(250))),
            (usual, (usual_noise(64, usual) for _ in range(250))),
        )
    ]
    assert ks_2samp(*coverages).pvalue > 0.01
    assert np.mean(coverages[0]) == pytest.approx(np.mean(coverages[1]), rel=0.25)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_refuses_a_size_of_nothing(size):
    with pytest.raises(ValueError, match="at least 1 × 1"):
        evaluate_noise(draw_gradients((1, 1), np.random.default_rng(0)), size)
