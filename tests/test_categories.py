"""A folder of several categories: which there are, what each is asked, and one table of all."""

import os
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts import write_btad, write_mvtec

from defaug_utils.book.categories import (
    Category,
    CategoryError,
    adapt_parameters,
    find_categories,
    find_category,
    read_categories,
)
from defaug_utils.book.profiles import read_profile
from defaug_utils.core.files import write_csv
from defaug_utils.data.layouts import DatasetError, find_layout
from defaug_utils.data.public_sets import PUBLIC_SETS
from defaug_utils.masks.trimaps import write_prompt
from defaug_utils.report.categories import (
    AVERAGE,
    GAIN,
    NUMBERS,
    PIXEL_RUNS,
    PRINTED,
    describe_categories,
    layout_categories,
    read_category_runs,
    summarise_categories,
)
from defaug_utils.report.results import ResultsError
from defaug_utils.report.tables import style_table

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "profiles" / "categories"
GRID = ("bent", "broken", "glue", "metal_contamination", "thread")


def write_categories(root: Path) -> None:
    """A texture of MVTec AD, one of its objects, and an engineer's own category."""
    write_mvtec(root / "grid", GRID)
    write_mvtec(root / "toothbrush", ("defective",))
    write_mvtec(root / "rail_end", ("bent_tip", "glue"))


def test_every_category_is_found_with_what_the_table_knows_of_it(tmp_path: Path):
    write_categories(tmp_path)
    (tmp_path / "papers").mkdir()
    grid, rail, toothbrush = find_categories(tmp_path, TABLES)
    assert (grid.name, grid.noun, grid.foreground) == ("grid", "grid", "whole")
    assert grid.words["metal_contamination"] == "piece of metal"
    assert (toothbrush.foreground, toothbrush.words) == ("object", {"defective": "defect"})
    assert rail == Category("rail_end", "rail_end"), "an engineer's own needs no table"


def test_btads_products_are_categories(tmp_path: Path):
    write_btad(tmp_path)
    found = find_categories(tmp_path, TABLES)
    assert [(one.name, one.noun, one.words) for one in found] == [
        (name, "industrial part", {"ko": "defect"}) for name in ("01", "02", "03")
    ]


def test_a_single_category_or_another_layout_is_no_folder_of_categories(tmp_path: Path):
    write_mvtec(tmp_path / "one")
    assert find_categories(tmp_path / "one", TABLES) == []
    (tmp_path / "parts" / "negative").mkdir(parents=True)
    assert find_categories(tmp_path / "parts", TABLES) == find_categories(tmp_path / "none", TABLES) == []


def test_a_folder_without_any_category_is_told(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    assert find_categories(tmp_path, TABLES) == []
    with pytest.raises(DatasetError, match=r"(?s)has no known layout.*Found: notes/"):
        find_layout(tmp_path)


def test_incomplete_categories_are_listed_at_once(tmp_path: Path):
    write_categories(tmp_path)
    write_mvtec(tmp_path / "tile", ("crack", "oil"))
    (tmp_path / "bolt" / "test" / "good").mkdir(parents=True)
    write_mvtec(tmp_path / "nut", ())
    with pytest.raises(DatasetError) as caught:
        find_categories(tmp_path, TABLES)
    told = str(caught.value)
    assert "3 problem" in told
    assert "bolt: has no train/good: unpack it again" in told
    assert "nut: test has no folder of a defect type" in told
    assert "tile: test lacks the defect type glue_strip, gray_stroke, rough" in told


def test_two_layouts_in_one_folder_are_refused(tmp_path: Path):
    write_btad(tmp_path)
    write_mvtec(tmp_path / "grid", GRID)
    with pytest.raises(DatasetError, match=r"(?s)mixes two layouts.*mvtec: grid.*btad: 01, 02, 03"):
        find_categories(tmp_path, TABLES)


@pytest.mark.parametrize("layout", ["mvtec", "btad"])
def test_the_table_has_all_published_categories(layout: str):
    known = read_categories(TABLES / f"{layout}.yaml")
    assert set(known) == set(PUBLIC_SETS[layout].training_images)
    for category in known.values():
        prompts = [
            write_prompt("a {category} with a {defect_type}", category.noun, word)
            for word in category.words.values()
        ]
        assert len(set(prompts)) == len(prompts), "a ControlNet for each type is found by its prompt"
    if layout == "mvtec":
        textures = {name for name, one in known.items() if one.foreground == "whole"}
        assert textures == {"carpet", "grid", "leather", "tile", "wood"}
        assert sum(len(one.words) for one in known.values()) == 73


def test_a_broken_table_is_told_with_every_entry(tmp_path: Path):
    path = tmp_path / "mvtec.yaml"
    path.write_text(
        "a: {noun: a, foreground: sky, types: {x: y}}\nb: {noun: b}\n"
        "c: {noun: c, foreground: whole, types: {x: 1}}\n"
    )
    with pytest.raises(
        CategoryError, match=r"(?s)3 problem.*'sky' is not one of.*b: expected noun.*c: the words"
    ):
        read_categories(path)
    path.write_text("- a\n")
    with pytest.raises(CategoryError, match="expected one section for each category"):
        read_categories(path)


def test_a_categorys_notebooks_have_its_words_and_foreground():
    parameters = read_profile(ROOT / "profiles" / "mvtec_paper.yaml", ROOT / "notebooks")
    (nut,) = (one for one in read_categories(TABLES / "mvtec.yaml").values() if one.name == "metal_nut")
    adapted = adapt_parameters(parameters, nut)
    assert adapted["02_memseg"]["foreground"] == adapted["05_adabldm"]["foreground"] == "object"
    assert adapted["05_adabldm"]["words"]["color"] == "coloured stain"
    assert adapted["05_adabldm"]["template"] == "a metal nut with a {defect_type}"
    changed = {name for name, values in adapted.items() if values != parameters[name]}
    assert changed == {"02_memseg", "05_adabldm"}
    own = adapt_parameters(parameters, Category("rail", "rail"))
    assert "foreground" not in own["05_adabldm"], "the profile's"


@pytest.mark.parametrize("category", ["grid", "02"])
def test_a_category_is_run_with_what_is_known_of_it(category: str, tmp_path: Path):
    write_categories(tmp_path) if category == "grid" else write_btad(tmp_path)
    assert find_category(tmp_path, tmp_path / category, TABLES).name == category
    with pytest.raises(CategoryError, match=r"gird is not one of the categories in .*: "):
        find_category(tmp_path, tmp_path / "gird", TABLES)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "pixel_level",
        "--dry-run",
        "--cores",
        "1",
        "--quiet",
        "host",
    ]
    command += ["--config", "profile=mvtec_paper", f"several={tmp_path}", f"data={tmp_path / category}"]
    command += [f"run={tmp_path / 'run'}"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{tmp_path}/run/notebooks/05_adabldm/full-shot.ipynb" in finished.stdout + finished.stderr


def write_runs(folder: Path, gains: dict[str, float]) -> None:
    """Two seeds of two arms; a category's gain is the same in both, and the second seed is 0.2 higher."""
    for name, gain in gains.items():
        rows = [
            {"scenario": "full-shot", "arm": arm, "n_aug": n_aug, "seed": seed}
            | dict.fromkeys(NUMBERS.values(), 0.3 + 0.2 * seed + gain * (arm == "adabldm"))
            | {"leak": ""}
            for arm, n_aug in (("none", 0), ("adabldm", 40))
            for seed in (0, 1)
        ]
        write_csv(pd.DataFrame(rows), folder / name / PIXEL_RUNS)


def test_the_table_has_every_category_the_average_and_the_gains(tmp_path: Path):
    write_runs(tmp_path, {"grid": 0.1, "tile": 0.3})
    runs = read_category_runs(tmp_path, ["grid", "tile"])
    summary = summarise_categories(runs)
    average = summary[(summary["category"] == AVERAGE) & (summary["arm"] == "adabldm")].iloc[0]
    assert average["n"] == 2, "seeds, and not categories times seeds"
    assert average["pixel_ap"] == pytest.approx(0.6)
    assert average["pixel_ap_std"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    table = layout_categories(summary, runs)
    assert list(table) == [*NUMBERS, "n"]
    assert table.index.get_level_values(0).unique().tolist() == ["grid", "tile", AVERAGE, GAIN, PRINTED]
    table = table.sort_index()
    assert table.loc["grid", "AP"].tolist() == ["0.50 ± 0.14", "0.40 ± 0.14"], "AdaBLDM before none"
    assert table.loc[GAIN, "AP"].tolist() == ["+0.200 ± 0.000"]
    assert style_table(table, "").to_html().count(">2</td>") == len(table) - 1, "n is a whole number"
    printed = table.loc[PRINTED].iloc[0]
    assert printed.tolist() == ["–", "+1.5 points", "+1.9 points", "+3.1 points", "–"]
    told = describe_categories(runs, {"grid": [], "tile": ["tile/oil"]}, "DeSTSeg on resnet18")
    assert told.startswith("2 categories, mean ± std over n seeds, DeSTSeg on resnet18.")
    assert "Types without a test image, which no number here counts: tile (tile/oil)." in told
    assert "Types without" not in describe_categories(runs, {"grid": []}, "U-Net")


def test_categories_without_results_or_with_other_runs_are_listed(tmp_path: Path):
    write_runs(tmp_path, {"grid": 0.1, "tile": 0.3})
    write_csv(pd.DataFrame([{"arm": "none", "seed": 0}]), tmp_path / "wood" / PIXEL_RUNS)
    with pytest.raises(ResultsError, match=r"(?s)2 problem.*wood.*lacks scenario.*screw.*does not exist"):
        read_category_runs(tmp_path, ["grid", "wood", "screw"])
    path = tmp_path / "tile" / PIXEL_RUNS
    write_csv(pd.read_csv(path).iloc[1:], path)
    with pytest.raises(ResultsError, match="tile: lacks 1 of 4 runs"):
        read_category_runs(tmp_path, ["grid", "tile"])


TINY = """
01_data_prep:
  {image_width: 64, image_height: 192, validation_share: 0.0, few_shot_per_type: 2, few_shot_takes_all: true}
05_adabldm:
  {working_width: 64, working_height: 192, training_steps: 2, training_batch: 2, save_every: 1,
   sample_every: 2, steps: 3, latent_editing: [1, 3], image_editing: [2, 3], adaptation_steps: 2,
   compared_count: 2, pool_count: 2, plain_count: 2, refined_count: 0, min_contrast: 0.0,
   min_completeness: 0.0, max_attempts: 1, batch_size: 2, controlnet_per: type,
   template: "a {category} with a {defect_type}"}
06_in_and_out: {scenarios: [full-shot], baselines: [none], arms: [], n_aug: [], seeds: [0], left_out: {}}
09_pixel_level:
  {scenarios: [full-shot], arms: [none, adabldm], n_aug: [2], seeds: [0], detector: destseg, batch_size: 4,
   training_images: 16, input_width: 32, input_height: 96, max_shown: 1}
10_own_defect: {scenario: full-shot, n_aug: 2, beside: memseg}
"""


@pytest.mark.slow
@pytest.mark.dry_run
def test_one_command_runs_all_categories_and_writes_their_table(tmp_path: Path):
    write_mvtec(tmp_path / "all" / "rail", ("bent", "glue"), per_type=3)
    write_mvtec(tmp_path / "all" / "plate", ("cut",), per_type=3)
    write_mvtec(tmp_path / "all" / "plate", ("rare",), per_type=1)
    (tmp_path / "tiny.yaml").write_text(TINY)
    profile = os.path.relpath(tmp_path / "tiny", ROOT / "profiles")
    command = [sys.executable, "-m", "snakemake", "pixels", "--cores", "1", "--config", f"profile={profile}"]
    command += [f"data={tmp_path / 'all'}", f"run={tmp_path / 'run'}"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    table = pd.read_csv(tmp_path / "run" / "categories.csv")
    assert set(table["category"]) == {"rail", "plate", AVERAGE} and len(table) == 6
    assert table["pixel_ap"].between(0, 1).all() and table["image_ap"].between(0, 1).all()
    page = unescape((tmp_path / "run" / "categories.html").read_text(encoding="utf-8"))
    assert "AdaBLDM's images restored outside the mask" in page
    assert PRINTED in page and "plate (plate/rare)" in page and "DeSTSeg on resnet10_quarter" in page
    trained = tmp_path / "run" / "rail" / "controlnet" / "full-shot"
    assert {path.parent.name for path in trained.glob("*/controlnet")} == {"bent", "glue"}
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "done in" not in again.stdout + again.stderr, "nothing is to be done"
    made = [path for path, moment in written.items() if path.stat().st_mtime_ns != moment]
    assert {path.suffix for path in made} <= {".lock", ""}, made
