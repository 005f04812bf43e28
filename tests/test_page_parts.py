"""What the book's extensions make of a page: repaired for keyboards and screen readers, long cells folded."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from accessible import repair
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("written", "mended"),
    [
        ('<section id="exercise-content">', "<section>"),
        ('<section id="solution-content">', "<section>"),
        ('<section id="content">', '<section id="content">'),
        ('<summary aria-label="Toggle hidden content">', "<summary>"),
        ('<div id="id3" role="doc-biblioentry">', '<div id="id3" role="listitem">'),
        ('<th class="head"><p></p></th>', '<td class="head"></td>'),
        ("<th></th>", "<td></td>"),
        ('<th class="blank" >&nbsp;</th>', '<td class="blank" ></td>'),
        ("<thead><th>AP</th></thead>", "<thead><th>AP</th></thead>"),
        ("<p>&lt;th&gt;&lt;/th&gt;</p>", "<p>&lt;th&gt;&lt;/th&gt;</p>"),
    ],
)
def test_what_keeps_readers_out_is_mended_and_nothing_else(written: str, mended: str):
    assert repair(written) == mended


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with a bare theme: a cell of 12 parameters, one of 10, a cell of 12 other lines."""
    site = tmp_path_factory.mktemp("site")
    lines = {
        count: "\n".join(f'p{count}_{number}: str = "a"  # why' for number in range(count))
        for count in (12, 10)
    }
    tagged = {"tags": ["parameters"]}
    cells = [
        new_markdown_cell("# Parameters"),
        *(new_code_cell(lines[count], metadata=tagged) for count in (12, 10)),
        new_code_cell("\n".join(f"x = {number}" for number in range(12))),
    ]
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": python}), site / "page.ipynb")
    settings = {"extensions": ["myst_nb", "folded"], "nb_execution_mode": "off", "root_doc": "page"}
    path = f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
    settings["html_theme"] = "basic"
    text = path + "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    (site / "conf.py").write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", site, site / "html"], check=True)
    return (site / "html" / "page.html").read_text(encoding="utf-8")


def test_parameters_beyond_the_tenth_are_folded(page: str):
    (fold,) = re.findall(r"(?s)<details.*?</details>", page)
    assert "Show the other 2 parameters" in fold and "Hide the other 2 parameters" in fold
    assert re.findall(r"p12_\d+", fold) == ["p12_10", "p12_11"]
    rest = page.replace(fold, "")
    assert re.findall(r"p12_\d+", rest) == [f"p12_{number}" for number in range(10)]
    assert re.findall(r"p10_\d+", rest) == [f"p10_{number}" for number in range(10)]


def test_every_part_of_a_split_cell_is_coloured(page: str):
    assert page.count('<span class="c1"># why</span>') == 22
