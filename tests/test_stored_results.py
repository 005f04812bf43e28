"""Results that are stored for the book: whole, with their provenance, and shown as they are."""

import json
import re
import runpy
import shutil
import sys
from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from nbformat.v4 import new_code_cell, new_notebook, new_output
from stored import PARTS, to_markdown, write_part

from defaug_utils.book import stored_results
from defaug_utils.book.session import Watermark
from defaug_utils.book.stored_results import (
    PIXELS,
    PROVENANCE,
    QUALITY,
    RUNS,
    StoreError,
    read_stored,
    store_results,
)
from defaug_utils.core.files import write_csv, write_json
from defaug_utils.report.results import METRICS, read_pixel_runs

ROOT = Path(__file__).parents[1]
PAGES = ("intro", "decide", "long_run")
STORED = sorted(path for path in (ROOT / "book" / "stored").iterdir() if path.is_dir())
COMMAND = "make book PROFILE=long"
NAMES = [
    f"few-shot-{arm}-{n_aug}-seed{seed}" for arm, n_aug in (("none", 0), ("memseg", 80)) for seed in (0, 1)
]
LAST = "notebooks/08_results.ipynb"


def write_notebook(path: Path, hour: int, parameters: dict) -> None:
    """An executed notebook with one parameter left as it is, and a watermark."""
    cell = new_code_cell("steps: int = 5  # left as it is", metadata={"tags": ["parameters"]})
    mark = Watermark(
        {"Python": "3.11", "torch": "2.6", "device": "GPU"}, "abc1234", {"steps": 5} | parameters
    )
    output = new_output("execute_result", mark._repr_mimebundle_())
    marked = new_code_cell("watermark()", outputs=[output])
    notebook = new_notebook(cells=[cell, marked])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    times = {
        "start_time": f"2026-01-01T{hour:02}:00:00.5+00:00",
        "end_time": f"2026-01-01T{hour:02}:30:00.5+00:00",
    }
    notebook.metadata.papermill = {**times, "duration": 1800.0, "parameters": parameters}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run of four classifiers, two pixel-level detectors and a pool in a seed's folder."""
    run = tmp_path / "runs" / "long"
    shares = dict.fromkeys((*METRICS, "ap_low", "ap_high"), 0.5) | {"n_test": 100, "n_test_positive": 10}
    for place, name in enumerate(NAMES):
        content = shares | {"ap": 0.2 + 0.1 * place, "leak": "", "backbone": "small"}
        write_json(run / "classifier" / name / "metrics.json", content)
        (run / f"train-{name}.csv").touch()
        write_notebook(run / "notebooks" / "07_classifier" / f"{name}.ipynb", 3, {"n_aug": 1, "recipe": "x"})
    for seed in (0, 1):
        numbers = {"pixel_auroc": 0.9, "pro": 0.8, "pixel_ap": 0.5, "iap": 0.4, "iap90": 0.3 + 0.2 * seed}
        write_json(run / "segmenter" / f"few-shot-memseg-80-seed{seed}" / "pixel_metrics.json", numbers)
    leaks = {f"few-shot-memseg-80-seed{seed}": "" for seed in (0, 1)}
    write_csv(read_pixel_runs(run / "segmenter", leaks), run / PIXELS)  # as notebook 09 does
    write_notebook(
        run / "notebooks" / "03_lora_finetune" / "few-shot-seed0.ipynb", 1, {"scenario": "few-shot"}
    )
    write_notebook(run / "notebooks" / "09_pixel_level.ipynb", 3, {"seed": 0})
    write_notebook(run / LAST, 4, {"data_root": str(tmp_path / "parts"), "seed": 0})
    return run


def test_tables_and_provenance_are_stored_and_read_back(run_folder, tmp_path):
    given = store_results(run_folder, tmp_path / "stored", "long", COMMAND)
    tables, provenance = read_stored(tmp_path / "stored" / "long")
    assert provenance == given
    assert set(tables) == {RUNS, PIXELS}
    assert tables[RUNS]["ap"].tolist() == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert tables[PIXELS]["iap90"].tolist() == pytest.approx([0.3, 0.5])
    page = write_part(tmp_path / "stored" / "long", "pixels").replace("\u00a0", " ")
    cells = [cell.strip() for cell in page.splitlines()[-1].strip("|").split("|")]
    assert cells == [
        "MemSeg",
        "80",
        *(f"{n:.3f} ± 0.000" for n in (0.9, 0.8, 0.5, 0.4)),
        "0.40 ± 0.14",
        "2",
    ]
    assert (provenance["command"], provenance["name"], provenance["notebooks"]) == (COMMAND, "long", 7)
    assert provenance["notebook_seconds"] == 7 * 1800
    assert provenance["started"] == "2026-01-01T01:00:00"
    assert provenance["finished"] == "2026-01-01T04:30:00"
    assert set(provenance["versions"]) == {"Python", "torch", "device", "processor", "memory"}
    assert provenance["versions"]["device"] == "GPU", "the notebook's, not this machine's"
    assert provenance["seconds"]["03_lora_finetune/few-shot-seed0"] == 1800
    assert provenance["commits"] == ["abc1234"]
    assert provenance["parameters"]["07_classifier"] == {"steps": 5, "recipe": "x"}
    assert provenance["parameters"]["03_lora_finetune"] == {"steps": 5}
    assert provenance["parameters"]["08_results"] == {"steps": 5, "data_root": "parts", "seed": 0}
    assert str(tmp_path) not in json.dumps(provenance), "no folder of somebody's machine"


def test_what_was_stored_before_is_replaced(run_folder, tmp_path):
    target = tmp_path / "stored" / "long"
    store_results(run_folder, target.parent, target.name, COMMAND)
    shutil.rmtree(run_folder / "segmenter")
    (run_folder / PIXELS).unlink()
    store_results(run_folder, target.parent, target.name, COMMAND)
    assert sorted(path.name for path in target.iterdir()) == [RUNS, PROVENANCE]
    assert "no pixel-level detector" in write_part(target, "pixels")


def test_what_was_stored_before_stays_until_everything_is_written(run_folder, tmp_path, monkeypatch):
    store_results(run_folder, tmp_path / "stored", "long", COMMAND)
    before = read_stored(tmp_path / "stored" / "long")[1]

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(stored_results, "write_json", fail)
    with pytest.raises(OSError, match="the disk is full"):
        store_results(run_folder, tmp_path / "stored", "long", "another command")
    tables, provenance = read_stored(tmp_path / "stored" / "long")
    assert provenance == before and set(tables) == {RUNS, PIXELS}
    assert [path.name for path in (tmp_path / "stored").iterdir()] == ["long"]


def test_an_unfinished_run_is_refused_and_nothing_written(run_folder, tmp_path):
    (run_folder / "classifier" / NAMES[0] / "metrics.json").unlink()
    (run_folder / LAST).rename(run_folder / LAST.replace(".ipynb", ".failed.ipynb"))
    (run_folder / "notebooks" / "09_pixel_level.ipynb").unlink()
    with pytest.raises(StoreError) as caught:
        store_results(run_folder, tmp_path / "stored", "long", COMMAND)
    for told in (
        NAMES[0],
        "08_results.ipynb is missing",
        "09_pixel_level.ipynb is",
        "08_results.failed.ipynb failed",
        "run the same command again",
    ):
        assert told in str(caught.value)
    with pytest.raises(StoreError, match="has not finished"):
        store_results(tmp_path / "nowhere", tmp_path / "stored", "long", COMMAND)
    assert not (tmp_path / "stored").exists()


def test_a_notebook_without_its_watermarks_values_is_named(run_folder, tmp_path):
    path = run_folder / LAST
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].outputs = [new_output("execute_result", {"text/html": "<td>Python</td><td>3</td>"})]
    nbformat.write(notebook, path)
    with pytest.raises(StoreError, match=r"08_results\.ipynb"):
        store_results(run_folder, tmp_path / "stored", "long", COMMAND)


@pytest.mark.parametrize("name", ["..", "Long run", ""])
def test_a_name_that_is_no_folders_is_refused(run_folder, tmp_path, name):
    with pytest.raises(StoreError, match="expected lower-case letters"):
        store_results(run_folder, tmp_path / "stored", name, COMMAND)


def test_the_script_stores_figures_and_says_what_is_wrong(run_folder, tmp_path, monkeypatch):
    script = ROOT / "scripts" / "store_results.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(run_folder), "long", "--book", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    target = tmp_path / "stored" / "long"
    assert read_stored(target)[1]["command"] == COMMAND
    assert all((target / name).stat().st_size > 1000 for name in ("ap.png", "precision_recall.png"))
    assert not (target / "gains.png").is_file(), "no arm was trained as long without images"
    for seed in (0, 1):
        source, name = run_folder / "classifier" / NAMES[0], f"few-shot-none_equal-80-seed{seed}"
        shutil.copytree(source, run_folder / "classifier" / name)
        (run_folder / f"train-{name}.csv").touch()
    runpy.run_path(str(script), run_name="__main__")
    assert (target / "gains.png").stat().st_size > 1000
    (run_folder / LAST).unlink()
    with pytest.raises(SystemExit, match="has not finished"):
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("folder", STORED, ids=lambda path: path.name)
def test_the_books_tables_are_the_stored_runs_means(folder):
    page = write_part(folder, "scenarios").replace("\u00a0", " ")
    runs = pd.read_csv(folder / RUNS)
    for _, group in runs.groupby(["scenario", "arm", "n_aug"]):
        for metric in ("ap", "paper_precision", "validation_recall"):
            values = group[metric].to_numpy()
            spread = np.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1))
            ties = product((-1e-9, 1e-9), repeat=2)  # a mean of 0.5875 is rounded either way
            places = 2 if spread >= 0.1 else 3
            expected = [
                f"{values.mean() + up:.{places}f} ± {spread + wider:.{places}f}" for up, wider in ties
            ]
            assert any(text in page for text in expected), (group.iloc[0, :3].tolist(), metric)
    _, provenance = read_stored(folder)
    assert provenance["notebooks"] >= len(provenance["parameters"])
    assert provenance["started"] < provenance["finished"]
    assert PROVENANCE in {path.name for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000


@pytest.mark.parametrize("folder", STORED, ids=lambda path: path.name)
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_page_can_be_written(folder, part):
    text = write_part(folder, part)
    assert text.strip()
    assert "nan" not in text.replace("_", " ").split()
    assert text.count("```") % 2 == 0


def test_an_unknown_part_and_an_empty_folder_are_told(tmp_path):
    with pytest.raises(ValueError, match="part 'plots' is not one of overview"):
        write_part(tmp_path, "plots")
    with pytest.raises(FileNotFoundError, match=r"run scripts/store_results\.py"):
        write_part(tmp_path, "claims")


def test_cells_and_heads_of_a_table_are_text():
    hostile = "<img src=x onerror=alert(1)> | `a`"
    text = to_markdown(pd.DataFrame({hostile: [hostile]}), "Bars.")
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert re.findall(r"<t[hd][^>]*>(.*)</t[hd]>", page) == ["&lt;img src=x onerror=alert(1)&gt; | `a`"] * 2


def test_provenance_is_text(run_folder, tmp_path):
    hostile = "<img src=x onerror=alert(1)> ``a`` $x$"
    store_results(run_folder, tmp_path / "stored", "long", hostile)
    path = tmp_path / "stored" / "long" / PROVENANCE
    told = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, told | {"versions": {hostile: hostile}, "commits": [hostile]})
    page = MarkdownIt("commonmark").render(write_part(path.parent, "provenance"))
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt; ``a``") == 4


def test_the_pages_folder_is_stored():
    texts = [(ROOT / "book" / f"{page}.md").read_text(encoding="utf-8") for page in PAGES]
    assert all(f"```{{stored}} stored/long {part}\n" in "".join(texts) for part in PARTS)
    assert {path.name for path in STORED} >= {"long"}
    assert (ROOT / "book" / "stored" / "long" / QUALITY).is_file()
