"""Jitter by hand: turned by right angles, brightened, and with more contrast, each image in its own way."""

import numpy as np
import pytest
import torch

from defaug_utils.evaluation.jitter import draw_jitter, jitter_images


def draw_images(height: int, width: int, count: int = 2) -> torch.Tensor:
    values = np.random.default_rng(0).integers(20, 200, (count, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values)


def make_jitter(*columns: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(columns).T


def change_most(found: torch.Tensor, wanted: torch.Tensor) -> int:
    return int((found.int() - wanted.int()).abs().max())


def test_no_change_keeps_every_byte():
    images_u8 = draw_images(12, 20)
    assert torch.equal(jitter_images(images_u8, make_jitter((0, 1, 1), (0, 1, 1))), images_u8)


def test_right_angles_are_turned_by_hand_each_image_on_its_own():
    images_u8 = draw_images(16, 16)
    found = jitter_images(images_u8, make_jitter((90, 1, 1), (0, 1, 1)))
    turned = [torch.rot90(images_u8[0], steps, dims=(0, 1)) for steps in (1, 3)]
    assert min(change_most(found[0], one) for one in turned) <= 1
    assert torch.equal(found[1], images_u8[1])
    wide = draw_images(8, 24)
    upside_down = jitter_images(wide, make_jitter((180, 1, 1), (180, 1, 1)))
    assert change_most(upside_down, wide.flip((1, 2))) <= 1


def test_a_turn_keeps_shapes_of_wide_images():
    """A centred disc stays a disc: a turn in the grid's own units would stretch it."""
    rows, columns = np.mgrid[:32, :96]
    disc = ((rows - 15.5) ** 2 + (columns - 47.5) ** 2 < 10**2)[..., None] * np.full(3, 200)
    images_u8 = torch.from_numpy(disc.astype(np.uint8))[None]
    found = jitter_images(images_u8, make_jitter((10, 1, 1)))
    assert ((found > 100) != (images_u8 > 100)).float().mean() < 0.01


def test_brightness_and_contrast_by_hand():
    images_u8 = torch.full((3, 4, 4, 3), 100, dtype=torch.uint8)
    images_u8[1:, :2], images_u8[1:, 2:] = 50, 150
    found = jitter_images(images_u8, make_jitter((0, 1.2, 1.1), (0, 1, 1.2), (0, 0.8, 0.8)))
    assert (found[0] == 120).all()
    assert found[1].unique().tolist() == [40, 160]
    assert found[2].unique().tolist() == [40, 120]
    assert (
        jitter_images(torch.full((1, 4, 4, 3), 250, dtype=torch.uint8), make_jitter((5, 1.2, 1))).min() == 255
    )


def test_draws_stay_in_their_range_and_follow_the_generator():
    first, second = (draw_jitter(500, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert first.shape == (3, 500) and not torch.equal(first, second)
    assert torch.equal(first, draw_jitter(500, torch.Generator().manual_seed(0)))
    for values, middle, reach in zip(first, (0, 1, 1), (10, 0.2, 0.2), strict=True):
        assert values.min() >= middle - reach and values.max() <= middle + reach
        assert (values.max() - values.min()).item() == pytest.approx(2 * reach, rel=0.05)
    assert torch.corrcoef(first).fill_diagonal_(0).abs().max() < 0.2
