"""The procedural world: exact masks, visible defects, true captions, the same part from the same seed."""

import numpy as np
import pytest
from world_defects import DEFECTS, paint_defect
from world_materials import ALWAYS_COLORED, MATERIALS, draw_material, draw_noise
from worlds import caption_clean, caption_defect, draw_sample, list_phrases


def test_same_seed_same_part():
    first, again, other = draw_sample(3), draw_sample(3), draw_sample(4)
    assert np.array_equal(first.image_u8, again.image_u8)
    assert first.words == again.words
    assert not np.array_equal(first.image_u8, other.image_u8)


@pytest.mark.parametrize("size", [(128, 384), (97, 61)])
def test_sample_shapes(size):
    sample = draw_sample(0, size)
    assert sample.image_u8.shape == sample.clean_u8.shape == (size[1], size[0], 3)
    assert sample.mask.shape == (size[1], size[0])
    assert sample.mask.dtype == bool


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_stays_inside_its_mask_and_shows(name):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        clean, _ = draw_material(rng, (192, 96), "painted panel")
        image, mask, _, _ = paint_defect(rng, clean, name)
        change = np.abs(image - clean).max(2)
        assert change[~mask].max() == 0
        assert 12 <= mask.sum() < mask.size / 3
        assert change[mask].max() > 0.05


@pytest.mark.parametrize("material", MATERIALS)
def test_material_is_a_picture(material):
    picture, color = draw_material(np.random.default_rng(0), (96, 64), material)
    assert picture.shape == (96, 64, 3)
    assert picture.dtype == np.float32
    assert np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1
    assert color in MATERIALS[material][1] or color in ("grey", "black", "white")


@pytest.mark.parametrize("material", ALWAYS_COLORED)
def test_grained_and_metal_surfaces_are_never_grey(material):
    for seed in range(20):
        picture, color = draw_material(np.random.default_rng(seed), (64, 64), material)
        red, _, blue = picture.mean((0, 1))
        assert color != "grey"
        assert red - blue > 0.03


def test_noise_has_the_asked_size():
    rng = np.random.default_rng(0)
    for cells in [(0.9, 0.9), (1, 7), (300, 300)]:
        assert draw_noise(rng, (50, 31), cells).shape == (50, 31)


def test_papers_phrases_are_said_where_they_are_true():
    wall = {"material": "concrete wall", "defect": "white mark"}
    copper = {"material": "copper metal", "defect": "scratch"}
    assert "white marks on the wall" in list_phrases(wall)
    assert "copper metal scratches" in list_phrases(copper)
    assert "background scratched" in list_phrases(copper)
    assert "background cracked" in list_phrases({"material": "cork", "defect": "crack"})


def test_captions_name_only_what_is_there():
    rng = np.random.default_rng(0)
    for seed in range(30):
        words = draw_sample(seed).words
        captions = [caption_defect(rng, words) for _ in range(20)]
        others = [name for name in DEFECTS if name != words["defect"]]
        assert "" in [caption_defect(rng, words) for _ in range(200)]
        assert not any(name in caption for name in others for caption in captions)
        assert not any(name in caption_clean(rng, words) for name in DEFECTS for _ in range(20))
