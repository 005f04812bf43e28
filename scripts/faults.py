"""Look for faults: `make faults`, or `PYTHONPATH=tests python scripts/faults.py runs/faults --seed 1`.

Broken inputs are passed to the readers that users call; small stages run with scarce resources, or are killed
at random moments and then resumed; each in a separate process. Results go to `inputs.csv`, `resources.csv`
and `kills.csv` in the folder, one row per finished trial, so that an interrupted campaign can be resumed; the
summary is printed at the end and written to `summary.csv`. Another seed needs another folder.
"""

import argparse
import csv
import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
from fault_parts import archives, pictures, tables, weights
from fault_parts.judging import OUTCOMES, try_case

from defaug_utils.core.files import write_csv
from defaug_utils.core.guards import claim_folder

COLUMNS = ("case", "outcome", "seconds", "detail")


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


def try_stages(folder: Path, options: argparse.Namespace, deadline: float) -> None:
    """Kill every stage in turn, then run each once with scarce resources."""
    from fault_parts import stages

    shared, wholes = folder / "inputs", {}
    done = {row["trial"] for name in ("resources", "kills") for row in read_rows(folder / f"{name}.csv")}

    def find_whole(stage: str) -> tuple:
        if stage not in wholes:
            target = folder / "whole" / stage / "run"
            shutil.rmtree(target.parent, ignore_errors=True)
            target.parent.mkdir(parents=True)
            attempt = stages.run_stage(stage, shared, target)
            if attempt.status:
                raise RuntimeError(f"{stage} fails undisturbed: {attempt.message}")
            wholes[stage] = stages.read_results(target), attempt.seconds
        return wholes[stage]

    if not shared.is_dir():
        stages.write_inputs(folder / "inputs.part")
        (folder / "inputs.part").rename(shared)
    names = list(stages.STAGES)
    scarce = [f"{stage}/{kind}" for stage in names for kind in stages.KINDS][: options.resources]
    trials = [("kills", f"{names[number % len(names)]}/{number}") for number in range(options.kills)]
    trials += [("resources", trial) for trial in scarce]
    for table, trial in trials:
        if trial in done or time.monotonic() > deadline:
            continue
        stage, _, kind = trial.partition("/")
        target = folder / "trial" / "run"
        shutil.rmtree(target.parent, ignore_errors=True)
        target.mkdir(parents=True)
        if table == "kills":
            rng = random.Random(f"{options.seed} {trial}")
            told = stages.try_kill(stage, shared, target, find_whole(stage), rng)
        else:
            told = stages.try_resource(stage, kind, shared, target, find_whole(stage))
        add_row(folder / f"{table}.csv", {"trial": trial, **told, "detail": " ".join(told["detail"].split())})


def summarise(folder: Path) -> list[dict]:
    """What was tried and found; `faults` is the number of unacceptable results."""
    kills, scarce, inputs = (read_rows(folder / f"{name}.csv") for name in ("kills", "resources", "inputs"))
    outcomes = Counter(row["outcome"] for row in inputs)
    hit = [row for row in kills if row["killed"] == "1"]
    counts = {("kills", "tried"): len(hit)}
    for name in ("lost", "half_made", "unequal"):
        counts["kills", name] = sum(abs(int(row[name])) for row in kills)
    survived = sum(int(row["survived"]) for row in scarce)
    counts |= {("resources", "tried"): len(scarce), ("resources", "survived"): survived}
    counts |= {("inputs", "tried"): len(inputs)} | {("inputs", name): outcomes[name] for name in OUTCOMES}
    return [{"part": part, "what": what, "count": count} for (part, what), count in counts.items()]


def main() -> int:
    """Run the rest of the campaign and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/faults"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--sample", type=int, default=0, help="number of random inputs; 0 for all")
    parser.add_argument("--only", default="", help="only inputs whose name contains this")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--resources", type=int, default=100, help="largest number of trials with scarce resources"
    )
    options = parser.parse_args()
    started = time.monotonic()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    claim_folder(folder, {"seed": options.seed, "sample": options.sample}, "a campaign")
    deadline = started + 60 * options.minutes
    try_inputs(folder, options.seed, options.sample, deadline, options.only)
    try_stages(folder, options, deadline)
    rows = summarise(folder)
    write_csv(pd.DataFrame(rows), folder / "summary.csv")
    count = {(row["part"], row["what"]): row["count"] for row in rows}
    for row in read_rows(folder / "inputs.csv"):
        if row["outcome"] not in ("clear", "right"):
            sys.stdout.write(f"{row['outcome']:9} {row['case']}: {row['detail']}\n")
    for row in (*read_rows(folder / "resources.csv"), *read_rows(folder / "kills.csv")):
        if row.get("survived") == "0" or any(
            int(row.get(name, 0)) for name in ("lost", "half_made", "unequal")
        ):
            sys.stdout.write(f"fault     {row}\n")
    for part in ("kills", "resources", "inputs"):
        told = ", ".join(f"{row['what']} {row['count']}" for row in rows if row["part"] == part)
        sys.stdout.write(f"{part}: {told}\n")
    sys.stdout.write(f"seed {options.seed}, {time.monotonic() - started:.0f} s\n")
    faults = [count["kills", name] for name in ("lost", "half_made", "unequal")]
    faults += [count["inputs", name] for name in ("traceback", "silent", "hung")]
    return int(any(faults) or count["resources", "tried"] != count["resources", "survived"])


if __name__ == "__main__":
    sys.exit(main())
