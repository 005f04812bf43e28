"""A contact sheet: read back as HTML, its pictures decoded, hostile text shown as text."""

import base64
import io
import shutil
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defaug_utils.core.files import write_png
from defaug_utils.core.licences import write_licence
from defaug_utils.core.manifest import ManifestError, make_manifest
from defaug_utils.data.contact_sheet import OUTLINE_RGBA, SheetError, write_contact_sheet

WIDTH, HEIGHT = 60, 180
NOISE = {"image": "noise.png", "label": "negative", "split": "train", "origin": "real"}
HOSTILE = '</figcaption><script>alert(1)</script><img src=x onerror="alert(2)"> & "quotes"'


class Page(HTMLParser):
    """The elements and the text of a page, as a browser would read them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def find(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def decode(image: dict) -> Image.Image:
    kind, held = image["src"].removeprefix("data:image/").split(";base64,")
    opened = Image.open(io.BytesIO(base64.b64decode(held)))
    assert opened.format == kind.upper()
    return opened


def write_rows(folder: Path, count: int, **values: object) -> pd.DataFrame:
    rows = []
    for number in range(count):
        row = {"image": f"images/{number:06d}.png", "mask": f"masks/{number:06d}.png", "split": "train"}
        row |= {"label": "positive", "origin": "diag"} | values
        write_png(folder / row["image"], np.full((HEIGHT, WIDTH, 3), 10 * (number % 25), np.uint8))
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[60:90, 20:40] = True
        write_png(folder / row["mask"], mask)
        rows.append(row)
    return make_manifest(rows)


def test_every_image_is_shown_once_with_its_outline_and_its_row(tmp_path: Path):
    pool = write_rows(tmp_path, 3, prompt="background scratched")
    pool["accepted"] = pd.array([True, False, None], dtype="boolean")
    pool["reviewer_note"] = ["", "too faint", ""]
    pool = pool.assign(check_passed=["True", "True", "False"], check_reason=["", "", "contrast 1.2 < 4"])
    write_licence(tmp_path, "CC BY 4.0")
    done = write_contact_sheet(pool, tmp_path, tmp_path / "sheet.html", side=90)
    page = Page(done.path)
    assert (done.images, done.size) == (3, done.path.stat().st_size)
    assert [figure["class"] for figure in page.find("figure")] == ["accepted", "rejected", ""]
    pictures, outlines = page.find("img")[::2], page.find("img")[1::2]
    for number, (picture, outline) in enumerate(zip(pictures, outlines, strict=True)):
        assert decode(picture).size == decode(outline).size == (30, 90)
        assert np.abs(np.asarray(decode(picture), int) - 10 * number).max() <= 3
        drawn = (np.asarray(decode(outline)) == OUTLINE_RGBA).all(axis=2)
        assert drawn.sum() == 2 * (15 + 10), "the pixels around a mask of 10 × 15"
        assert not drawn[30:45, 10:20].any()
    assert "3 images: 1 accepted, 1 rejected, 1 not reviewed; 1 failed their checks." in page.text
    for told in ("CC BY 4.0", "“background scratched”", "rejected: too faint", "contrast 1.2 < 4", "DIAG"):
        assert told in page.text


def test_the_file_needs_nothing_else(tmp_path: Path):
    path = write_contact_sheet(write_rows(tmp_path, 2), tmp_path, tmp_path / "sheet.html").path
    page = Page(path)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert all(image["src"].startswith("data:image/") for image in page.find("img"))
    assert "://" not in path.read_text(encoding="utf-8")


def test_hostile_text_is_shown_as_text(tmp_path: Path):
    pool = write_rows(tmp_path, 1, prompt=HOSTILE, reviewer_note=HOSTILE, accepted=True)
    pool = pool.assign(check_passed="False", check_reason=HOSTILE)
    write_licence(tmp_path, "<b onclick=alert(3)>ours</b>")
    page = Page(write_contact_sheet(pool, tmp_path, tmp_path / "sheet.html", title=HOSTILE).path)
    assert page.text.count(HOSTILE) == 5  # title, heading, prompt, reason and note
    assert "<b onclick=alert(3)>ours</b>" in page.text
    assert not page.find("script") and len(page.find("img")) == 2
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_a_name_with_signs_of_html_is_shown_as_text(tmp_path: Path):
    name = "images/a&lt;b 'c' \"d\".png"
    write_png(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    row = {"image": name, "label": "negative", "split": "train", "origin": "real"}
    page = Page(write_contact_sheet(make_manifest([row]), tmp_path, tmp_path / "sheet.html").path)
    assert name in page.text
    assert page.find("img")[0]["alt"] == f"negative {name}"


def test_a_pool_of_no_images_says_so(tmp_path: Path):
    done = write_contact_sheet(make_manifest([]), tmp_path, tmp_path / "sheet.html")
    page = Page(done.path)
    assert done.images == 0
    assert "There is no image in this pool." in page.text
    assert not page.find("figure")


def test_pictures_are_small_and_small_images_are_not_enlarged(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (1200, 400, 3), dtype=np.uint8)
    row = {"image": "large.png", "label": "negative", "split": "train", "origin": "real"}
    write_png(tmp_path / "large.png", noise)
    done = write_contact_sheet(make_manifest([row]), tmp_path, tmp_path / "sheet.html")
    assert done.size < 40_000 < (tmp_path / "large.png").stat().st_size
    write_png(tmp_path / "large.png", noise[:20, :30])
    page = Page(write_contact_sheet(make_manifest([row]), tmp_path, tmp_path / "sheet.html").path)
    assert decode(page.find("img")[0]).size == (30, 20)


def test_memory_does_not_grow_with_the_pool(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_png(tmp_path / "noise.png", noise)
    held = write_contact_sheet(make_manifest([NOISE]), tmp_path, tmp_path / "sheet.html").size

    def measure(count: int) -> int:
        pool = write_rows(tmp_path, count)
        for image in pool["image"]:
            shutil.copyfile(tmp_path / "noise.png", tmp_path / image)
        tracemalloc.start()
        write_contact_sheet(pool, tmp_path, tmp_path / "sheet.html")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    measure(2)  # warm-up
    few, many = measure(10), measure(200)
    assert many - few < 0.5 * 190 * held, "what a row says is kept, its picture isn't"


def test_all_files_that_can_not_be_shown_are_told_and_the_former_sheet_stays(tmp_path: Path):
    pool = write_rows(tmp_path, 3)
    target = write_contact_sheet(pool, tmp_path, tmp_path / "sheet.html").path
    before = target.read_bytes()
    (tmp_path / pool["image"][0]).write_bytes(b"no image")
    write_png(tmp_path / pool["mask"][1], np.ones((HEIGHT, WIDTH + 1), bool))
    with pytest.raises(SheetError) as error:
        write_contact_sheet(pool, tmp_path, target)
    assert "2 problem(s)" in str(error.value) and "not a readable image" in str(error.value)
    assert "61 × 180 pixels, but its image has 60 × 180" in str(error.value)
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("target", "side", "told"),
    [
        ("sheet.txt", 240, r"must end in \.html"),
        ("folder.html", 240, "not be a folder"),
        ("sheet.html", 0, "side 0 must be a whole number in 32 … 1024"),
        ("sheet.html", 90.5, "side 90.5 must be"),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, target: str, side: int, told: str):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(SheetError, match=told):
        write_contact_sheet(make_manifest([]), tmp_path, tmp_path / target, side=side)


def test_missing_files_are_told(tmp_path: Path):
    pool = write_rows(tmp_path, 1)
    (tmp_path / pool["image"][0]).unlink()
    with pytest.raises(ManifestError, match="does not exist"):
        write_contact_sheet(pool, tmp_path, tmp_path / "sheet.html")
