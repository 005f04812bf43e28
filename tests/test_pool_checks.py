"""A finished pool is checked row by row and shown from its folder."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import ManifestError, make_manifest, write_manifest
from defaug_utils.evaluation.pool_quality import check_pool
from defaug_utils.report.pictures import show_pool


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    rows = [
        {"image": f"images/{split}.png", "split": split, "label": "negative", "origin": "real"}
        for split in ("train", "test")
    ]
    for row in rows:
        write_png(data / row["image"], np.full((8, 6, 3), 90, np.uint8))
    write_manifest(make_manifest(rows), data / "manifest.csv")
    return data


@pytest.fixture
def pool(tmp_path: Path) -> pd.DataFrame:
    """Two good images, the second without a mask."""
    row = {"label": "positive", "split": "train", "origin": "memseg", "source_image": "images/train.png"}
    mask = np.zeros((8, 6), bool)
    mask[2:4, 2:4] = True
    image_u8 = np.where(mask[..., None], np.uint8(200), np.uint8(90)).repeat(3, axis=2)
    for number in range(2):
        write_png(tmp_path / "pool" / f"{number}.png", image_u8)
    write_png(tmp_path / "pool" / "mask.png", mask)
    return make_manifest([row | {"image": "0.png", "mask": "mask.png"}, row | {"image": "1.png"}])


def test_a_good_pool_passes(tmp_path: Path, pool: pd.DataFrame, data_folder: Path):
    check_pool(tmp_path / "pool", pool, data_folder)


def test_a_row_with_a_margin_may_change_so_far_around_its_mask(tmp_path: Path, pool, data_folder: Path):
    image_u8 = np.full((8, 6, 3), 90, np.uint8)
    image_u8[1, 4] = 91  # the mask's corner is at 2, 3
    write_png(tmp_path / "pool" / "0.png", image_u8)
    check_pool(tmp_path / "pool", pool.iloc[:1].assign(margin=1), data_folder)
    with pytest.raises(ManifestError, match="1 pixels changed outside its mask"):
        check_pool(tmp_path / "pool", pool.iloc[:1].assign(margin=0), data_folder)


def test_every_bad_row_is_named_at_once(tmp_path: Path, pool: pd.DataFrame, data_folder: Path):
    image_u8 = np.full((8, 6, 3), 90, np.uint8)
    image_u8[0, 0] = 91
    write_png(tmp_path / "pool" / "changed.png", image_u8)
    write_png(tmp_path / "pool" / "small.png", image_u8[:4])
    write_png(tmp_path / "pool" / "empty.png", np.zeros((8, 6), bool))
    row = pool.iloc[0].to_dict()
    rows = [
        row | {"image": "changed.png"},
        row | {"image": "small.png"},
        row | {"mask": "empty.png"},
        row | {"source_image": "images/test.png"},
        row | {"label": "negative"},
    ]
    with pytest.raises(ManifestError) as error:
        check_pool(tmp_path / "pool", make_manifest(rows), data_folder)
    found = [line for line in str(error.value).splitlines() if ".png" in line]
    facts = ["1 pixels", "differ in size", "empty", "images/test.png", "'negative'"]
    assert [fact for fact, line in zip(facts, found, strict=True) if fact not in line] == []


def test_only_the_first_rows_are_compared(tmp_path: Path, pool: pd.DataFrame, data_folder: Path):
    missing = pd.concat([pool, pool.iloc[[0]].assign(image="gone.png")])
    check_pool(tmp_path / "pool", missing, data_folder, looked=2)
    with pytest.raises((OSError, ValueError)):
        check_pool(tmp_path / "pool", missing, data_folder, looked=3)


def test_a_pool_is_shown_with_titles_and_outlines(tmp_path: Path, pool: pd.DataFrame):
    figure = show_pool(tmp_path / "pool", pool.assign(word=["a", "b"]), "word")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert [len(axes.collections) for axes in figure.axes] == [1, 0]
    assert not any(a.collections for a in show_pool(tmp_path / "pool", pool, outlined=False).axes)
