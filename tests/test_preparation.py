"""Prepared images keep their labels; whatever interrupts the work, it resumes where it stopped."""

import errno
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import draw_part, save, write_btad, write_folder, write_ksdd2, write_mvtec
from PIL import Image

from defaug_utils.core.files import lock_file
from defaug_utils.core.images import crop_box, fit_image, fit_mask, read_image, read_mask, window_boxes
from defaug_utils.core.manifest import read_manifest
from defaug_utils.data.datasets import draw_validation, load_dataset
from defaug_utils.data.layouts import DatasetError
from defaug_utils.data.preparation import cut_box, list_boxes, name_files, prepare_dataset, summarise_crops

SIZE = (8, 24)


def written(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def surfaces(tmp_path):
    write_ksdd2(tmp_path / "set", train=(6, 4), test=(3, 2))
    return load_dataset(tmp_path / "set")


def test_files_and_manifest(tmp_path, surfaces):
    dataset = draw_validation(surfaces, 0.3, 0)
    prepared = prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", SIZE)
    pd.testing.assert_frame_equal(prepared, read_manifest(tmp_path / "data/manifest.csv", check_files=True))
    for column in ("split", "label"):
        assert list(prepared[column]) == list(dataset[column])
    assert list(prepared["original_image"]) == list(dataset["image"])
    for old, new in zip(dataset.itertuples(), prepared.itertuples(), strict=True):
        expected = fit_image(read_image(tmp_path / "set" / old.image), SIZE)
        np.testing.assert_array_equal(read_image(tmp_path / "data" / new.image), expected)
        assert bool(new.mask) == (new.label == "positive")
        if new.mask:
            mask = read_mask(tmp_path / "data" / new.mask)
            np.testing.assert_array_equal(mask, fit_mask(read_mask(tmp_path / "set" / old.mask), SIZE))
            assert new.defect_pixels == mask.sum() > 0


def test_a_folder_that_another_process_prepares_is_refused(tmp_path, surfaces):
    with lock_file(tmp_path / "data" / "finished.jsonl"):
        with pytest.raises(TimeoutError, match=r"finished\.jsonl is in use by another process"):
            prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
        assert not (tmp_path / "data" / "images").exists()
    assert len(prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)) == len(surfaces)


def test_masks_are_binary_and_one_pixel_defects_survive(tmp_path):
    write_ksdd2(tmp_path / "set", train=(3, 0), test=(3, 0))
    for path, value in (("train/10002_GT.png", 1), ("test/20002_GT.png", 255)):
        mask_u8 = np.zeros((63, 23), np.uint8)
        mask_u8[17, 5] = value
        save(tmp_path / "set" / path, mask_u8)
    prepared = prepare_dataset(load_dataset(tmp_path / "set"), tmp_path / "set", tmp_path / "data", SIZE)
    positives = prepared[prepared["label"] == "positive"]
    assert list(positives["split"]) == ["train", "test"]
    for mask in positives["mask"]:
        with Image.open(tmp_path / "data" / mask) as opened:
            assert opened.mode == "L" and set(np.unique(opened)) == {0, 255}


@pytest.mark.parametrize("write", [write_mvtec, write_btad, write_folder])
def test_every_layout_is_prepared_under_unique_plain_names(tmp_path, write):
    write(tmp_path / "set")
    dataset = load_dataset(tmp_path / "set")
    prepared = prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", SIZE)
    assert prepared["image"].str.fullmatch(r"images/[A-Za-z0-9_-]+\.png").all()
    assert prepared["image"].is_unique and len(prepared) == len(dataset)
    assert list(prepared["defect_type"]) == list(dataset["defect_type"])


def test_names_tell_where_an_image_came_from():
    assert name_files(["test/bent/000.png", "train/positive/Kratzer ä/Teil (1).v2.bmp"]) == [
        "test-bent-000",
        "train-positive-Kratzer-a-Teil-1-v2",
    ]


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1, max_size=130).map(lambda name: f"a/{name}.png"), unique=True))
def test_names_are_plain_unique_and_short(images):
    names = name_files(images)
    assert len({name.lower() for name in names}) == len(images)
    assert all(name.replace("-", "").replace("_", "").isalnum() and name.isascii() for name in names)
    assert all(len(name) <= 120 for name in names)


def test_16_bit_palette_rgba_and_grey_files_are_prepared(tmp_path):
    grey = draw_part(0)[0][..., 0]
    flavours = {
        "16 bit": Image.fromarray(grey.astype(np.uint16) * 257),
        "grey": Image.fromarray(grey),
        "palette": Image.fromarray(grey).convert("P"),
        "rgba": Image.fromarray(grey).convert("RGBA"),
        "rgb": Image.fromarray(grey).convert("RGB"),
    }
    (tmp_path / "set/negative").mkdir(parents=True)
    for name, picture in flavours.items():
        picture.save(tmp_path / "set/negative" / f"{name}.png")
    dataset = load_dataset(tmp_path / "set", test_share=0)
    prepared = prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", SIZE)
    pixels = [read_image(tmp_path / "data" / image) for image in prepared["image"]]
    assert len(pixels) == len(flavours)
    assert all((image_u8 == pixels[0]).all() and image_u8.shape == (24, 8, 3) for image_u8 in pixels)


def test_crop_that_loses_a_defect_is_refused_before_anything_is_written(tmp_path):
    write_ksdd2(tmp_path / "set", train=(3, 2), test=(3, 1))
    for image, column in (("train/10003", 0), ("test/20003", 22)):
        mask = np.zeros((63, 23), bool)
        mask[30:33, column] = True
        save(tmp_path / "set" / f"{image}_GT.png", mask)
    dataset = load_dataset(tmp_path / "set")
    with pytest.raises(DatasetError) as error:
        prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", (10, 60), fit="centre_crop")
    message = str(error.value)
    assert "train/10003.png" in message and "test/20003.png" in message and "train/10004.png" not in message
    assert (
        "fit 'windows' or 'resize'" in message and "leave_out" in message and not (tmp_path / "data").exists()
    )
    prepared = prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", (10, 60), fit="resize")
    assert (prepared["label"] == "positive").sum() == 3


def test_crop_that_keeps_every_defect(tmp_path, surfaces):
    prepared = prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", (10, 30), fit="centre_crop")
    assert prepared.groupby(["split", "label"]).size().equals(surfaces.groupby(["split", "label"]).size())
    assert set(prepared["box"]) == {"1 0 22 63"} and set(prepared["cut_pixels"]) == {0}


def mark(root: Path, image: str, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((63, 23), bool)
    mask[rows, columns] = True
    save(root / f"{image}_GT.png", mask)
    return mask


def test_windows_lose_no_defect_and_are_counted(tmp_path):
    """Of 23 × 63 pixels, at the aspect of 1 : 5 two windows of 13 columns: 0 … 12 and 10 … 22."""
    root, size = tmp_path / "set", (10, 50)
    write_ksdd2(root, train=(3, 3), test=(3, 1))
    masks = {
        "train/10003": mark(root, "train/10003", slice(30, 33), slice(0, 2)),  # in the left window only
        "train/10004": mark(root, "train/10004", slice(30, 31), slice(5, 20)),  # cut by both
        "train/10005": mark(root, "train/10005", slice(30, 33), slice(11, 12)),  # in both
        "test/20003": mark(root, "test/20003", slice(0, 63), slice(22, 23)),  # in the right window only
    }
    dataset = load_dataset(root)
    with pytest.raises(DatasetError, match="2 problem"):
        prepare_dataset(dataset, root, tmp_path / "crop", (2, 50), fit="centre_crop")
    prepared = prepare_dataset(dataset, root, tmp_path / "data", size, fit="windows")
    stored = read_manifest(tmp_path / "data/manifest.csv", check_files=True)
    assert prepared.to_dict("records") == stored.to_dict("records")
    assert len(prepared) == 2 * len(dataset)
    assert prepared["box"].tolist() == ["0 0 13 63", "10 0 23 63"] * len(dataset)
    positives = prepared[prepared["label"] == "positive"].groupby("original_image")["crop"].agg(list)
    assert positives.to_dict() == {
        "train/10003.png": [0],
        "train/10004.png": [0, 1],
        "train/10005.png": [0, 1],
        "test/20003.png": [1],
    }
    for row in prepared[prepared["label"] == "positive"].itertuples():
        left, top, right, bottom = map(int, row.box.split())
        whole = masks[row.original_image.removesuffix(".png")]
        np.testing.assert_array_equal(
            read_mask(tmp_path / "data" / row.mask), fit_mask(whole[top:bottom, left:right], size)
        )
        assert row.cut_pixels == whole.sum() - whole[top:bottom, left:right].sum()
    table = summarise_crops(prepared, dataset)
    assert table.loc["train"].tolist() == [6, 12, 3, 5, 2, 1, 33.3]  # 10 of the 15 columns 5 … 19 are kept
    assert table.loc["test"].tolist() == [4, 8, 1, 1, 1, 0, 0.0]


def test_windows_do_not_depend_on_masks(tmp_path):
    """An image is cut where it would be cut with any other label, and so in the test part."""
    boxes = []
    for name, columns in (("left", slice(0, 3)), ("right", slice(20, 23)), ("none", slice(0, 0))):
        root = tmp_path / name
        write_ksdd2(root, train=(3, 2), test=(3, 1))
        mark(root, "test/20003", slice(5, 9), columns)
        made = prepare_dataset(load_dataset(root), root, tmp_path / f"data-{name}", (10, 50), fit="windows")
        boxes.append(made[["original_image", "crop", "box"]].to_dict("records"))
    assert boxes[0] == boxes[1] == boxes[2]


@settings(max_examples=60)
@given(*[st.tuples(st.integers(1, 40), st.integers(1, 40))] * 2)
def test_windows_cover_the_image_evenly_with_as_few_as_can_be(shape, size):
    boxes = window_boxes(shape, size)
    covered = np.zeros(shape, int)
    for box in boxes:
        cut_box(covered, box)[:] += 1
    assert covered.min() >= 1
    left, top, right, bottom = crop_box(shape, size, "centre_crop")
    assert {(b[2] - b[0], b[3] - b[1]) for b in boxes} == {(right - left, bottom - top)}
    assert (len(boxes) - 1) * (right - left) * (bottom - top) < shape[0] * shape[1]
    mirrored = sorted((shape[1] - b[2], shape[0] - b[3]) for b in boxes)
    found = sorted((b[0], b[1]) for b in boxes)
    assert np.abs(np.subtract(mirrored, found)).max() <= 1


def test_windows_of_the_right_aspect_are_the_resized_image(tmp_path, surfaces):
    assert window_boxes((63, 23), (23, 63)) == [(0, 0, 23, 63)]
    prepared = prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", (23, 63), fit="windows")
    assert len(prepared) == len(surfaces)
    table = summarise_crops(prepared, surfaces)
    assert (table["defects whole"] == table["positive originals"]).all()


def test_a_resized_data_set_cuts_nothing(tmp_path, surfaces):
    prepared = prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    assert summarise_crops(prepared, surfaces).loc["train"].tolist() == [10, 10, 4, 4, 4, 0, 0.0]
    assert "box" not in prepared


def test_an_image_of_another_size_than_when_it_was_loaded(tmp_path, surfaces):
    save(tmp_path / "set/train/10000.png", draw_part(0, (22, 63))[0])
    with pytest.raises(
        DatasetError, match=r"train/10000\.png: its size has changed: load the data set again"
    ):
        prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE, fit="windows")


def test_crops_of_a_folder_that_does_not_tell_their_boxes_are_made_again(tmp_path, surfaces):
    first = prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", (10, 50), fit="windows")
    journal = tmp_path / "data/finished.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    told = ({k: v for k, v in row.items() if k not in ("box", "cut_pixels")} for _, _, row in lines)
    journal.write_text(
        "".join(json.dumps([*line[:2], row]) + "\n" for line, row in zip(lines, told, strict=True))
    )
    second = prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", (10, 50), fit="windows")
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("size", [(23, 46), (23, 63), (23, 69)])
def test_three_crops_hold_every_row_once_or_twice(size):
    rows = np.repeat(np.arange(size[1])[:, None], size[0], axis=1)
    crops = [cut_box(rows, box) for box in list_boxes(*size, (16, 16), "three_crops")]
    assert {crop.shape for crop in crops} == {(size[0], size[0])}
    counts = np.bincount(np.concatenate([crop[:, 0] for crop in crops]), minlength=size[1])
    assert set(counts) <= {1, 2}
    assert [crop[0, 0] for crop in crops] == [0, size[0], size[1] - size[0]]


def test_three_crops_are_images_of_their_own(tmp_path):
    write_ksdd2(tmp_path / "set", train=(3, 1), test=(2, 1))
    mask = np.zeros((63, 23), bool)
    mask[42, 7] = True  # row 42 is in the second crop (23 … 45) and the third (40 … 62)
    save(tmp_path / "set/test/20002_GT.png", mask)
    dataset = load_dataset(tmp_path / "set")
    made = prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", (16, 16), fit="three_crops")
    stored = read_manifest(tmp_path / "data/manifest.csv", check_files=True)
    assert made.to_dict("records") == stored.to_dict("records")
    assert len(made) == 3 * len(dataset) and set(made.groupby("original_image")["split"].nunique()) == {1}
    crops = made[made["original_image"] == "test/20002.png"]
    assert crops["label"].tolist() == ["negative", "positive", "positive"]
    for row in made.itertuples():
        box = list_boxes(23, 63, (16, 16), "three_crops")[row.crop]
        assert row.box == " ".join(map(str, box))
        crop_u8 = cut_box(read_image(tmp_path / "set" / row.original_image), box)
        np.testing.assert_array_equal(read_image(tmp_path / "data" / row.image), fit_image(crop_u8, (16, 16)))
    for row in crops.itertuples():
        box = list_boxes(23, 63, (16, 16), "three_crops")[row.crop]
        expected = fit_mask(cut_box(mask, box), (16, 16))
        assert row.cut_pixels == 1 - expected.any()
        assert row.defect_pixels == expected.sum() and bool(row.mask) == expected.any()
        if row.mask:
            np.testing.assert_array_equal(read_mask(tmp_path / "data" / row.mask), expected)


def test_every_image_that_has_no_three_crops_is_listed(tmp_path):
    write_mvtec(tmp_path / "grid")
    save(tmp_path / "grid/train/good/square.png", draw_part(0, (20, 20))[0])
    save(tmp_path / "grid/train/good/tall.png", draw_part(0, (10, 31))[0])
    dataset, folders = load_dataset(tmp_path / "grid"), (tmp_path / "grid", tmp_path / "data")
    with pytest.raises(DatasetError, match="2 problem") as caught:
        prepare_dataset(dataset, *folders, (224, 224), fit="three_crops")
    for said in (
        "square.png: an image of 20 × 20 pixels can't be cut into 3 squares: expected a height of 40 … 60",
        "tall.png: an image of 10 × 31 pixels can't be cut into 3 squares: expected a height of 20 … 30",
    ):
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="must be square"):
        prepare_dataset(dataset, *folders, (224, 225), fit="three_crops")


def test_second_run_writes_no_image_again(tmp_path, surfaces, monkeypatch):
    first = prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    monkeypatch.setattr("defaug_utils.data.preparation.write_png", lambda *_: pytest.fail("written again"))
    calls = []
    redrawn = draw_validation(surfaces, 0.3, 5)
    second = prepare_dataset(redrawn, tmp_path / "set", tmp_path / "data", SIZE, on_image=calls.append)
    assert len(calls) == len(first) and "val" in set(second["split"])
    pd.testing.assert_frame_equal(second.drop(columns="split"), first.drop(columns="split"))


def test_what_changed_in_the_data_set_is_made_again(tmp_path, surfaces):
    prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    save(tmp_path / "set/train/10000_GT.png", draw_part(0, is_positive=True)[1])
    save(tmp_path / "set/train/10001.png", np.full((63, 23, 3), 7, np.uint8))
    prepared = prepare_dataset(load_dataset(tmp_path / "set"), tmp_path / "set", tmp_path / "data", SIZE)
    rows = prepared.set_index("original_image")
    assert rows.loc["train/10000.png", "label"] == "positive" and rows.loc["train/10000.png", "mask"]
    assert (read_image(tmp_path / "data" / rows.loc["train/10001.png", "image"]) == 7).all()


def test_deleted_files_are_made_again(tmp_path, surfaces):
    prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    whole = written(tmp_path / "data")
    shutil.rmtree(tmp_path / "data/masks")
    (tmp_path / "data/images/train-10000.png").unlink()
    prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    now = written(tmp_path / "data")
    assert now.keys() == whole.keys()
    assert all(now[name] == whole[name] for name in whole if name.endswith((".png", ".csv")))


def test_other_size_or_fit_is_refused(tmp_path, surfaces):
    prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    before = written(tmp_path / "data")
    with pytest.raises(DatasetError, match="delete the folder"):
        prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", (8, 25))
    with pytest.raises(ValueError, match="fit 'stretch' is not one of"):
        prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE, fit="stretch")
    assert written(tmp_path / "data") == before


def fill_disk_after(monkeypatch, count: int) -> None:
    """From the given number of saved images on, half a file is written and then the disk is full."""
    saved, save_image = [], Image.Image.save

    def save_some(picture, path, *args, **options):
        saved.append(path)
        if len(saved) > count:
            Path(path).write_bytes(b"\x89PNG half an image")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_image(picture, path, *args, **options)

    monkeypatch.setattr(Image.Image, "save", save_some)


def test_full_disk(tmp_path, surfaces, monkeypatch):
    prepare_dataset(surfaces, tmp_path / "set", tmp_path / "whole", SIZE)
    with monkeypatch.context() as patch:
        fill_disk_after(patch, 9)
        with pytest.raises(OSError, match=r"the disk is full: .*png was not written .* run again"):
            prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    left = written(tmp_path / "data")
    assert "manifest.csv" not in left and any(name.startswith("images/") for name in left)
    whole = written(tmp_path / "whole")
    assert all(left[name] == whole[name] for name in left if name.endswith(".png"))
    prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    assert written(tmp_path / "data") == whole


def test_full_disk_in_the_journal_and_in_the_manifest(tmp_path, surfaces, monkeypatch):
    open_path = Path.open

    def refuse(path, *args, **options):
        if path.name == "finished.jsonl" and args[:1] == ("a+b",):
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_path(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(OSError, match=r"the disk is full: .*finished\.jsonl"):
            prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    assert not (tmp_path / "data/manifest.csv").exists()


def test_stopped_in_the_middle_with_a_torn_journal(tmp_path, surfaces):
    prepare_dataset(surfaces, tmp_path / "set", tmp_path / "whole", SIZE)
    calls = []

    def stop(number):
        calls.append(number)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE, on_image=stop)
    journal = tmp_path / "data/finished.jsonl"
    journal.write_bytes(journal.read_bytes() + b'\n["train-100')
    prepared = prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    assert len(prepared) == len(surfaces)
    whole, now = written(tmp_path / "whole"), written(tmp_path / "data")
    assert all(now[name] == whole[name] for name in whole if name != "finished.jsonl")


def test_a_half_made_renewal_leaves_no_manifest(tmp_path, surfaces, monkeypatch):
    prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    save(tmp_path / "set/train/10000.png", np.full((63, 23, 3), 7, np.uint8))
    fill_disk_after(monkeypatch, 0)
    with pytest.raises(OSError, match="the disk is full"):
        prepare_dataset(load_dataset(tmp_path / "set"), tmp_path / "set", tmp_path / "data", SIZE)
    assert not (tmp_path / "data/manifest.csv").exists()


def test_files_that_changed_since_they_were_loaded(tmp_path, surfaces):
    save(tmp_path / "set/train/10006_GT.png", np.zeros((63, 23), bool))
    with pytest.raises(DatasetError, match=r"train/10006.png: was positive .* load the data set again"):
        prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    assert not (tmp_path / "data/manifest.csv").exists()


def test_settings_are_stored_beside(tmp_path, surfaces):
    prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    assert json.loads((tmp_path / "data/settings.json").read_text()) == {"size": [8, 24], "fit": "resize"}


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = []
    for count in (10, 60):
        root = tmp_path / f"set{count}"
        write_folder(root, splits=("",), negatives=count, positives=2)
        tracemalloc.start()
        prepare_dataset(load_dataset(root), root, tmp_path / f"data{count}", (96, 288))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 50 * 96 * 288  # fifty more images, less than a third of their pixels


@pytest.mark.parametrize(
    "line", ["3", "null", '["n", "x", 4]', '["n", "x", {}]', '[["n"], {}, {}]', "[" * 100_000]
)
def test_a_damaged_line_of_the_journal_is_passed_over(tmp_path, surfaces, line):
    first = prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    journal = tmp_path / "data/finished.jsonl"
    journal.write_text(line + "\n" + journal.read_text())
    again = prepare_dataset(surfaces, tmp_path / "set", tmp_path / "data", SIZE)
    pd.testing.assert_frame_equal(first, again)
