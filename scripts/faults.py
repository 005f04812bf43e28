"""Look for faults: `make faults`, or `PYTHONPATH=tests python scripts/faults.py runs/faults --seed 1`.

Broken inputs are passed to the readers that users call; small stages are killed at random moments, run with
scarce resources, or run twice at once, and are then resumed; each in a separate process. Pages in which every
name is hostile are opened in a browser. Results go to `inputs.csv`, `kills.csv`, `resources.csv`, `twice.csv`
and `hostile.csv` in the folder, one row per finished trial, so that an interrupted campaign can be resumed;
the summary is printed at the end and written to `summary.csv`. Another seed needs another folder.
"""

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
from fault_parts import archives, pictures, tables, weights
from fault_parts.judging import OUTCOMES, try_case

from defaug_utils.core.files import write_csv
from defaug_utils.core.guards import claim_folder

COLUMNS = ("case", "outcome", "seconds", "detail")
OF_BOOK = ("read-only", "strange-path", "other-disk")  # its build takes as long as several other stages
TRIALS = ("kills", "resources", "twice")
TABLES = (*TRIALS, "hostile")
FAULTS = ("lost", "half_made", "unequal", "unclear", "mixed", "scripts_run")
PAGES = Path(__file__).parents[1] / "tests" / "browser" / "test_hostile_text.py"


def list_cases() -> dict:
    return {name: case for part in (pictures, tables, archives, weights) for name, case in part.list_cases()}


def read_rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def add_row(path: Path, row: dict) -> None:
    is_new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(row), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def try_inputs(folder: Path, seed: int, sample: int, deadline: float, only: str) -> None:
    path, cases = folder / "inputs.csv", list_cases()
    done = {row["case"] for row in read_rows(path)}
    names = [name for name in cases if only in name]
    if sample:
        names = sorted(random.Random(seed).sample(names, min(sample, len(names))))
    for name in names:
        if name in done or time.monotonic() > deadline:
            continue
        verdict, seconds = try_case(cases[name], folder / "case", f"{seed} {name}")
        detail = "".join(letter if letter.isprintable() else " " for letter in verdict.detail)[:300]
        add_row(path, dict(zip(COLUMNS, (name, verdict.outcome, round(seconds, 2), detail), strict=True)))


def list_trials(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Table and name of every trial with a stage: all kills, then scarce resources, then two at once."""
    from fault_parts.trials import KINDS, STAGES

    names, rng = list(STAGES), random.Random(options.seed)
    scarce = [f"{stage}/{kind}" for stage in names for kind in KINDS if stage != "book" or kind in OF_BOOK]
    twice = ["review-while-refilled/0", *(f"{stage}/{number}" for number in range(2) for stage in names)]
    if options.resources < len(scarce):
        scarce = rng.sample(scarce, options.resources)
    trials = [("kills", f"{names[number % len(names)]}/{number}") for number in range(options.kills)]
    return [
        *trials,
        *(("resources", trial) for trial in scarce),
        *(("twice", trial) for trial in twice[: options.twice]),
    ]


def try_stages(folder: Path, options: argparse.Namespace, deadline: float) -> None:
    """Kill every stage in turn, run each once with every scarce resource, and two at once."""
    from fault_parts import stages, trials

    shared, wholes = folder / "inputs", {}
    done = {(table, row["trial"]) for table in TRIALS for row in read_rows(folder / f"{table}.csv")}

    def run_whole(stage: stages.Stage, shared: Path, target: Path) -> trials.Attempt:
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir(parents=True)
        attempt = trials.run_stage(stage, shared, target)
        if attempt.status:
            raise RuntimeError(f"{stage.__name__} fails undisturbed: {attempt.message}")
        return attempt

    def find_whole(stage: str) -> tuple:
        if stage not in wholes:
            target = folder / "whole" / stage / "run"
            attempt = run_whole(stages.STAGES[stage], shared, target)
            wholes[stage] = trials.read_results(target), attempt.seconds
        return wholes[stage]

    if not shared.is_dir():  # in another process: PyTorch's threads don't survive a fork
        made = folder / "making" / "inputs"
        run_whole(lambda _, target: stages.write_inputs(target), shared, made)
        made.rename(shared)
    for table, trial in list_trials(options):
        if (table, trial) in done or time.monotonic() > deadline:
            continue
        stage, _, kind = trial.partition("/")
        target, rng = folder / "trial" / "run", random.Random(f"{options.seed} {trial}")
        shutil.rmtree(target.parent, ignore_errors=True)
        target.mkdir(parents=True)
        if table == "kills":
            told = trials.try_kill(stage, shared, target, find_whole(stage), rng)
        elif table == "resources":
            told = trials.try_resource(stage, kind, shared, target, find_whole(stage))
        elif stage in stages.STAGES:
            told = trials.try_twice(stage, shared, target, find_whole(stage), rng)
        else:
            told = trials.try_review(shared, target, rng)
        add_row(folder / f"{table}.csv", {"trial": trial, **told, "detail": " ".join(told["detail"].split())})


def open_pages(folder: Path) -> None:
    """Open the pages with hostile names in a browser, by their tests; without a browser, nothing is tried."""
    path = folder / "hostile.csv"
    if read_rows(path):
        return
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "pages.xml")
        command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", PAGES]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # noqa: S603
        cases = ElementTree.parse(report).getroot().iter("testcase")  # noqa: S314 - pytest has just written it
        for case in cases:
            bad = [part for part in case if part.tag in ("failure", "error")]
            if case.find("skipped") is None:
                detail = " ".join(bad[0].get("message", "").split())[:300] if bad else ""
                add_row(path, {"trial": case.get("name"), "scripts_run": len(bad), "detail": detail})


def summarise(folder: Path) -> list[dict]:
    """What was tried and found."""
    names = (*TABLES, "inputs")
    kills, scarce, twice, hostile, inputs = (read_rows(folder / f"{name}.csv") for name in names)
    outcomes = Counter(row["outcome"] for row in inputs)
    counts = {("kills", "tried"): sum(int(row["killed"]) for row in kills)}
    counts |= {("kills", name): count(kills, name) for name in FAULTS[:3]}
    counts |= {("resources", "tried"): len(scarce), ("resources", "survived"): count(scarce, "survived")}
    counts |= {("inputs", "tried"): len(inputs)} | {("inputs", name): outcomes[name] for name in OUTCOMES}
    counts |= {("two at once", "tried"): len(twice)}
    counts |= {("two at once", name): count(twice, name) for name in ("refused", "unclear", "mixed", "lost")}
    counts |= {("hostile pages", "opened"): len(hostile)}
    counts |= {("hostile pages", "scripts_run"): count(hostile, "scripts_run")}
    return [
        {"part": part, "what": what.replace("_", " "), "count": number}
        for (part, what), number in counts.items()
    ]


def count(rows: list[dict], name: str) -> int:
    """Sum of a column; -1 stands for one fault."""
    return sum(abs(int(row[name])) for row in rows)


def main() -> int:
    """Run the rest of the campaign and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/faults"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--sample", type=int, default=0, help="number of random inputs; 0 for all")
    parser.add_argument("--only", default="", help="only inputs whose name contains this")
    parser.add_argument("--kills", type=int, default=140)
    parser.add_argument("--resources", type=int, default=1000, help="largest number of such trials")
    parser.add_argument("--twice", type=int, default=1000, help="largest number of trials of two at once")
    parser.add_argument("--no-pages", action="store_true", help="open no pages in a browser")
    options = parser.parse_args()
    started = time.monotonic()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    claim_folder(folder, {"seed": options.seed, "sample": options.sample}, "a campaign")
    deadline = started + 60 * options.minutes
    try_inputs(folder, options.seed, options.sample, deadline, options.only)
    try_stages(folder, options, deadline)
    if not options.no_pages:
        open_pages(folder)
    rows = summarise(folder)
    write_csv(pd.DataFrame(rows), folder / "summary.csv")
    faults = [row for row in read_rows(folder / "inputs.csv") if row["outcome"] not in ("clear", "right")]
    for row in (row for table in TABLES for row in read_rows(folder / f"{table}.csv")):
        if row.get("survived") == "0" or any(int(row.get(name, 0)) for name in FAULTS):
            faults.append(row)
    for row in faults:
        sys.stdout.write(f"fault: {row}\n")
    for part in dict.fromkeys(row["part"] for row in rows):
        told = ", ".join(f"{row['what']} {row['count']}" for row in rows if row["part"] == part)
        sys.stdout.write(f"{part}: {told}\n")
    sys.stdout.write(f"seed {options.seed}, {time.monotonic() - started:.0f} s\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
