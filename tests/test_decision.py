"""Whether generating pays: gains, verdicts, costs and figures on made-up runs whose answer is known."""

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from stored import write_part

from defaug_utils.book.pool_times import MAKES, TRAINS, measure_pool_times
from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.core.origins import ORIGINS, uses_diffusion
from defaug_utils.report.decision import (
    MISSING,
    NO,
    NOT_SHOWN,
    UNDECIDED,
    YES,
    decide,
    format_minutes,
    layout_decision,
    measure_costs,
    measure_gains,
)
from defaug_utils.report.decision_plots import plot_gains, plot_shares, tabulate_shares
from defaug_utils.report.verdicts import describe_best, describe_decision, describe_limits

ROOT = Path(__file__).parents[1]
LOW = {
    "linear": [0.40, 0.42, 0.41, 0.43],
    "none_equal": [0.30, 0.33, 0.31, 0.34],
    "cut_paste": [0.5, 0.52, 0.51, 0.51],
}
TIMES = pd.DataFrame(
    [
        ("memseg", "memseg", 120, 0, 0.0, 12.0),
        ("ddpm", "ddpm/few-shot-seed0", 40, 0, 60.0, 40.0),
        ("ddpm", "ddpm/few-shot-seed1", 40, 0, 120.0, 80.0),
        ("ddpm", "ddpm/zero-shot", 40, 0, 6000.0, 4000.0),
        ("diag", "diag", 50, 4, 0.0, math.nan),
    ],
    columns=["origin", "pool", "images", "failed", "training_seconds", "pool_seconds"],
)


def make_runs(
    values: dict[str, list[float]], scenario: str = "few-shot", n_aug: int = 40, **more
) -> pd.DataFrame:
    """Runs of some arms, one value per seed; arms without images have no N_aug."""
    plain = ("none", "linear", "patch_memory")
    rows = [
        {"scenario": scenario, "arm": arm, "n_aug": 0 if arm in plain else n_aug, "seed": seed, "ap": value}
        for arm, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]
    return pd.DataFrame(rows).assign(**({"leak": ""} | more))


def test_standard_augmentation_is_one_of_those_that_generate_nothing():
    runs = make_runs(LOW | {"augmented": [0.5, 0.52, 0.51, 0.5], "diag": [0.7, 0.71, 0.7, 0.7]})
    assert decide(runs).comparisons["other"].tolist() == ["cut_paste", "none_equal", "augmented"]


def test_gains_are_those_of_one_seed_and_n_aug_and_arms_without_images_are_compared_at_every_n_aug():
    runs = pd.concat(
        [
            make_runs({"linear": [0.5, 0.7], "none_equal": [0.4, 0.4], "diag": [0.6, 0.9]}),
            make_runs({"none_equal": [0.6, 0.2], "diag": [0.5]}, n_aug=80),
        ]
    )
    gains = measure_gains(runs, "none_equal").set_index(["arm", "n_aug"])
    assert gains.loc[("linear", 40), "gain"] == pytest.approx(0.2)
    assert gains.loc[("linear", 80), "gain"] == pytest.approx(0.2)  # −0.1 and +0.5
    assert gains.loc[("diag", 40), "gain"] == pytest.approx(0.35)
    spread = 0.3 / math.sqrt(2)  # of 0.2 and 0.5
    assert gains.loc[("diag", 40), "margin"] == pytest.approx(2 * spread / math.sqrt(2))
    assert gains.loc[("diag", 80), "n"] == 1 and math.isnan(gains.loc[("diag", 80), "margin"])
    assert measure_gains(runs, "cut_paste").empty


@pytest.mark.parametrize(
    ("diag", "verdict", "told"),
    [
        ([0.60, 0.63, 0.60, 0.61], YES, "Yes, here"),
        ([0.45, 0.46, 0.46, 0.44], NO, "No, not here"),
        ([0.40, 0.70, 0.45, 0.60], NOT_SHOWN, "Not shown here"),
        ([0.60, 0.63], UNDECIDED, "Undecided here"),
        ([0.60], UNDECIDED, "Fewer than 3 seeds"),
    ],
)
def test_a_diffusion_model_pays_if_it_beats_all_three_by_two_standard_errors(diag, verdict, told):
    runs = make_runs(LOW | {"diag": diag})
    decision = decide(runs)
    assert (decision.diffusion, decision.alternative, decision.verdict) == ("diag", "cut_paste", verdict)
    assert decision.comparisons["other"].tolist() == ["cut_paste", "none_equal", "linear"]
    text = describe_decision(runs)
    assert told in text and "nan" not in text
    assert ("cut the known defects out" in text) == (verdict != YES)


def test_the_numbers_of_the_sentence_are_those_of_the_runs():
    runs = make_runs(LOW | {"diag": [0.45, 0.46, 0.46, 0.44]})
    differences = np.subtract([0.45, 0.46, 0.46, 0.44], LOW["cut_paste"])
    shown = f"{differences.mean():.3f} ± {differences.std(ddof=1):.3f}".replace("-", "−")  # 2 s / √4 = s
    text = describe_decision(runs).replace("\u00a0", " ")
    assert f"{shown} against cut and paste (worse)" in text
    assert "against linear classifier (better): means over 4 seeds ± two standard errors" in text
    assert "that of cut and paste, 40 images**: 0.510 ± 0.008" in describe_best(runs).replace("\u00a0", " ")


def test_the_best_of_several_arms_is_compared_and_a_mixture_counts_as_diffusion_by_its_parts():
    assert uses_diffusion("in_and_out") and uses_diffusion("cut_paste:0.75+diag:0.25")
    assert not uses_diffusion("cut_paste+memseg") and not uses_diffusion("none_equal")
    runs = make_runs(
        LOW
        | {"diag": [0.2] * 4, "cut_paste+diag": [0.7, 0.71, 0.7, 0.72], "cut_paste+memseg": [0.6] * 4}
        | {"patch_memory": [0.1] * 4, "own_arm": [0.99] * 4}
    )
    decision = decide(runs)
    assert (decision.diffusion, decision.alternative, decision.verdict) == (
        "cut_paste+diag",
        "cut_paste+memseg",
        YES,
    )
    assert decision.comparisons["other"].tolist()[-1] == "linear", (
        "the best one of those that generate nothing"
    )


@pytest.mark.parametrize("left_out", ["linear", "none_equal", "cut_paste"])
def test_an_arm_that_was_not_run_is_named_instead_of_decided(left_out: str):
    rest = {arm: values for arm, values in LOW.items() if arm != left_out}
    better, worse = (make_runs(rest | {"diag": values}) for values in ([0.7, 0.71, 0.7, 0.7], [0.1] * 4))
    assert decide(better).verdict == MISSING and decide(worse).verdict == NO
    names = {
        "linear": "an arm that generates nothing, such as the memory of good patches",
        "none_equal": "no augmentation, trained as long",
        "cut_paste": "cut and paste",
    }
    assert f"The run lacks: {names[left_out]}." in describe_decision(better)


def test_without_diffusion_without_the_scenario_and_with_leaks_only_nothing_is_claimed():
    assert "no finished arm with one in few-shot" in describe_decision(make_runs(LOW))
    assert "This run can't say" in describe_decision(make_runs(LOW, scenario="full-shot"))
    assert "no finished run in few-shot" in describe_best(make_runs(LOW, scenario="full-shot"))
    leaking = make_runs(LOW | {"diag": [0.9] * 4}).assign(
        leak=lambda rows: np.where(rows["arm"] == "diag", "real", "")
    )
    assert decide(leaking).diffusion == ""


def test_limits_name_gains_within_the_noise_many_real_defects_and_failed_images():
    few = LOW | {"diag": [0.31, 0.32, 0.31, 0.33], "memseg": [0.6, 0.65, 0.61, 0.64]}
    full = {"none_equal": [0.8, 0.8, 0.8], "memseg": [0.81, 0.82, 0.8]}
    runs = pd.concat([make_runs(few), make_runs(full, "full-shot")])
    noise, many, checks = describe_limits(runs, TIMES).replace("\u00a0", " ").splitlines()
    assert "for 1 of 3 pairs of arm and N_aug: DIAG (40 images)." in noise
    assert "+0.305 ± 0.010 in few-shot (MemSeg, 40 images) and +0.010 ± 0.012 in full-shot" in many
    assert "4 of 50 by DIAG" in checks and "MemSeg" not in checks
    two = describe_limits(make_runs({arm: values[:2] for arm, values in few.items()}), TIMES.iloc[:1])
    assert "fewer than 3 seeds" in two and "every image passed" in two
    assert "has no arm “no augmentation, trained as long”" in describe_limits(
        make_runs({"diag": [0.5]}), TIMES[:0]
    )


def test_minutes_are_those_of_the_scenarios_pools_and_of_a_mixtures_shares():
    runs = make_runs({arm: [0.5] for arm in ("linear", "memseg", "ddpm", "in_and_out", "diag", "cut_paste")})
    costs = measure_costs(runs.assign(seconds=30.0), TIMES, "few-shot")
    assert costs.loc["linear"].tolist() == [0, 0, 0.5]
    assert costs.loc["memseg"].tolist() == pytest.approx([0, 0.1 * 40 / 60, 0.5])
    assert costs.loc["ddpm"].tolist() == pytest.approx([1.5, 1.0, 0.5])
    assert costs.loc["in_and_out"].tolist() == pytest.approx([1.5, 0.5 * (1.0 + 0.1 * 40 / 60), 0.5])
    assert costs.loc["diag", "generator"] == 0 and math.isnan(costs.loc["diag", "images"])
    assert costs.loc["cut_paste", ["generator", "images"]].isna().all(), "its pools were not measured"
    assert measure_costs(runs, pd.DataFrame(), "few-shot").loc["memseg"].isna().all()
    assert [format_minutes(value) for value in (0, 0.01, 0.05, 2.34, math.nan)] == [
        "0",
        "< 0.1",
        "0.1",
        "2.3",
        "–",
    ]


def test_the_table_shows_both_trainings_side_by_side():
    runs = make_runs(LOW | {"none": [0.1, 0.1, 0.1, 0.1], "diag": [0.45, 0.46, 0.46, 0.44]})
    table = layout_decision(runs, TIMES, "few-shot", 40)
    assert table.index.tolist()[-2:] == ["DIAG", "cut and paste"]
    row = table.loc["DIAG"]
    assert row["gain, papers' training"].startswith("+0.35") and row["gain, equal training"].startswith(
        "+0.13"
    )
    assert row["gain over cut and paste"].startswith("−0.05")
    assert table.loc["cut and paste", "gain over cut and paste"] == "–"
    assert table.loc["DIAG", "n"] == 4
    seconds = layout_decision(runs.assign(seconds=30.0), TIMES, "few-shot", 40)["minutes"]
    assert (seconds["linear classifier"], seconds["DIAG"]) == ("0 + 0 + 0.5", "0 + – + 0.5")


def test_the_figure_of_gains_draws_means_and_two_standard_errors():
    runs = pd.concat(
        [make_runs(LOW), make_runs({"none_equal": [0.5, 0.6], "memseg": [0.7, 0.6]}, "full-shot")]
    )
    few, full = plot_gains(runs).axes
    assert few.get_title() == "few-shot (n = 4)" and "n = 2, too few to decide" in full.get_title()
    gains = measure_gains(runs, "none_equal")
    (bars,) = few.containers
    drawn = dict(zip(bars.lines[0].get_ydata(), bars.lines[0].get_xdata(), strict=True))
    labels = {text.get_position()[1]: text.get_text() for text in few.get_yticklabels()}
    assert {labels[place]: pytest.approx(value) for place, value in drawn.items()} == {
        "linear classifier": gains.query("arm == 'linear'")["gain"].item(),
        "cut and paste": gains.query("arm == 'cut_paste'")["gain"].item(),
    }
    (line,) = full.containers[0].lines[2][0].get_segments()
    assert (line[1, 0] - line[0, 0]) / 2 == pytest.approx(2 * (0.2 / math.sqrt(2)) / math.sqrt(2))
    with pytest.raises(ValueError, match="no run can be compared with the arm none_equal"):
        plot_gains(make_runs({"diag": [0.5]}))


def test_shares_are_those_of_mixtures_of_the_same_two_origins():
    runs = pd.concat(
        [
            make_runs({"memseg": [0.5, 0.7], "diag": [0.4], "memseg:0.25+diag:0.75": [0.9], "ddpm": [0.1]}),
            make_runs({"memseg": [0.5]}, "zero-shot"),
        ]
    )
    shares = tabulate_shares(runs)
    assert set(zip(shares["first"], shares["other"], strict=True)) == {("memseg", "diag")}
    assert sorted(zip(shares["share"], shares["ap"], strict=True)) == [
        (0, 0.4),
        (0.25, 0.9),
        (1, 0.5),
        (1, 0.7),
    ]
    (axes,) = plot_shares(shares).axes
    line = axes.containers[0].lines[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (
        [0, 0.25, 1],
        [0.4, 0.9, pytest.approx(0.6)],
    )
    assert tabulate_shares(make_runs(LOW)).empty
    with pytest.raises(ValueError, match="no run mixes two origins"):
        plot_shares(tabulate_shares(make_runs(LOW)))


def write_executed(path: Path, cells: dict[str, float]) -> None:
    """A notebook with the sources of some cells and the seconds that they took."""
    notebook = new_notebook(
        cells=[
            new_code_cell(source, metadata={"papermill": {"duration": time}})
            for source, time in cells.items()
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def write_pool(folder: Path, ends: list[float], failed: int = 0) -> None:
    """A pool whose images were written at given times, in seconds."""
    rows = []
    for index, end in enumerate(ends):
        row = {
            "image": f"images/{index:06d}.png",
            "label": "positive",
            "split": "train",
            "origin": folder.parts[-2],
        }
        write_png(folder / row["image"], np.zeros((4, 4, 3), np.uint8))
        os.utime(folder / row["image"], (end, end))
        rows.append(row | {"check_passed": str(index >= failed)})
    write_manifest(make_manifest(rows), folder / "manifest.csv")


def test_seconds_of_pools_are_those_of_the_cells_that_made_them(tmp_path: Path):
    cells = {
        "core.make_pool(run / 'x')": 7.0,
        "a = diffusion.train_controlnet()": 50.0,
        "core.make_pools(w)": 30.0,
    }
    write_executed(tmp_path / "notebooks" / "05_adabldm" / "few-shot-seed0.ipynb", cells)
    write_pool(tmp_path / "adabldm" / "few-shot-seed0", [1000, 1010, 1018], failed=1)
    write_pool(tmp_path / "cut_paste" / "few-shot-seed0", [1019, 1020])
    write_pool(tmp_path / "memseg" / "few-shot-seed0", [1])  # its notebook was not executed
    first, second = measure_pool_times(tmp_path).to_dict("records")
    assert first == {
        "origin": "adabldm",
        "pool": "adabldm/few-shot-seed0",
        "images": 3,
        "failed": 1,
        "training_seconds": 50.0,
        "pool_seconds": 28.0,
    }
    assert (second["origin"], second["training_seconds"], second["pool_seconds"]) == ("cut_paste", 0.0, 2.0)
    write_pool(tmp_path / "cut_paste" / "few-shot-seed0", [1018, 1018])  # as after a copy
    assert measure_pool_times(tmp_path)["pool_seconds"].isna().all()
    assert measure_pool_times(tmp_path / "nowhere").empty


@pytest.mark.parametrize("notebook", sorted({row.notebook for row in ORIGINS.values()}))
def test_the_cells_that_make_pools_and_fine_tune_are_recognised(notebook: str):
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    trains = [place for place, source in enumerate(code) if TRAINS.search(source)]
    makes = [place for place, source in enumerate(code) if MAKES.search(source)]
    tunes = any(row.notebook == notebook and row.diffusion == "fine-tuned" for row in ORIGINS.values())
    assert len(trains) == tunes, "one cell fine-tunes, where something is fine-tuned"
    assert makes and all(makes[-1] > place for place in trains), "the last one makes the pool, after that"


def test_a_figure_that_a_run_has_not_is_left_out(tmp_path: Path):
    page = "# Page\n\nSome *text*.\n\n"
    page += "```{stored-figure} nowhere/gains.png\nCaption.\n```\n"
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    path = f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
    settings = {"extensions": ["myst_nb", "stored"], "root_doc": "page", "html_theme": "basic"}
    text = path + "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    (tmp_path / "conf.py").write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", tmp_path, tmp_path / "html"], check=True)
    shown = (tmp_path / "html" / "page.html").read_text(encoding="utf-8")
    assert "Some <em>text</em>." in shown and "Caption" not in shown


def test_the_page_can_be_written_from_every_stored_run():
    page = (ROOT / "book" / "decide.md").read_text(encoding="utf-8")
    parts = {part for _, part in re.findall(r"(?m)^```\{stored\} stored/(\w+) (\w+)$", page)}
    assert parts == {"decision", "gains", "limits"}
    folders = [path for path in (ROOT / "book" / "stored").iterdir() if path.is_dir()]
    assert folders and all(write_part(folder, part) for folder, part in itertools.product(folders, parts))
