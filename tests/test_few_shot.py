"""Some defective images of every type are known, the others are the test; too few is one clear error."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import write_btad, write_ksdd2, write_mvtec

from defaug_utils.core.manifest import make_manifest
from defaug_utils.data.datasets import draw_few_shot, list_untested, load_dataset
from defaug_utils.data.layouts import DatasetError
from defaug_utils.data.preparation import prepare_dataset


@pytest.fixture
def grid(tmp_path):
    write_mvtec(tmp_path / "grid", types=("bent", "glue"), train=5, per_type=4)
    return load_dataset(tmp_path / "grid")


def make_dataset(sizes: dict[tuple[str, str], int]) -> pd.DataFrame:
    """A table with so many defective test images of each category and type, and two good ones."""
    rows = []
    for (category, defect_type), size in sizes.items():
        shared = {"category": category, "origin": "real"}
        for split in ("train", "test"):
            image = f"{category}/{defect_type}/{split}-good.png"
            rows.append({**shared, "image": image, "split": split, "label": "negative"})
        for index in range(size):
            image = f"{category}/{defect_type}/{index}.png"
            positive = {"split": "test", "label": "positive", "defect_type": defect_type}
            rows.append({**shared, **positive, "image": image, "mask": image})
    return make_manifest(rows)


def known(dataset: pd.DataFrame) -> set[str]:
    return set(dataset["image"][(dataset["split"] == "train") & (dataset["label"] == "positive")])


def test_mvtec(grid):
    drawn = draw_few_shot(grid, 3, seed=1)
    positives = drawn[drawn["label"] == "positive"]
    counts = positives.groupby(["category", "defect_type", "split"]).size().to_dict()
    assert counts == {
        ("grid", kind, split): size
        for kind in ("bent", "glue")
        for split, size in (("train", 3), ("test", 1))
    }
    pd.testing.assert_frame_equal(drawn.drop(columns="split"), grid.drop(columns="split"))
    negatives = grid["label"] == "negative"
    assert (drawn["split"][negatives] == grid["split"][negatives]).all()
    assert (grid["split"][grid["label"] == "positive"] == "test").all()


def test_btad_with_its_products(tmp_path):
    write_btad(tmp_path / "btad")
    drawn = draw_few_shot(load_dataset(tmp_path / "btad"), 1)
    counts = drawn[drawn["label"] == "positive"].groupby(["category", "split"]).size().to_dict()
    assert counts == {(product, split): 1 for product in ("01", "02", "03") for split in ("train", "test")}


def test_the_prepared_data_set_keeps_the_split(tmp_path, grid):
    drawn = draw_few_shot(grid, 2)
    prepared = prepare_dataset(drawn, tmp_path / "grid", tmp_path / "data", (16, 32))
    assert prepared["split"].tolist() == drawn["split"].tolist()
    assert (prepared["mask"][prepared["label"] == "positive"] != "").all()


@given(st.integers(0, 10**9), st.integers(1, 6), st.randoms())
@settings(max_examples=8)
def test_draws_are_nested_and_blind_to_the_order_of_rows(seed, count, random):
    dataset = make_dataset({("nut", "bent"): 8, ("nut", "colour"): 9, ("pill", "bent"): 8})
    rows = list(range(len(dataset)))
    random.shuffle(rows)
    assert known(draw_few_shot(dataset.iloc[rows], count, seed)) == known(draw_few_shot(dataset, count, seed))
    assert known(draw_few_shot(dataset, count, seed)) < known(draw_few_shot(dataset, count + 1, seed))


def test_seeds_and_types_draw_differently():
    dataset = make_dataset({("nut", "bent"): 40, ("nut", "colour"): 40})
    draws = [known(draw_few_shot(dataset, 10, seed)) for seed in range(5)]
    assert len({frozenset(draw) for draw in draws}) == 5
    indices = [{image.split("/")[2] for image in draws[0] if kind in image} for kind in ("bent", "colour")]
    assert indices[0] != indices[1]


def test_a_given_list_is_taken_as_it_is(grid):
    wanted = ["test/bent/001.png", "test/bent/003.png", "test/glue/000.png"]
    assert known(draw_few_shot(grid, chosen=wanted)) == set(wanted)


def test_types_with_too_few_images_are_listed_with_all_others():
    dataset = make_dataset({("nut", "bent"): 12, ("nut", "colour"): 9, ("pill", "type"): 3})
    with pytest.raises(DatasetError) as caught:
        draw_few_shot(dataset)
    assert str(caught.value).splitlines()[1:] == [
        "  - nut/colour: 9 image(s) (too few)",
        "  - pill/type: 3 image(s) (too few)",
        "  - nut/bent: 12 image(s)",
    ]
    assert "10 defective images of every type are requested; request at most 3" in str(caught.value)


def test_all_of_a_type_with_few_images_are_taken_if_asked_and_the_type_is_told():
    dataset = make_dataset(
        {("nut", "bent"): 12, ("nut", "colour"): 10, ("pill", "type"): 3, ("pill", "dent"): 11}
    )
    drawn = draw_few_shot(dataset, takes_all=True)
    train = drawn[(drawn["label"] == "positive") & (drawn["split"] == "train")]
    assert train["defect_type"].value_counts().to_dict() == {"bent": 10, "colour": 10, "dent": 10, "type": 3}
    assert list_untested(drawn) == ["nut/colour", "pill/type"]
    assert list_untested(draw_few_shot(dataset, 2)) == []
    with pytest.raises(DatasetError, match="few_shot_takes_all"):
        draw_few_shot(dataset)
    with pytest.raises(DatasetError, match=r"(?s)nothing is left for testing.*pill: no defective image"):
        draw_few_shot(make_dataset({("nut", "bent"): 12, ("pill", "type"): 3}), takes_all=True)


def test_every_wrong_name_of_a_list_is_told(grid):
    names = ["test/bent/001.png", "test/bent/001.png", "test/good/000.png", "test/bent/999.png"]
    with pytest.raises(DatasetError) as caught:
        draw_few_shot(grid, chosen=names)
    told = str(caught.value)
    assert told.count("\n  - ") == 3
    assert "001.png: is listed twice" in told
    assert "good/000.png: is not a defective test image" in told
    assert "999.png: is not a defective test image" in told
    assert known(draw_few_shot(grid, 2, chosen=[])) == known(draw_few_shot(grid, 2))


def test_something_is_left_to_be_judged_on():
    dataset = make_dataset({("nut", "bent"): 4, ("nut", "colour"): 5, ("pill", "type"): 4})
    with pytest.raises(
        DatasetError, match=r"(?s)nothing is left for testing.*pill: no defective image in test"
    ):
        draw_few_shot(dataset, 4)


def test_a_category_without_masks_is_told():
    dataset = make_dataset({("nut", "bent"): 4, ("pill", "type"): 0})
    with pytest.raises(DatasetError, match="pill: no defective image in test"):
        draw_few_shot(dataset, 2)


def test_data_sets_with_defective_training_images_are_refused(tmp_path, grid):
    write_ksdd2(tmp_path / "surfaces")
    with pytest.raises(DatasetError, match="2 defective images are not in test"):
        draw_few_shot(load_dataset(tmp_path / "surfaces"), 1)
    with pytest.raises(DatasetError, match="are not in test"):
        draw_few_shot(draw_few_shot(grid, 1), 1)
    with pytest.raises(ValueError, match="count 0 must"):
        draw_few_shot(grid, 0)
