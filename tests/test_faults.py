"""The short form of the campaign that looks for faults, and that it would find one."""

import csv
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fault_parts.judging import Trial, judge, try_case

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_sample_of_the_campaign_finds_no_fault(tmp_path: Path):
    command = [
        sys.executable,
        "scripts/faults.py",
        tmp_path,
        "--sample",
        "40",
        "--kills",
        "5",
        "--resources",
        "8",
    ]
    options = [
        "--seed",
        "1",
        "--minutes",
        "30",
    ]  # far more than it takes, so that a busy machine fails nothing
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr[-2000:]
    with (tmp_path / "summary.csv").open() as stream:
        counts = {(row["part"], row["what"]): int(row["count"]) for row in csv.DictReader(stream)}
    assert counts["inputs", "tried"] == 40 and counts["resources", "tried"] == 8


def raise_error(error: Exception) -> object:
    raise error


@pytest.mark.parametrize(
    ("trial", "outcome"),
    [
        (Trial(lambda: raise_error(ValueError("a.png is broken")), "a.png"), "clear"),
        (Trial(lambda: raise_error(ValueError("invalid literal")), "a.png"), "traceback"),
        (Trial(lambda: raise_error(KeyError("a.png")), "a.png"), "traceback"),
        (Trial(lambda: raise_error(ValueError("a.png")), "a.png", lambda found: True), "traceback"),
        (Trial(lambda: 3, "a.png"), "silent"),
        (Trial(lambda: 3, "a.png", lambda found: found == 4), "silent"),
        (Trial(lambda: 3, "a.png", lambda found: found == 3), "right"),
    ],
)
def test_every_outcome_is_told_from_the_others(trial: Trial, outcome: str):
    assert judge(trial).outcome == outcome


def test_a_case_gets_an_empty_folder_and_its_own_draws(tmp_path: Path):
    def case(folder: Path, rng: random.Random) -> Trial:
        assert list(folder.iterdir()) == []
        return Trial(rng.random, "", lambda drawn: drawn == random.Random("1 a").random())

    for _ in range(2):
        verdict, _ = try_case(case, tmp_path / "case", "1 a")
        assert verdict.outcome == "right"
    assert not (tmp_path / "case").exists()
