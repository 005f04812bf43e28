"""Leaks: results of runs whose generated images knew real defects that their scenario may not know.

The mark is computed from the rows that a run was trained on: each generated row says where its mask came
from, and `is_leak` says which scenarios may not know that.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from defaug_utils.core.manifest import read_manifest
from defaug_utils.core.runs import SCENARIOS
from defaug_utils.masks.sources import is_leak

LEAK_MARK = "†"
LEAK_NOTE = f"{LEAK_MARK} a leak: masks of real training defects that this scenario may not know."
UNKNOWN = "unknown"


def find_leaks(rows: pd.DataFrame, scenario: str) -> str:
    """The mask sources of a training set or a pool that a scenario may not know.

    Args:
        rows: of its manifest.
        scenario: "zero-shot", "few-shot" or "full-shot".

    Returns:
        Their words, with commas between; empty where nothing leaks.
    """
    sources = sorted(set(rows["mask_source"]) - {""})
    return ", ".join(source for source in sources if is_leak(source, scenario))


def find_leaking_scenarios(rows: pd.DataFrame, scenarios: Iterable[str] = SCENARIOS) -> list[str]:
    """The scenarios, of those that a pool serves, in which its images are a leak."""
    return [scenario for scenario in scenarios if find_leaks(rows, scenario)]


def find_run_leaks(training_set: Path | str, scenario: str) -> str:
    """What `find_leaks` says of a stored training set, or "unknown" where the file is gone."""
    path = Path(training_set)
    return find_leaks(read_manifest(path), scenario) if path.is_file() else UNKNOWN


def join_leaks(leaks: pd.Series) -> str:
    """The leaks of several runs as one text, each once; runs of which nothing is known add nothing."""
    words = [word for leak in leaks for word in leak.split(", ")]
    return ", ".join(sorted(set(words) - {"", UNKNOWN}))


def mark_label(label: str, leak: object) -> str:
    """A label with the mark behind it where something leaks."""
    return f"{label} {LEAK_MARK}" if is_marked(leak) else label


def is_marked(leak: object) -> bool:
    """Tell whether a cell of the column `leak` stands for a leak."""
    return isinstance(leak, str) and leak not in ("", UNKNOWN)
