"""The folder of drawn masks and the tool that fills it, without a browser."""

import errno
from pathlib import Path

import numpy as np
import pytest

from defaug_utils.core import sources
from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import ManifestError, make_manifest, write_manifest
from defaug_utils.masks import drawn
from defaug_utils.masks.drawn import delete_drawn, load_drawn, read_drawn, save_drawn
from defaug_utils.masks.sources import open_masks
from defaug_utils.widgets.mask_drawing import MaskDrawer

NAMES = ["train/1.png", "train/2.png"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"image": name, "label": "negative", "split": "train", "origin": "real"} for name in NAMES]
    rows.append({"image": "test/3.png", "label": "negative", "split": "test", "origin": "real"})
    for number, row in enumerate(rows):
        write_png(tmp_path / "data" / row["image"], np.full((20, 30, 3), 100 + number, np.uint8))
    write_manifest(make_manifest(rows), tmp_path / "data" / "manifest.csv")
    return tmp_path / "data"


def make_mask(row: int = 3) -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[row, 4:9] = True
    return mask


def test_saved_masks_are_a_mask_source_with_their_images(data: Path, tmp_path: Path):
    folder = tmp_path / "drawn"
    save_drawn(folder, data, NAMES[1], make_mask(5))
    save_drawn(folder, data, NAMES[0], make_mask(3))
    save_drawn(folder, data, NAMES[0], make_mask(4))
    drawn = read_drawn(folder)
    assert list(drawn["source_image"]) == [NAMES[1], NAMES[0]]
    assert set(drawn["mask_source"]) == {"drawn"}
    np.testing.assert_array_equal(load_drawn(folder, NAMES[0]), make_mask(4))
    np.testing.assert_array_equal(read_image(folder / drawn["image"][0]), read_image(data / NAMES[1]))
    assert open_masks("drawn", folder).names == ("train-1.png", "train-2.png")


def test_test_images_and_unusable_masks_are_refused(data: Path, tmp_path: Path):
    folder = tmp_path / "drawn"
    with pytest.raises(ManifestError, match=r"test/3\.png is not a training negative"):
        save_drawn(folder, data, "test/3.png", make_mask())
    with pytest.raises(ManifestError, match=r"test/3\.png"):
        MaskDrawer(data, folder, ["test/3.png"])
    with pytest.raises(ValueError, match="5 × 4 pixels, but the image 30 × 20"):
        save_drawn(folder, data, NAMES[0], np.ones((4, 5), bool))
    with pytest.raises(ValueError, match="is empty"):
        save_drawn(folder, data, NAMES[0], np.zeros((20, 30), bool))
    with pytest.raises(ValueError, match="covers everything"):
        save_drawn(folder, data, NAMES[0], np.ones((20, 30), bool))
    assert not folder.exists()


def test_two_images_with_one_mask_name_are_refused(data: Path, tmp_path: Path):
    rows = [{"image": name, "label": "negative", "split": "train", "origin": "real"} for name in NAMES]
    rows.append(rows[0] | {"image": "train-1.png"})
    write_png(data / "train-1.png", np.full((20, 30, 3), 9, np.uint8))
    write_manifest(make_manifest(rows), data / "manifest.csv")
    save_drawn(tmp_path / "drawn", data, NAMES[0], make_mask())
    with pytest.raises(ManifestError, match=r"is the mask of train/1\.png"):
        save_drawn(tmp_path / "drawn", data, "train-1.png", make_mask(8))
    np.testing.assert_array_equal(load_drawn(tmp_path / "drawn", NAMES[0]), make_mask())


def test_stepping_saves_what_was_drawn(data: Path, tmp_path: Path):
    drawer = MaskDrawer(data, tmp_path / "drawn")
    drawer.canvas.value = make_mask()
    assert drawer.has_unsaved_strokes
    drawer.next_button.click()
    assert (drawer.canvas.name, drawer.canvas.mask.any()) == (NAMES[1], False)
    np.testing.assert_array_equal(load_drawn(tmp_path / "drawn", NAMES[0]), make_mask())
    drawer.previous_button.click()
    np.testing.assert_array_equal(drawer.canvas.mask, make_mask())
    np.testing.assert_array_equal(MaskDrawer(data, tmp_path / "drawn").canvas.mask, make_mask())


def test_a_read_only_folder_is_told_and_the_strokes_stay(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path, pixels: np.ndarray) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(drawn, "write_png", refuse)  # root may write anywhere
    drawer = MaskDrawer(data, tmp_path / "drawn")
    drawer.canvas.value = make_mask()
    drawer.next_button.click()
    assert "can&#x27;t be written to" in drawer.message.value
    assert drawer.canvas.name == NAMES[0] == drawer.chooser.value
    np.testing.assert_array_equal(drawer.canvas.mask, make_mask())
    with pytest.raises(PermissionError, match="choose another folder"):
        save_drawn(tmp_path / "drawn", data, NAMES[0], make_mask())


def test_an_image_that_vanished_is_told_and_the_one_before_stays(data: Path, tmp_path: Path):
    drawer = MaskDrawer(data, tmp_path / "drawn")
    (data / NAMES[1]).unlink()
    drawer.next_button.click()
    assert "not a readable image" in drawer.message.value
    assert (drawer.index, drawer.canvas.name, drawer.chooser.value) == (0, NAMES[0], NAMES[0])
    (data / NAMES[0]).unlink()
    drawer.canvas.value = make_mask()
    assert not drawer.save()
    assert drawer.has_unsaved_strokes


def test_a_stored_mask_of_another_size_is_told(data: Path, tmp_path: Path):
    write_png(tmp_path / "drawn" / "train-1.png", np.eye(7, dtype=bool))
    with pytest.raises(ValueError, match=r"the mask of 'train/1.png' has 7 × 7 pixels"):
        MaskDrawer(data, tmp_path / "drawn")


def test_a_mask_is_deleted_after_asking_and_its_image_with_it(data: Path, tmp_path: Path):
    folder = tmp_path / "drawn"
    save_drawn(folder, data, NAMES[0], make_mask())
    save_drawn(folder, data, NAMES[1], make_mask())
    drawer = MaskDrawer(data, folder)
    assert drawer.question.layout.display == "none"
    drawer.delete_button.click()
    assert drawer.question.layout.display == "flex"
    drawer.keep_button.click()
    assert drawer.question.layout.display == "none"
    assert load_drawn(folder, NAMES[0]) is not None
    drawer.delete_button.click()
    drawer.confirm_button.click()
    assert load_drawn(folder, NAMES[0]) is None
    assert list(read_drawn(folder)["source_image"]) == [NAMES[1]]
    assert not drawer.canvas.mask.any()
    assert drawer.delete_button.disabled
    assert sorted(path.name for path in folder.rglob("*.png")) == ["train-2.png", "train-2.png"]
    assert not delete_drawn(folder, NAMES[0])
    assert delete_drawn(folder, NAMES[1])
    assert len(read_drawn(folder)) == 0


def test_saving_an_empty_mask_asks_whether_to_delete_the_stored_one(data: Path, tmp_path: Path):
    folder = tmp_path / "drawn"
    save_drawn(folder, data, NAMES[0], make_mask())
    drawer = MaskDrawer(data, folder)
    drawer.canvas.value = np.zeros((20, 30), bool)
    assert not drawer.save()
    assert drawer.question.layout.display == "flex"
    assert load_drawn(folder, NAMES[0]) is not None
    drawer.next_button.click()
    assert "not deleted; the stored one is kept" in drawer.message.value
    assert load_drawn(folder, NAMES[0]) is not None
    assert drawer.question.layout.display == "none"


def test_a_mask_that_can_not_be_deleted_is_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    folder = tmp_path / "drawn"
    save_drawn(folder, data, NAMES[0], make_mask())
    monkeypatch.setattr(drawn, "write_manifest", refuse)
    drawer = MaskDrawer(data, folder)
    assert not drawer.delete()
    assert "can&#x27;t be written to" in drawer.message.value
    assert drawer.canvas.mask.any()
    assert len(read_drawn(folder)) == 1


def test_saving_reads_no_manifest_of_the_data_set_again(data: Path, tmp_path: Path, monkeypatch):
    read, real = [], sources.read_manifest
    monkeypatch.setattr(sources, "read_manifest", lambda path: read.append(1) or real(path))
    drawer = MaskDrawer(data, tmp_path / "drawn")
    for row in (3, 5, 7):
        drawer.canvas.value = make_mask(row)
        assert drawer.save()
    assert len(read) == 1


def test_a_stroke_looks_for_no_file_of_each_image(data: Path, tmp_path: Path, monkeypatch):
    save_drawn(tmp_path / "drawn", data, NAMES[1], make_mask())
    (tmp_path / "drawn" / "of another data set.png").write_bytes(b"")
    drawer, looked, is_file = MaskDrawer(data, tmp_path / "drawn"), [], Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looked.append(path.name) or is_file(path))
    drawer.canvas.value = make_mask()
    assert set(looked) <= {"train-1.png"}
    assert "1 with a stored mask" in drawer.message.value
