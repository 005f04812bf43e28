"""MemSeg: each step by hand-solved cases, the whole by its properties, the pool by its bytes."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from skimage.data import coffee

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import ManifestError, make_manifest, write_manifest
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.methods.augmenters import AUGMENTERS, augment
from defaug_utils.methods.memseg import (
    MemSeg,
    MemSegSettings,
    blend_anomaly,
    draw_mask,
    shuffle_grid,
    simulate_anomaly,
)
from defaug_utils.methods.textures import TextureCollection, open_builtin_textures


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
    with pytest.raises(ValueError, match="expected the same height and"):
        blend_anomaly(
            random_image(4, 5), np.zeros(source_shape, np.uint8), np.zeros(mask_shape, bool), opacity
        )


def test_blending_refuses_floats_and_grey_value_masks():
    with pytest.raises(ValueError, match=r"float64|mask \(2, 2\) of uint8"):
        blend_anomaly(random_image(2, 2), random_image(2, 2).astype(float), np.ones((2, 2), bool), 0.5)
    with pytest.raises(ValueError, match=r"float64|mask \(2, 2\) of uint8"):
        blend_anomaly(random_image(2, 2), random_image(2, 2), np.full((2, 2), 255, np.uint8), 0.5)


@settings(max_examples=40)
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


@pytest.mark.parametrize("shape", [(64, 32), (63, 31), (632, 232), (3, 2)])
def test_shuffling_moves_whole_cells(shape):
    height, width = shape
    cell_height, cell_width = -(-height // 8), -(-width // 4)
    image = np.random.default_rng(7).integers(0, 256, (*shape, 3), dtype=np.uint8)
    shuffled = shuffle_grid(image, (8, 4), np.random.default_rng(0))
    assert shuffled.shape == image.shape
    padding = ((0, 8 * cell_height - height), (0, 4 * cell_width - width), (0, 0))
    padded = np.pad(image, padding, "symmetric")
    cells = {cell.tobytes() for cell in cut(padded, cell_height, cell_width)}
    whole = shuffled[: height // cell_height * cell_height, : width // cell_width * cell_width]
    assert all(cell.tobytes() in cells for cell in cut(whole, cell_height, cell_width))


def cut(image: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    return [
        image[top : top + height, left : left + width]
        for top in range(0, image.shape[0], height)
        for left in range(0, image.shape[1], width)
    ]


def test_shuffling_keeps_every_cell_once_and_reorders_them():
    image = random_image(64, 32)
    shuffled = shuffle_grid(image, (8, 4), np.random.default_rng(0))
    before, after = ([cell.tobytes() for cell in cut(pixels, 8, 8)] for pixels in (image, shuffled))
    assert sorted(after) == sorted(before)
    assert after != before


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


def photo() -> np.ndarray:
    return np.ascontiguousarray(coffee()[100:228, 200:296])


def test_contrast_operations_agree_with_pillow():
    image, pillow = photo(), Image.fromarray(photo())
    cutoff = np.random.default_rng(2).integers(0, 20, endpoint=True)
    stretched = AUGMENTERS["autocontrast"](image, np.random.default_rng(2))
    assert (stretched == np.asarray(ImageOps.autocontrast(pillow, int(cutoff)))).all()
    bits = int(np.random.default_rng(2).integers(1, 8, endpoint=True))
    posterised = AUGMENTERS["posterise"](image, np.random.default_rng(2))
    assert (posterised == np.asarray(ImageOps.posterize(pillow, bits))).all()
    inverted = AUGMENTERS["invert"](image, np.random.default_rng(2))
    assert (inverted == np.asarray(ImageOps.invert(pillow))).all()


@pytest.mark.parametrize("seed", range(4))
def test_sharpness_agrees_with_pillow(seed):
    factor = np.random.default_rng(seed).uniform(0, 3)
    ours = AUGMENTERS["sharpness"](photo(), np.random.default_rng(seed))[1:-1, 1:-1].astype(int)
    theirs = np.asarray(ImageEnhance.Sharpness(Image.fromarray(photo())).enhance(factor))[1:-1, 1:-1]
    assert np.abs(ours - theirs).max() <= 3  # each rounds the smoothed image its own way


def test_solarising_inverts_from_the_threshold_in_half_of_the_cases():
    ramp = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    results = [AUGMENTERS["solarise"](ramp, np.random.default_rng(seed))[:, 0, 0] for seed in range(200)]
    changed = [result for result in results if (result != ramp[:, 0, 0]).any()]
    assert 70 <= len(changed) <= 130
    for result in changed:
        threshold = int(np.argmax(result != ramp[:, 0, 0]))
        assert 32 <= threshold <= 128
        assert (result[threshold:] == 255 - ramp[threshold:, 0, 0]).all()


def test_hue_turns_and_grey_stays_grey():
    grey = np.full((4, 4, 3), 90, np.uint8)
    red = np.full((4, 4, 3), (200, 30, 30), np.uint8)
    shift = np.random.default_rng(1).integers(-50, 50, size=2, endpoint=True)
    turned = AUGMENTERS["hue and saturation"](red, np.random.default_rng(1))
    hue = cv2.cvtColor(turned, cv2.COLOR_RGB2HSV_FULL)[0, 0, 0]
    assert abs((int(hue) - int(shift[0]) + 128) % 256 - 128) <= 2
    value = AUGMENTERS["hue and saturation"](grey, np.random.default_rng(1))
    assert cv2.cvtColor(value, cv2.COLOR_RGB2HSV_FULL)[0, 0, 2] == 90


def test_empty_masks_are_drawn_again():
    foreground = np.zeros((64, 64), bool)
    foreground[30:34, 30:34] = True  # most noise misses it
    assert all(draw_mask(foreground, np.random.default_rng(s), MemSegSettings()).any() for s in range(60))


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
    with pytest.raises(ValueError, match="met the foreground"):
        draw_mask(np.ones((8, 8), bool), np.random.default_rng(0), MemSegSettings(threshold=2.0))


def test_all_wrong_settings_are_told_at_once():
    with pytest.raises(ValueError, match=r"(?s)texture_share 2.*grid.*foreground 'object'"):
        MemSegSettings(texture_share=2, grid=(0, 4), foreground="object")


@pytest.fixture
def data_folder(tmp_path):
    """A prepared data set: three training negatives, a training positive, and others that are no sources."""
    write_data(tmp_path, (48, 16))
    return tmp_path / "data"


def write_data(tmp_path, shape):
    rows = []
    parts = [("train", "negative")] * 3 + [("train", "positive"), ("val", "negative"), ("test", "negative")]
    for number, (split, label) in enumerate(parts):
        image = f"images/{number}.png"
        write_png(tmp_path / "data" / image, random_image(*shape, number))
        row = {"image": image, "label": label, "split": split, "origin": "real", "category": "plate"}
        rows.append(row)
    write_manifest(
        make_manifest([*rows, {**rows[0], "image": "x.png", "origin": "diag"}]),
        tmp_path / "data" / "manifest.csv",
    )


def test_a_pool_starts_from_training_negatives_only_and_keeps_their_pixels(data_folder, tmp_path, textures):
    pool = make_pool(tmp_path / "pool", MemSeg(data_folder, textures), PoolPlan(12, seed=3))
    assert set(pool["source_image"]) <= {"images/0.png", "images/1.png", "images/2.png"}
    assert (pool["origin"] == "memseg").all()
    assert (pool["category"] == "plate").all()
    for row in pool.itertuples():
        mask = read_mask(tmp_path / "pool" / row.mask)
        image, source = read_image(tmp_path / "pool" / row.image), read_image(data_folder / row.source_image)
        assert mask.any()
        assert (image[~mask] == source[~mask]).all()
        change = np.abs(image[mask].astype(int) - source[mask]).mean()
        assert row.change == pytest.approx(change, abs=1e-3)


def test_every_unusable_source_is_told_before_the_first_image(data_folder, tmp_path, textures):
    (data_folder / "images" / "0.png").write_bytes(b"torn")
    write_png(data_folder / "images" / "2.png", np.full((48, 16, 3), 9, np.uint8))
    with pytest.raises(ManifestError, match="2 problem") as caught:
        method = MemSeg(data_folder, textures, MemSegSettings(foreground="auto"))
        make_pool(tmp_path / "pool", method, PoolPlan(2))
    assert "0.png" in str(caught.value)
    assert "images/2.png: foreground 'auto' finds no object" in str(caught.value)
    assert not (tmp_path / "pool").exists()


def test_an_image_without_a_possible_mask_is_named(data_folder, textures):
    with pytest.raises(ValueError, match=r"images/[0-2]\.png: .*met the foreground"):
        MemSeg(data_folder, textures, MemSegSettings(threshold=2.0)).make([0], [0])


def test_missing_data_names_the_notebook_that_makes_it(tmp_path, textures):
    with pytest.raises(FileNotFoundError, match="run notebook 01_data_prep"):
        make_pool(tmp_path / "pool", MemSeg(tmp_path / "data", textures), PoolPlan(2))


def test_no_training_negative_is_told(data_folder, tmp_path, textures):
    row = {"image": "images/5.png", "label": "negative", "split": "test", "origin": "real"}
    write_manifest(make_manifest([row]), data_folder / "manifest.csv")
    with pytest.raises(ManifestError, match=r"none of .* is a training negative"):
        make_pool(tmp_path / "pool", MemSeg(data_folder, textures), PoolPlan(2))
