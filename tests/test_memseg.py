"""MemSeg: each step by hand-solved cases, the whole by its properties, the pool by its bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defaug_utils.augmenters import AUGMENTERS, augment
from defaug_utils.files import write_png
from defaug_utils.images import read_image, read_mask
from defaug_utils.manifest import make_manifest, write_manifest
from defaug_utils.memseg import (
    MemSegSettings,
    blend_anomaly,
    draw_mask,
    shuffle_grid,
    simulate_anomaly,
)
from defaug_utils.memseg_pool import make_memseg_pool
from defaug_utils.textures import TextureCollection, open_builtin_textures


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def textures():
    return open_builtin_textures()


def test_blending_by_hand():
    image = np.full((1, 3, 3), 100, np.uint8)
    source = np.full((1, 3, 3), 200, np.uint8)
    mask = np.array([[False, True, True]])
    assert blend_anomaly(image, source, mask, 0.25)[0, :, 0].tolist() == [100, 125, 125]
    assert (blend_anomaly(image, source, mask, 1.0)[0, 1:] == 200).all()


def test_an_empty_mask_or_no_opacity_leaves_the_image_as_it_is():
    image, source = random_image(9, 7), random_image(9, 7, 1)
    nowhere = np.zeros((9, 7), bool)
    assert (blend_anomaly(image, source, nowhere, 0.7) == image).all()
    assert (blend_anomaly(image, source, ~nowhere, 0.0) == image).all()


@pytest.mark.parametrize(
    ("source_shape", "mask_shape", "opacity"),
    [((4, 5, 3), (5, 4), 0.5), ((5, 4, 3), (4, 5), 0.5), ((4, 5, 3), (4, 5), 1.5), ((4, 5, 3), (4, 5), -0.1)],
)
def test_blending_refuses_what_does_not_fit(source_shape, mask_shape, opacity):
    with pytest.raises(ValueError, match="expected one height and width"):
        blend_anomaly(
            random_image(4, 5), np.zeros(source_shape, np.uint8), np.zeros(mask_shape, bool), opacity
        )


def test_blending_refuses_floats_and_grey_value_masks():
    with pytest.raises(ValueError, match="expected uint8, uint8, bool"):
        blend_anomaly(random_image(2, 2), random_image(2, 2).astype(float), np.ones((2, 2), bool), 0.5)
    with pytest.raises(ValueError, match="expected uint8, uint8, bool"):
        blend_anomaly(random_image(2, 2), random_image(2, 2), np.full((2, 2), 255, np.uint8), 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 70), st.integers(8, 70), st.integers(0, 2**63 - 1))
def test_outside_the_mask_every_pixel_is_the_surfaces_own(height, width, seed):
    image = random_image(height, width)
    anomaly = simulate_anomaly(image, open_few_textures(), np.random.default_rng(seed))
    assert anomaly.mask.any()
    assert (anomaly.image_u8[~anomaly.mask] == image[~anomaly.mask]).all()
    assert 0.15 <= anomaly.opacity <= 1


def open_few_textures() -> TextureCollection:
    return TextureCollection(["flat"], lambda name: np.full((4, 4, 3), 128, np.uint8), "flat")


def test_the_same_seed_gives_the_same_anomaly_and_another_another(textures):
    image = random_image(64, 40)
    first, again, other = (simulate_anomaly(image, textures, np.random.default_rng(s)) for s in (5, 5, 6))
    assert (first.image_u8 == again.image_u8).all()
    assert (first.mask != other.mask).any()


def test_half_of_the_sources_are_textures(textures):
    image, generator = random_image(32, 32), np.random.default_rng(0)
    kinds = [simulate_anomaly(image, textures, generator).source.kind for _ in range(400)]
    assert 160 <= kinds.count("texture") <= 240
    always = MemSegSettings(texture_share=1.0)
    assert {simulate_anomaly(image, textures, generator, always).source.kind for _ in range(20)} == {
        "texture"
    }


@pytest.mark.parametrize("shape", [(64, 32), (63, 31), (632, 232)])
def test_shuffling_moves_whole_cells(shape):
    height, width = shape
    rows, columns = 8, 4
    numbered = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3) % 251
    shuffled = shuffle_grid(numbered.astype(np.uint8), (rows, columns), np.random.default_rng(0))
    assert shuffled.shape == numbered.shape
    if height % rows == 0 and width % columns == 0:
        assert sorted(shuffled.ravel()) == sorted(numbered.ravel())
    assert (shuffled != numbered).any()


def test_shuffling_one_cell_changes_nothing():
    image = random_image(10, 6)
    assert (shuffle_grid(image, (1, 1), np.random.default_rng(0)) == image).all()


def test_three_different_augmenters_are_drawn():
    image, generator = random_image(16, 16), np.random.default_rng(0)
    draws = [augment(image, generator, 3)[1] for _ in range(200)]
    assert all(len(set(names)) == 3 for names in draws)
    assert {name for names in draws for name in names} == set(AUGMENTERS)


@pytest.mark.parametrize("name", AUGMENTERS)
def test_augmenters_keep_shape_and_type_and_their_input(name):
    image = random_image(33, 17)
    before = image.copy()
    changed = AUGMENTERS[name](image, np.random.default_rng(3))
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert (image == before).all()


def test_masks_lie_in_the_foreground():
    foreground = np.zeros((40, 60), bool)
    foreground[10:30, 20:50] = True
    for seed in range(20):
        mask = draw_mask(foreground, np.random.default_rng(seed), MemSegSettings())
        assert mask.any()
        assert not (mask & ~foreground).any()


def test_an_empty_or_unreachable_foreground_ends_with_a_message():
    with pytest.raises(ValueError, match="found no object"):
        draw_mask(np.zeros((8, 8), bool), np.random.default_rng(0), MemSegSettings())
    with pytest.raises(ValueError, match="none met the foreground"):
        draw_mask(np.ones((8, 8), bool), np.random.default_rng(0), MemSegSettings(threshold=2.0))


def test_all_wrong_settings_are_told_at_once():
    with pytest.raises(ValueError, match="texture_share 2.*grid.*foreground 'object'"):
        MemSegSettings(texture_share=2, grid=(0, 4), foreground="object")


@pytest.fixture
def data_folder(tmp_path):
    """A prepared data set: three training negatives, a training positive, and others that are no sources."""
    rows = []
    parts = [("train", "negative")] * 3 + [("train", "positive"), ("val", "negative"), ("test", "negative")]
    for number, (split, label) in enumerate(parts):
        image = f"images/{number}.png"
        write_png(tmp_path / "data" / image, random_image(48, 16, number))
        rows.append({"image": image, "label": label, "split": split, "origin": "real"})
    write_manifest(make_manifest(rows), tmp_path / "data" / "manifest.csv")
    return tmp_path / "data"


def test_a_pool_starts_from_training_negatives_only_and_keeps_their_pixels(data_folder, tmp_path, textures):
    pool = make_memseg_pool(tmp_path / "pool", data_folder, 12, textures, pool_seed=3)
    assert set(pool["source_image"]) <= {"images/0.png", "images/1.png", "images/2.png"}
    assert (pool["origin"] == "memseg").all()
    for row in pool.itertuples():
        mask = read_mask(tmp_path / "pool" / row.mask)
        image, source = read_image(tmp_path / "pool" / row.image), read_image(data_folder / row.source_image)
        assert mask.any()
        assert (image[~mask] == source[~mask]).all()


def test_shards_make_the_same_pool(data_folder, tmp_path, textures):
    whole = make_memseg_pool(tmp_path / "whole", data_folder, 7, textures, pool_seed=3)
    for shard in (2, 0, 1):
        parts = make_memseg_pool(
            tmp_path / "parts", data_folder, 7, textures, pool_seed=3, shard=shard, shard_count=3
        )
    assert parts.equals(whole)
    for image in whole["image"]:
        assert (tmp_path / "whole" / image).read_bytes() == (tmp_path / "parts" / image).read_bytes()


def test_other_settings_or_textures_are_not_mixed_into_a_pool(data_folder, tmp_path, textures):
    make_memseg_pool(tmp_path / "pool", data_folder, 2, textures, pool_seed=3)
    with pytest.raises(ValueError, match="settings, textures differ"):
        make_memseg_pool(
            tmp_path / "pool", data_folder, 3, open_few_textures(), 3, MemSegSettings(texture_share=1.0)
        )


def test_no_training_negative_is_told(data_folder, tmp_path, textures):
    row = {"image": "images/5.png", "label": "negative", "split": "test", "origin": "real"}
    write_manifest(make_manifest([row]), data_folder / "manifest.csv")
    with pytest.raises(ValueError, match="no training negative"):
        make_memseg_pool(tmp_path / "pool", data_folder, 2, textures, pool_seed=3)
