"""The slides: every figure that they show exists, and the page needs nothing else."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from test_house import ROOT
from write_slides import BREAK, TEXT, list_figures, write_page

PICTURES = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
PIXEL = base64.b64encode(b"a picture").decode()


def list_pictures() -> list[tuple[str, str]]:
    return PICTURES.findall((ROOT / TEXT).read_text(encoding="utf-8"))


def list_named_figures() -> set[str]:
    cells = [
        cell
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
    ]
    return {cell.metadata["mystnb"]["figure"]["name"] for cell in cells if "mystnb" in cell.metadata}


def test_every_picture_is_a_figure_of_the_book_and_described():
    for alt, name in list_pictures():
        assert name in list_named_figures() or (ROOT / name).is_file(), name
        assert len(alt) > 15, name


def test_the_page_has_a_section_for_each_slide_and_asks_for_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    text = TEXT.read_text(encoding="utf-8")
    page = write_page(text, dict.fromkeys(list_named_figures(), f"data:image/png;base64,{PIXEL}"))
    assert page.count("<section>") == text.count(BREAK) + 1 > 10
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == len(list_pictures())
    assert all(source.startswith("data:image/") for source in sources)
    assert "://" not in page
    HTMLParser().feed(page)


def test_figures_are_found_by_their_names_in_executed_notebooks(tmp_path: Path):
    shown = new_output("display_data", {"image/png": f"{PIXEL}\n", "text/plain": "figure"})
    named = {"mystnb": {"figure": {"name": "fig-a"}}}
    cells = [
        new_code_cell("draw()", outputs=[shown], metadata=named),
        new_code_cell("draw()", outputs=[shown]),
        new_code_cell("1", metadata={"mystnb": {"figure": {"name": "fig-not-run"}}}),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "a.ipynb")
    found = dict(list_figures([tmp_path / "a.ipynb", tmp_path / "missing.ipynb"]))
    assert found == {"fig-a": f"data:image/png;base64,{PIXEL}"}


def test_all_missing_pictures_are_told_together():
    with pytest.raises(ValueError, match="2 problem") as error:
        write_page("# One\n\n![a](fig-no-such)\n---\n![b](no/file.png)\n", {})
    assert "'fig-no-such'" in str(error.value) and "'no/file.png'" in str(error.value)


def test_text_is_shown_as_text():
    page = write_page("# <script>alert(1)</script>\n\n<img src=x onerror=alert(2)>\n", {})
    assert page.count("<script>") == 1, "its own"
    assert "<img" not in page
