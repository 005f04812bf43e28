"""What is left out of a data set, or read otherwise than it stands there, is named, recorded and shown."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts import draw_part, save, write_folder, write_ksdd2, write_mvtec

from defaug_utils.data.datasets import draw_few_shot, draw_validation, load_dataset
from defaug_utils.data.flaws import count_changes, read_changes, read_names
from defaug_utils.data.layouts import DatasetError
from defaug_utils.data.preparation import prepare_dataset

SIZE = (8, 24)
RISS = "positive/Riß/Prüfteil"


def images(manifest: pd.DataFrame) -> set[str]:
    return set(manifest["image"])


def empty(path: Path) -> None:
    save(path, np.zeros((63, 23), bool))


def test_images_are_left_out_by_a_list_or_by_a_file(tmp_path):
    write_ksdd2(tmp_path / "set")
    names = ["train/10000.png", "test/20003.png"]
    (tmp_path / "names.txt").write_text("\ufefftrain/10000.png\r\n\n  test/20003.png \n", encoding="utf-8")
    whole = load_dataset(tmp_path / "set")
    for leave_out in (names, tmp_path / "names.txt", str(tmp_path / "names.txt")):
        left = load_dataset(tmp_path / "set", leave_out=leave_out)
        assert images(left) == images(whole) - {*names}
        assert {(row["image"], row["change"]) for row in left.attrs["changes"]} == {
            (name, "left out") for name in names
        }
    assert whole.attrs["changes"] == load_dataset(tmp_path / "set", leave_out="").attrs["changes"] == []


def test_files_with_flaws_can_be_left_out(tmp_path):
    write_ksdd2(tmp_path, train=(9, 1))
    train = tmp_path / "train"
    (train / "10000_GT.png").unlink()
    (train / "10001.png").unlink()
    save(train / "10002_GT.png", np.zeros((63, 22), bool))
    (train / "10003.png").write_bytes(b"")
    shutil.copy(train / "10005.png", tmp_path / "test/10005.png")
    shutil.copy(train / "10005_GT.png", tmp_path / "test/10005_GT.png")
    shutil.copy(train / "10006.png", train / "010006.png")
    flawed = ["train/10000.png", "train/10001_GT.png", "train/10002.png", "train/10003.png"]
    flawed += ["test/10005.png", "train/010006.png"]
    with pytest.raises(DatasetError, match="6 problem"):
        load_dataset(tmp_path)
    manifest = load_dataset(tmp_path, leave_out=flawed)
    expected = {f"train/{number}.png" for number in range(10004, 10010)}
    assert images(manifest[manifest["split"] == "train"]) == expected
    assert {row["image"] for row in manifest.attrs["changes"]} == {*flawed}
    for flaw in flawed:  # each of them still counts where only the others are left out
        with pytest.raises(DatasetError, match="1 problem"):
            load_dataset(tmp_path, leave_out=[name for name in flawed if name != flaw])


@pytest.mark.parametrize("left", ["10006.png", "010006.png"])
def test_either_of_two_images_with_one_id_can_be_left_out(tmp_path, left):
    write_ksdd2(tmp_path)
    shutil.copy(tmp_path / "train/10006.png", tmp_path / "train/010006.png")
    manifest = load_dataset(tmp_path, leave_out=[f"train/{left}"])
    (kept,) = {"train/10006.png", "train/010006.png"} - {f"train/{left}"}
    row = manifest.set_index("image").loc[kept]
    assert row["label"] == "positive" and f"train/{left}" not in images(manifest)


@pytest.mark.parametrize("left", ["positive", "images"])
def test_either_of_two_groups_can_be_left_out(tmp_path, left):
    write_folder(tmp_path, splits=("",), positives=3)
    save(tmp_path / "images/Riß/Prüfteil 1.png", draw_part(1)[0])
    manifest = load_dataset(tmp_path, test_share=0, leave_out=[f"{left}/Riß/Prüfteil 1.png"])
    assert {"positive/Riß/Prüfteil 1.png", "images/Riß/Prüfteil 1.png"} & images(manifest) == {
        f"{'images' if left == 'positive' else 'positive'}/Riß/Prüfteil 1.png"
    }


def test_a_mask_or_another_unicode_form_names_its_image(tmp_path):
    write_folder(tmp_path, splits=("",), positives=3)
    given = ["masks/Riß/Pru\u0308fteil 0.png", "negative/Prüfteil 0.bmp"]
    manifest = load_dataset(tmp_path, test_share=0, leave_out=given)
    changed = [row["image"] for row in manifest.attrs["changes"]]
    assert sorted(changed) == ["negative/Prüfteil 0.bmp", f"{RISS} 0.png"]
    assert not {*changed} & images(manifest) and len(manifest) == 5


def test_every_unknown_name_is_listed_with_the_nearest_known_one(tmp_path):
    write_ksdd2(tmp_path)
    empty(tmp_path / "train/10006_GT.png")
    (tmp_path / "train/10001_GT.png").unlink()
    given = ["10002", "train/1003.png", "zzz", "train/10004.png"]
    with pytest.raises(DatasetError, match="4 problem") as error:
        load_dataset(tmp_path, leave_out=given)
    for said in (
        "the data set has no '10002' (did you mean 'train/10002.png'?)\n",
        "the data set has no 'train/1003.png' (did you mean 'train/10003.png'?)\n",
        "the data set has no 'zzz'\n",
        "train/10001.png: image without mask: add a mask",
    ):
        assert said in f"{error.value}\n"
    assert "'train/10004.png'" not in str(error.value)


def test_a_skipped_file_may_be_named(tmp_path):
    write_ksdd2(tmp_path)
    shutil.copy(tmp_path / "train/10001.png", tmp_path / "train/10001 (copy).png")
    with pytest.warns(UserWarning, match="skipped 1 file"):
        manifest = load_dataset(tmp_path, leave_out=["train/10001 (copy).png"])
    assert manifest.attrs["changes"] == []


def test_names_that_are_none(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.txt is not a readable text file"):
        read_names(str(tmp_path / "nowhere.txt"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(DatasetError, match=r"picture\.png is not a readable text file"):
        read_names(tmp_path / "picture.png")
    with pytest.raises(DatasetError, match="2 problem") as error:
        read_names([10000, "train/10001.png", None])
    assert "10000 is not a name" in str(error.value) and "None is not a name" in str(error.value)


def test_everything_left_out(tmp_path):
    write_ksdd2(tmp_path, train=(1, 1), test=(1, 1))
    names = [f"{split}/{number}.png" for split, number in (("train", 10000), ("train", 10001))]
    with pytest.raises(DatasetError, match="train: contains no images"):
        load_dataset(tmp_path, leave_out=names)


@pytest.fixture
def emptied(tmp_path):
    """MVTec AD with an empty mask among its defective test images."""
    write_mvtec(tmp_path / "grid", per_type=3)
    empty(tmp_path / "grid/ground_truth/bent/001_mask.png")
    return tmp_path / "grid"


def test_an_empty_mask_is_refused_with_both_ways_on(emptied):
    with pytest.raises(DatasetError, match=r"ground_truth/bent/001_mask\.png: has no pixel above 0") as error:
        load_dataset(emptied)
    assert "set empty_masks to negative or skip, or name the image in leave_out" in str(error.value)
    assert "test/bent/001.png" not in images(load_dataset(emptied, leave_out=["test/bent/001.png"]))


def test_an_empty_mask_is_read_as_negative(emptied):
    manifest = load_dataset(emptied, empty_masks="negative")
    row = manifest.set_index("image").loc["test/bent/001.png"]
    assert (row["label"], row["defect_type"], row["split"]) == ("negative", "", "test")
    assert manifest.attrs["changes"] == [
        {"image": "test/bent/001.png", "change": "read as negative", "reason": "its mask is empty"}
    ]


def test_an_image_with_an_empty_mask_is_skipped(emptied):
    manifest = load_dataset(emptied, empty_masks="skip")
    assert "test/bent/001.png" not in images(manifest) and len(manifest) == 5 + 2 + 5
    assert [row["change"] for row in manifest.attrs["changes"]] == ["left out"]


def test_an_unknown_way_with_empty_masks(emptied):
    with pytest.raises(DatasetError, match="empty_masks 'ignore' is not one of refuse, negative, skip"):
        load_dataset(emptied, empty_masks="ignore")


def test_where_the_mask_decides_an_empty_one_is_no_flaw(tmp_path):
    write_ksdd2(tmp_path)
    assert load_dataset(tmp_path, empty_masks="skip").attrs["changes"] == []


def test_nothing_is_left_of_a_folder_of_empty_masks(tmp_path):
    write_folder(tmp_path, splits=("",), negatives=0, positives=1)
    empty(tmp_path / "masks/Riß/Prüfteil 0.png")
    with pytest.raises(DatasetError, match="every image is left out"):
        load_dataset(tmp_path, empty_masks="skip")


def test_changes_are_recorded_beside_the_prepared_images(emptied, tmp_path):
    left = ["train/good/000.png", "train/good/001.png"]
    dataset = load_dataset(emptied, leave_out=left, empty_masks="negative")
    dataset = draw_validation(draw_few_shot(dataset, 1, 0), 0.3, 0)
    prepare_dataset(dataset, emptied, tmp_path / "data", SIZE)
    changes = read_changes(tmp_path / "data")
    assert changes.to_dict("records") == dataset.attrs["changes"]
    assert count_changes(changes) == ["2 left out", "1 read as negative"]
    again = load_dataset(emptied, leave_out=left[:1], empty_masks="skip")
    prepared = prepare_dataset(again, emptied, tmp_path / "data", SIZE)
    assert count_changes(read_changes(tmp_path / "data")) == ["2 left out"]
    assert not {row["image"] for row in again.attrs["changes"]} & {*prepared["original_image"]}


def test_without_changes_the_record_is_empty(tmp_path):
    write_ksdd2(tmp_path / "set")
    prepare_dataset(load_dataset(tmp_path / "set"), tmp_path / "set", tmp_path / "data", SIZE)
    for folder in (tmp_path / "data", tmp_path / "nowhere"):
        changes = read_changes(folder)
        assert changes.empty and list(changes.columns) == ["image", "change", "reason"]
        assert count_changes(changes) == []


def test_a_file_name_that_no_system_takes_is_told():
    with pytest.raises(DatasetError, match="is not a readable text file"):
        read_names("a\0b")
