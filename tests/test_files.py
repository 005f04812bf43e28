"""Files are whole or absent, and a full disk says so."""

import errno
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import SafetensorError

from defaug_utils.core.files import read_csv, stage_folder, write_atomically, write_csv, write_json, write_png


def fill_the_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_new_file_appears_with_its_folders(tmp_path: Path):
    target = tmp_path / "a folder" / "größe" / "table (copy).csv"
    with write_atomically(target) as temporary:
        assert temporary.suffix == ".csv"
        assert temporary.parent == target.parent
        temporary.write_text("whole", encoding="utf-8")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError("killed"), KeyboardInterrupt(), fill_the_disk])
def test_failed_write_keeps_the_former_file_and_leaves_nothing_behind(tmp_path: Path, error):
    target = tmp_path / "table.csv"
    target.write_text("former")
    with pytest.raises((RuntimeError, KeyboardInterrupt, OSError)), write_atomically(target) as temporary:
        temporary.write_text("half of the n")
        error() if callable(error) else _raise(error)
    assert target.read_text() == "former"
    assert list(tmp_path.iterdir()) == [target]


def _raise(error: BaseException):
    raise error


def test_full_disk_is_told_with_path_and_remedy(tmp_path: Path):
    target = tmp_path / "table.csv"
    expected = pytest.raises(OSError, match=r"disk is full.*table\.csv.*free some space")
    with expected as caught, write_atomically(target):
        fill_the_disk()
    assert caught.value.errno == errno.ENOSPC
    assert not target.exists()


def test_full_disk_at_the_rename_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "replace", fill_the_disk)
    with pytest.raises(OSError, match="disk is full"):
        write_json(tmp_path / "recipe.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_atomically, stage_folder])
def test_a_full_disk_that_safetensors_meets_is_told_too(tmp_path: Path, write):
    message = "Error while serializing: I/O error: {} (os error {})"
    with pytest.raises(OSError, match=r"disk is full.*weights.*free some space"), write(tmp_path / "weights"):
        raise SafetensorError(message.format("No space left on device", 28))
    with pytest.raises(SafetensorError, match="Permission denied"), write(tmp_path / "weights"):
        raise SafetensorError(message.format("Permission denied", 13))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_are_not_called_a_full_disk(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError) as caught:
        write_json(tmp_path / "file" / "recipe.json", {})
    assert "disk is full" not in str(caught.value)


def test_two_writers_of_one_file_do_not_share_a_temporary_name(tmp_path: Path):
    target = tmp_path / "manifest.csv"
    with write_atomically(target) as first, write_atomically(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_png_keeps_every_pixel(tmp_path: Path):
    image_u8 = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    mask = image_u8[..., 0] > 128
    write_png(tmp_path / "image.png", image_u8)
    write_png(tmp_path / "mask.png", mask)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), image_u8)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), mask * np.uint8(255))


def test_png_refuses_pixels_of_unknown_range(tmp_path: Path):
    with pytest.raises(ValueError, match=r"image\.png.*float64"):
        write_png(tmp_path / "image.png", np.zeros((2, 2, 3)))
    assert list(tmp_path.iterdir()) == []


def test_json_is_sorted_readable_and_without_nan(tmp_path: Path):
    write_json(tmp_path / "recipe.json", {"b": 1, "a": "größe"})
    text = (tmp_path / "recipe.json").read_text(encoding="utf-8")
    assert text.index('"a"') < text.index('"b"')
    assert "größe" in text
    assert json.loads(text) == {"a": "größe", "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "metrics.json", {"ap": float("nan")})
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("text", ["image,label\na,b,c\nd,e,f\n", "image,label\na,b\nd,e,f\n"])
def test_rows_with_more_cells_than_names_are_no_table(tmp_path: Path, text: str):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError):
        read_csv(tmp_path / "table.csv")


def test_a_column_of_a_long_table_has_one_type(tmp_path: Path):
    count = 40_000
    late = pd.DataFrame({f"number {place}": range(count) for place in range(40)})
    late["mixed"] = [7] * (count - 1) + ["seven"]
    write_csv(late, tmp_path / "long.csv")
    with warnings.catch_warnings(action="error"):
        read = read_csv(tmp_path / "long.csv")
    assert set(map(type, read["mixed"])) == {str}


def test_a_table_without_rows_is_read(tmp_path: Path):
    (tmp_path / "table.csv").write_text("image,label\n")
    assert read_csv(tmp_path / "table.csv").columns.tolist() == ["image", "label"]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG])
def test_a_used_up_share_of_the_disk_is_told_with_the_file(tmp_path: Path, number: int):
    with pytest.raises(OSError, match=r"disk is full.*table\.csv"), write_atomically(tmp_path / "table.csv"):
        raise OSError(number, os.strerror(number))
