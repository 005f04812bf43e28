"""Gathering finished runs, their means and differences, and the papers' numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from defaug_utils.core.files import write_json
from defaug_utils.core.origins import list_arms
from defaug_utils.evaluation.metrics import measure_scores
from defaug_utils.report.papers import list_missing_arms, published_results
from defaug_utils.report.results import (
    METRICS,
    ResultsError,
    compare_spreads,
    gather_results,
    list_unfinished,
    measure_optimism,
    paired_differences,
    summarise_results,
)

SHARES = dict.fromkeys((*METRICS, "ap_low", "ap_high"), 0.5)
COUNTS = {"n_test": 100, "n_test_positive": 10}


def write_run(run_folder: Path, name: str, **values: object) -> Path:
    path = run_folder / "classifier" / name / "metrics.json"
    write_json(path, SHARES | COUNTS | values)
    return path


def make_runs(**columns: list) -> pd.DataFrame:
    """Runs in memory: ap as given, all other metrics the same."""
    table = pd.DataFrame(columns)
    return table.assign(**{name: table["ap"] for name in METRICS if name != "ap"})


def test_runs_come_in_the_papers_order_with_their_name_as_columns(tmp_path):
    for name in ("full-shot-none-0-seed0", "few-shot-own_arm-40-seed0", "few-shot-ddpm-40-seed1"):
        write_run(tmp_path, name)
    for n_aug in (120, 80):
        write_run(tmp_path, f"few-shot-memseg-{n_aug}-seed0", ap=n_aug / 1000)
    runs = gather_results(tmp_path)
    assert list(runs.columns[:4]) == ["scenario", "arm", "n_aug", "seed"]
    named = runs[["scenario", "arm", "n_aug", "seed"]].to_records(index=False).tolist()
    assert named == [
        ("few-shot", "memseg", 80, 0),
        ("few-shot", "memseg", 120, 0),
        ("few-shot", "ddpm", 40, 1),
        ("few-shot", "own_arm", 40, 0),
        ("full-shot", "none", 0, 0),
    ]
    assert runs["ap"].tolist()[:2] == [0.08, 0.12]


def test_what_metrics_writes_is_what_results_reads(tmp_path):
    labels = np.arange(60) % 3 == 0
    scores = np.random.default_rng(0).normal(labels, 1.0)
    table = pd.DataFrame(
        {"split": ["val", "test"] * 30, "label": np.where(labels, "positive", "negative"), "score": scores}
    )
    summary = measure_scores(table, resamples=50)
    write_run(tmp_path, "few-shot-memseg-40-seed0", **summary, layers=[1, 2])
    (run,) = gather_results(tmp_path).to_dict("records")
    assert {name: run[name] for name in summary} == summary
    assert "layers" not in run


def test_a_run_without_a_validation_part_has_no_number_there(tmp_path):
    missing = {name: None for name in METRICS if name.startswith("validation_")}
    write_run(tmp_path, "few-shot-memseg-40-seed0", **missing, n_val=0)
    write_run(tmp_path, "few-shot-memseg-40-seed1", n_val=5)
    runs = gather_results(tmp_path)
    assert runs["validation_f1"].tolist() == pytest.approx([math.nan, 0.5], nan_ok=True)
    assert measure_optimism(runs).tolist() == [0.0]
    write_run(tmp_path, "few-shot-memseg-40-seed2", **missing, n_val=5)
    write_run(tmp_path, "few-shot-memseg-40-seed3", ap=None, n_val=0)
    with pytest.raises(ResultsError, match="2 problem"):
        gather_results(tmp_path)


def test_every_broken_file_is_in_one_report(tmp_path):
    write_run(tmp_path, "few-shot-none-0-seed0")
    texts = {
        "few-shot-none-0-seed1": json.dumps(SHARES)[:40],  # torn
        "few-shot-none-0-seed2": "[0.5]",
        "few-shot-none-0-seed3": json.dumps(SHARES),  # counts are missing
        "few-shot-none-0-seed4": json.dumps(SHARES | COUNTS | {"ap": math.nan}),
        "few-shot-none-0-seed5": json.dumps(SHARES | COUNTS | {"ap": 1.2}),
        "few-shot-none-0-seed6": json.dumps(SHARES | COUNTS | {"auroc": None}),
        "no run": json.dumps(SHARES | COUNTS),
        "one-shot-none-0-seed0": json.dumps(SHARES | COUNTS),
    }
    for name, text in texts.items():
        path = write_run(tmp_path, name)
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError) as found:
        gather_results(tmp_path)
    message = str(found.value)
    assert "8 problem(s)" in message
    for name in texts:
        assert f"{name}/metrics.json" in message
    for reason in (
        "found list",
        "n_test is missing",
        "ap is nan",
        "ap is 1.2",
        "auroc is None",
        "'one-shot'",
    ):
        assert reason in message
    assert "07_classifier" in message


def test_without_a_finished_run_the_error_names_the_notebook(tmp_path):
    (tmp_path / "classifier" / "few-shot-none-0-seed0").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="07_classifier"):
        gather_results(tmp_path)


@pytest.mark.parametrize("setting", [{"backbone": "resnet18"}, {"recipe": "diag"}, {"n_test": 99}])
def test_runs_of_another_setup_are_refused(tmp_path, setting):
    same = {"backbone": "resnet50", "recipe": "in_and_out"}
    for seed in range(2):
        write_run(tmp_path, f"few-shot-none-0-seed{seed}", **same)
    write_run(tmp_path, "few-shot-memseg-40-seed0", **(same | setting))
    ((name, value),) = setting.items()
    with pytest.raises(ResultsError, match=rf"{name} differs.*\(2 runs\).*{value!r} \(1 run") as found:
        gather_results(tmp_path)
    assert "run_dir" in str(found.value)


def test_unfinished_runs_are_the_planned_and_the_begun(tmp_path):
    write_run(tmp_path, "few-shot-none-0-seed0")
    for seed in range(2):
        (tmp_path / f"train-few-shot-none-0-seed{seed}.csv").touch()
    (tmp_path / "classifier" / "few-shot-none-0-seed2").mkdir()
    assert list_unfinished(tmp_path) == ["few-shot-none-0-seed1", "few-shot-none-0-seed2"]


def test_mean_and_spread_by_hand():
    runs = make_runs(
        scenario=["few-shot"] * 4 + ["zero-shot"],
        arm=["none"] * 3 + ["memseg"] * 2,
        n_aug=[0, 0, 0, 40, 40],
        seed=[0, 1, 2, 0, 0],
        ap=[0.2, 0.4, 0.6, 0.9, 0.7],
    )
    summary = summarise_results(runs)
    assert summary["scenario"].tolist() == ["zero-shot", "few-shot", "few-shot"]
    assert summary["arm"].tolist() == ["memseg", "none", "memseg"]
    assert summary["n"].tolist() == [1, 3, 1]
    assert summary["ap"].tolist() == pytest.approx([0.7, 0.4, 0.9])
    assert summary["ap_std"].tolist() == pytest.approx([np.nan, 0.2, np.nan], nan_ok=True)


def test_differences_pair_runs_of_one_seed():
    runs = make_runs(
        scenario=["few-shot"] * 6,
        arm=["none", "none", "memseg", "memseg", "memseg", "memseg"],
        n_aug=[0, 0, 40, 40, 40, 80],
        seed=[0, 1, 0, 1, 2, 1],
        ap=[0.5, 0.3, 0.6, 0.7, 0.99, 0.2],
    )
    differences = paired_differences(runs, "none")  # seed 2 has no partner
    assert differences["n_aug"].tolist() == [40, 80]
    assert differences["n"].tolist() == [2, 1]
    assert differences["difference"].tolist() == pytest.approx([0.25, -0.1])
    spread = math.sqrt((0.15**2 + 0.15**2) / 1)  # differences 0.1 and 0.4
    assert differences["difference_std"].tolist() == pytest.approx([spread, np.nan], nan_ok=True)
    assert differences["n_higher"].tolist() == [2, 0]
    assert differences["n_lower"].tolist() == [0, 1]
    assert set(differences["baseline"]) == {"none"}


def test_differences_over_an_arm_keep_to_its_n_aug_and_scenario():
    runs = make_runs(
        scenario=["few-shot", "few-shot", "few-shot", "zero-shot"],
        arm=["memseg", "ddpm", "ddpm", "ddpm"],
        n_aug=[40, 40, 80, 40],
        seed=[0, 0, 0, 0],
        ap=[0.5, 0.45, 0.9, 0.9],
    )
    differences = paired_differences(runs, "memseg")
    assert differences[["scenario", "arm", "n_aug", "n"]].to_numpy().tolist() == [["few-shot", "ddpm", 40, 1]]
    assert differences["difference"].item() == pytest.approx(-0.05)
    assert paired_differences(runs, "none").empty


def test_doubt_from_seeds_and_from_test_images():
    runs = make_runs(
        scenario=["few-shot"] * 2, arm=["none"] * 2, n_aug=[0, 0], seed=[0, 1], ap=[0.4, 0.6]
    ).assign(ap_low=[0.3, 0.4], ap_high=[0.5, 0.8])
    (row,) = compare_spreads(runs).to_dict("records")
    assert row["n"] == 2
    assert row["ap_std"] == pytest.approx(math.sqrt(0.02))
    assert row["half_width"] == pytest.approx(0.15)


def test_optimism_is_the_gain_in_f1():
    runs = pd.DataFrame({"paper_f1": [0.8, 0.5], "validation_f1": [0.6, 0.5]})
    assert measure_optimism(runs).tolist() == pytest.approx([0.2, 0.0])


def test_the_papers_numbers_are_whole():
    published = published_results()
    assert not published.duplicated(["source", "scenario", "arm", "n_aug"]).any()
    assert published["ap"].between(0, 1).all()
    in_and_out = published[published["source"] == "In&Out"]
    assert in_and_out.groupby("table").size().to_dict() == {1: 6, 2: 3, 3: 6, 4: 3, 5: 5, 6: 6}
    best = in_and_out.query("scenario == 'zero-shot' and arm == 'in_and_out' and n_aug == 100")
    assert best[["ap", "ap_std", "precision", "recall"]].to_numpy().tolist() == [[0.626, 0.059, 0.742, 0.568]]
    diag = published.query("source == 'DIAG' and n_aug == 120").set_index("scenario")
    assert diag["ap"].to_dict() == {"zero-shot": 0.739, "full-shot": 0.924}
    assert diag["ap_std"].isna().all()
    assert set(published.loc[published["detector"] == "ResNet-50", "arm"]) <= set(list_arms())
    assert (published["detector"] != "ResNet-50").sum() == 3


def test_missing_arms_are_the_published_ones_without_a_run():
    runs = pd.DataFrame({"scenario": ["zero-shot", "full-shot"], "arm": ["memseg", "adabldm"]})
    missing = list_missing_arms(runs).groupby("scenario")["arm"].agg(list).to_dict()
    assert missing == {
        "zero-shot": ["ddpm", "in_and_out", "diag"],
        "few-shot": ["memseg", "ddpm", "in_and_out"],
        "full-shot": ["none", "memseg", "ddpm", "in_and_out", "diag"],
    }
