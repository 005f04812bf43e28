"""Three squares of a tall image: cut, prepared, and put back where they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import draw_part, save, write_ksdd2, write_mvtec

from defaug_utils.core.images import fit_image, fit_mask, read_image, read_mask
from defaug_utils.core.manifest import read_manifest
from defaug_utils.data.crops import cut_crops, find_crop_tops, join_crops, join_score_maps, prepare_crops
from defaug_utils.data.datasets import load_dataset
from defaug_utils.data.layouts import DatasetError

SIDE = 16
SIZES = st.integers(1, 30).flatmap(lambda width: st.tuples(st.just(width), st.integers(2 * width, 3 * width)))


@pytest.fixture
def surfaces(tmp_path):
    write_ksdd2(tmp_path / "set", train=(3, 1), test=(2, 1))
    return load_dataset(tmp_path / "set")


def test_tops_of_a_typical_image():
    assert find_crop_tops((230, 630)) == (0, 230, 400)


@given(SIZES, st.integers(0, 10**6))
def test_round_trip_at_the_own_width(size, seed):
    width, height = size
    image_u8 = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crops = cut_crops(image_u8)
    assert [crop.shape for crop in crops] == [(width, width, 3)] * 3
    np.testing.assert_array_equal(join_crops(crops, size), image_u8)
    np.testing.assert_array_equal(join_crops([crop[..., 0] for crop in crops], size), image_u8[..., 0])


@given(SIZES)
def test_every_row_is_in_one_crop_or_two(size):
    rows = np.broadcast_to(np.arange(size[1])[:, None], (size[1], size[0]))
    seen = np.concatenate([crop[:, 0] for crop in cut_crops(rows)])
    counts = np.bincount(seen, minlength=size[1])
    assert set(counts) <= {1, 2}


def test_overlapping_rows_have_the_mean_of_both():
    crops = [np.full((4, 4), value) for value in (0.0, 1.0, 3.0)]
    joined = join_crops(crops, (4, 10))
    assert joined[:, 0].tolist() == [0] * 4 + [1, 1, 2, 2, 3, 3]


def test_smooth_maps_survive_another_side():
    rows, columns = np.mgrid[:120, :44].astype(float)
    smooth = np.sin(rows / 20) + columns / 44
    crops = [fit_map(crop) for crop in cut_crops(smooth)]
    np.testing.assert_allclose(join_crops(crops, (44, 120)), smooth, atol=0.05)


def fit_map(score_map: np.ndarray, side: int = 32) -> np.ndarray:
    """Sample a map bilinearly at the centres of `side` × `side` cells."""
    centres = np.clip((np.arange(side) + 0.5) * len(score_map) / side - 0.5, 0, len(score_map) - 1)
    low = np.minimum(centres.astype(int), len(score_map) - 2)
    part = centres - low
    rows = score_map[low] * (1 - part)[:, None] + score_map[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def test_prepared_crops(tmp_path, surfaces):
    counted = []
    made = prepare_crops(surfaces, tmp_path / "set", tmp_path / "crops", SIDE, counted.append)
    stored = read_manifest(tmp_path / "crops/manifest.csv", check_files=True)
    assert made.to_dict("records") == stored.to_dict("records")
    assert len(made) == 3 * len(surfaces)
    assert sum(counted) == len(surfaces)
    for row in made.itertuples():
        crop_u8 = cut_crops(read_image(tmp_path / "set" / row.original_image))[row.crop]
        np.testing.assert_array_equal(
            read_image(tmp_path / "crops" / row.image), fit_image(crop_u8, (SIDE, SIDE))
        )
    assert set(made.groupby("original_image")["split"].nunique()) == {1}


def test_masks_and_labels_are_those_of_the_crop(tmp_path, surfaces):
    mask = np.zeros((63, 23), bool)
    mask[42, 7] = True  # row 42 is in the second crop (23 … 45) and the third (40 … 62)
    save(tmp_path / "set/test/20002_GT.png", mask)
    dataset = load_dataset(tmp_path / "set")
    made = prepare_crops(dataset, tmp_path / "set", tmp_path / "crops", SIDE)
    crops = made[made["original_image"] == "test/20002.png"]
    assert crops["label"].tolist() == ["negative", "positive", "positive"]
    for row, crop_mask in zip(crops.itertuples(), cut_crops(mask), strict=True):
        expected = fit_mask(crop_mask, (SIDE, SIDE))
        assert row.defect_pixels == expected.sum()
        if row.mask:
            np.testing.assert_array_equal(read_mask(tmp_path / "crops" / row.mask), expected)
    assert (made.groupby("original_image")["label"].max() == "positive").sum() == 2


def test_score_maps_come_back_in_any_order(tmp_path, surfaces):
    made = prepare_crops(surfaces, tmp_path / "set", tmp_path / "crops", 23)
    maps = [read_image(tmp_path / "crops" / image)[..., 1] for image in made["image"]]
    order = np.random.default_rng(0).permutation(len(made))
    joined = join_score_maps(made.iloc[order], [maps[index] for index in order])
    assert set(joined) == set(surfaces["image"])
    for image, score_map in joined.items():
        np.testing.assert_array_equal(score_map, read_image(tmp_path / "set" / image)[..., 1])


def test_missing_and_doubled_crops_are_listed(tmp_path, surfaces):
    made = prepare_crops(surfaces, tmp_path / "set", tmp_path / "crops", SIDE)
    broken = made.iloc[[1, 2, 3, 4, 5, 6, 6, 8]]
    with pytest.raises(
        ValueError, match=r"2 problem.*\n.*10000.png: .*\[1, 2\].*\n.*10002.png: .*\[0, 0, 2\]"
    ):
        join_score_maps(broken, [np.zeros((SIDE, SIDE))] * 8)
    with pytest.raises(ValueError, match="2 score maps for 3 crops"):
        join_score_maps(made.iloc[:3], [np.zeros((SIDE, SIDE))] * 2)


def test_every_image_of_another_shape_is_listed(tmp_path):
    write_mvtec(tmp_path / "grid")
    save(tmp_path / "grid/train/good/square.png", draw_part(0, (20, 20))[0])
    save(tmp_path / "grid/train/good/tall.png", draw_part(0, (10, 31))[0])
    with pytest.raises(DatasetError, match="2 problem") as caught:
        prepare_crops(load_dataset(tmp_path / "grid"), tmp_path / "grid", tmp_path / "crops")
    assert "square.png: an image of 20 × 20 pixels" in str(caught.value)
    assert (
        "tall.png: an image of 10 × 31 pixels can't be cut into 3 squares: expected a height of 20 … 30"
        in str(caught.value)
    )


def test_another_preparation_in_the_folder_is_refused(tmp_path, surfaces):
    prepare_crops(surfaces, tmp_path / "set", tmp_path / "crops", SIDE)
    with pytest.raises(DatasetError, match="holds images prepared with"):
        prepare_crops(surfaces, tmp_path / "set", tmp_path / "crops", SIDE + 1)
    with pytest.raises(ValueError, match="side 0"):
        prepare_crops(surfaces, tmp_path / "set", tmp_path / "other", 0)


def test_wrong_numbers_of_crops_are_refused():
    with pytest.raises(ValueError, match="expected 3 of one shape"):
        join_crops([np.zeros((4, 4))] * 2, (4, 10))
