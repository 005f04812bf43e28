"""Look for faults: `make faults`, or `PYTHONPATH=tests python scripts/faults.py runs/faults --seed 1`.

Broken inputs go to the readers that users reach, each in a process of its own. Results go to `inputs.csv` in
the folder, one row a case as soon as it is known, so that an interrupted campaign goes on; the summary comes
at the end. Another seed needs another folder.
"""

import argparse
import csv
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fault_parts import archives, pictures, tables, weights
from fault_parts.judging import OUTCOMES, try_case

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
        detail = " ".join(verdict.detail.split())[:300].encode("utf-8", "replace").decode()
        add_row(path, dict(zip(COLUMNS, (name, verdict.outcome, round(seconds, 2), detail), strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/faults"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--sample", type=int, default=0, help="so many inputs, drawn by the seed; 0 for all")
    parser.add_argument("--only", default="", help="inputs with this in their name")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    claim_folder(options.folder, {"seed": options.seed, "sample": options.sample}, "a campaign")
    deadline = time.monotonic() + 60 * options.minutes
    try_inputs(options.folder, options.seed, options.sample, deadline, options.only)
    rows = read_rows(options.folder / "inputs.csv")
    counts = Counter(row["outcome"] for row in rows)
    for row in rows:
        if row["outcome"] not in ("clear", "right"):
            sys.stdout.write(f"{row['outcome']:9} {row['case']}: {row['detail'][:160]}\n")
    told = ", ".join(f"{outcome} {counts[outcome]}" for outcome in OUTCOMES)
    sys.stdout.write(f"inputs: tried {len(rows)}, {told}\n")
    return int(any(counts[outcome] for outcome in ("traceback", "silent", "hung")))


if __name__ == "__main__":
    sys.exit(main())
