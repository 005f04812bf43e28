"""The short form of the campaign that looks for faults, and that it would find one."""

import csv
import os
import random
import subprocess
import sys
import time
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
        *("--sample", "40", "--kills", "5", "--resources", "8", "--twice", "2", "--no-pages"),
    ]
    options = ["--seed", "1", "--minutes", "30"]  # far more than it takes: a busy machine fails nothing
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr[-2000:]
    with (tmp_path / "summary.csv").open() as stream:
        counts = {(row["part"], row["what"]): int(row["count"]) for row in csv.DictReader(stream)}
    tried = {part: count for (part, what), count in counts.items() if what == "tried"}
    assert tried["kills"] > 0
    assert {part: tried[part] for part in ("inputs", "resources", "two at once")} == {
        "inputs": 40,
        "resources": 8,
        "two at once": 2,
    }


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


def write_in_two(shared: Path, folder: Path) -> None:
    with (folder / "a.txt").open("a") as stream:
        for _ in range(2):
            stream.write("half")
            stream.flush()
            time.sleep(0.3)


def fail_without_a_name(shared: Path, folder: Path) -> None:
    (folder / "a.txt").write_text("whole")
    raise ValueError("something is wrong")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "attempt", "found"),
    [
        (write_in_two, "kill", {"killed": 1, "half_made": 1, "unequal": 1, "lost": 0}),
        (write_in_two, "twice", {"refused": 0, "unclear": 0, "mixed": 1, "lost": 0}),
        (fail_without_a_name, "no-home", {"survived": 0, "status": 1}),
    ],
)
def test_a_stage_that_breaks_a_promise_is_found(
    tmp_path: Path, monkeypatch, stage, attempt: str, found: dict
):
    from fault_parts import trials  # imports diffusers

    class Half(random.Random):
        def uniform(self, low: float, high: float) -> float:
            return (low + high) / 2

    monkeypatch.setitem(trials.STAGES, "broken", stage)
    shared, folder, whole = tmp_path, tmp_path / "trial" / "run", ({"a.txt": b"halfhalf"}, 0.6)
    folder.mkdir(parents=True)
    if attempt == "kill":
        told = trials.try_kill("broken", shared, folder, whole, Half())
    elif attempt == "twice":
        told = trials.try_twice("broken", shared, folder, whole, Half())
    else:
        told = trials.try_resource("broken", attempt, shared, folder, whole)
    assert {name: told[name] for name in found} == found
