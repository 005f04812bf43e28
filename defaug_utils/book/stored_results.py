"""Results of a finished run kept as small files: tables and where they come from, no image, no weight."""

import json
import math
import re
import shutil
from datetime import datetime
from pathlib import Path

import nbformat
import pandas as pd

from defaug_utils.book.profiles import read_defaults
from defaug_utils.core.files import write_csv, write_json
from defaug_utils.report.reports import RUN_COLUMNS
from defaug_utils.report.results import METRICS, SETUP, gather_results, list_unfinished

RUNS, PIXELS = "classifier_runs.csv", "pixel_runs.csv"
QUALITY, PROVENANCE = "pool_quality.csv", "provenance.json"
LAST_NOTEBOOK, PIXEL_NOTEBOOK = "08_results", "09_pixel_level"
FURTHER_COLUMNS = ("auroc", "final_loss", "n_train", "n_train_positive", "seconds")
OWN_OF_A_RUN = ("scenario", "arm", "n_aug", "training_seed", "pool_of_seed")
DIGITS = 6
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_ROW = re.compile(r"<td>([^<]*)</td>\s*<td>([^<]*)</td>")


class StoreError(ValueError):
    """A run's results can't be stored as asked."""


def store_results(run_folder: Path | str, shelf: Path | str, name: str, command: str) -> dict:
    """Write the tables of a finished run and their provenance to a folder; what it held before is replaced.

    Args:
        run_folder: the run's folder, every notebook of it executed.
        shelf: folder of all stored results, such as `book/stored`.
        name: of the folder in it to write to.
        command: the one that made the run.

    Returns:
        The provenance: see `describe_run`.

    Raises:
        StoreError: the name has other signs than small letters, digits, - and _, or the run has not
            finished; says what is missing.
        ResultsError: as `gather_results`.
    """
    run_folder, target = Path(run_folder), Path(shelf) / name
    if not _NAME.fullmatch(name):
        raise StoreError(f"name {name!r}: expected small letters, digits, - and _")
    check_finished(run_folder)
    runs, provenance = gather_results(run_folder), describe_run(run_folder, command)
    columns = list(dict.fromkeys([*RUN_COLUMNS, *METRICS, *FURTHER_COLUMNS, *SETUP]))
    tables = {RUNS: runs[[name for name in columns if name in runs]].round(DIGITS)}
    for made in (PIXELS, QUALITY):  # by the last two notebooks
        if (run_folder / made).is_file():
            tables[made] = pd.read_csv(run_folder / made)
    shutil.rmtree(target, ignore_errors=True)
    for file_name, table in tables.items():
        write_csv(table, target / file_name)
    write_json(target / PROVENANCE, provenance)
    return provenance


def check_finished(run_folder: Path | str) -> None:
    """Refuse a run that is not finished.

    Raises:
        StoreError: runs have no metrics, a notebook failed, or that of the results (or, where detectors of
            defect pixels were begun, that of these) has not been executed.
    """
    run_folder = Path(run_folder)
    needed = [LAST_NOTEBOOK, *([PIXEL_NOTEBOOK] if (run_folder / "segmenter").is_dir() else [])]
    advice = "type the command of the run again, it goes on where it stopped"
    waiting = list_unfinished(run_folder) if run_folder.is_dir() else []
    problems = [f"{len(waiting)} runs have no metrics: {', '.join(waiting[:5])} …"] if waiting else []
    executed = [run_folder / "notebooks" / f"{name}.ipynb" for name in needed]
    problems += [f"{path} is missing: it has not been executed" for path in executed if not path.is_file()]
    problems += [f"{path} failed" for path in sorted(run_folder.glob("notebooks/**/*.failed.ipynb"))]
    if problems:
        raise StoreError(
            f"run {run_folder} has not finished ({advice}):\n" + "\n".join(f"  - {p}" for p in problems)
        )


def describe_run(run_folder: Path | str, command: str) -> dict:
    """Where a run's results come from, read from its executed notebooks.

    Returns:
        name of the run's folder, command, notebooks (how many were executed), started and finished (the
        first and the last moment, UTC), notebook_seconds (their wall times added up), versions (of the
        last notebook's watermark, with device and system), commits (of all watermarks), and parameters
        (by notebook; those that differ between a notebook's executions are left out).
    """
    run_folder = Path(run_folder)
    folder = run_folder / "notebooks"
    executed = {path.relative_to(folder): path for path in sorted(folder.rglob("*.ipynb"))}
    read = {name: nbformat.read(path, as_version=4) for name, path in executed.items()}
    times = [notebook.metadata.papermill for notebook in read.values()]
    marks = {name: _read_watermark(notebook) for name, notebook in read.items()}
    last = marks[Path(f"{LAST_NOTEBOOK}.ipynb")]
    parameters: dict[str, dict] = {}
    for name, notebook in read.items():
        chapter = Path(name.parts[0]).stem
        if chapter not in parameters:
            parameters[chapter] = _read_parameters(executed[name], notebook)
    known = {word for values in parameters.values() for word in values}
    return {
        "name": run_folder.name,
        "command": command,
        "notebooks": len(read),
        "started": min(entry.start_time for entry in times)[:19],
        "finished": max(entry.end_time for entry in times)[:19],
        "notebook_seconds": round(sum(entry.duration for entry in times)),
        "versions": {what: value for what, value in last.items() if what not in {*known, "commit"}},
        "commits": sorted({mark["commit"] for mark in marks.values() if "commit" in mark}),
        "parameters": parameters,
    }


def _read_watermark(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """The rows of the table that `session.watermark` shows at a notebook's end."""
    for cell in reversed(notebook.cells):
        for output in cell.get("outputs", []):
            found = dict(_ROW.findall(output.get("data", {}).get("text/html", "")))
            if "Python" in found:
                return found
    return {}


def _read_parameters(path: Path, notebook: nbformat.NotebookNode) -> dict:
    """A notebook's parameters as it was executed: its defaults, the injected values on top."""
    values = read_defaults(path.stem, path.parent) | dict(notebook.metadata.papermill.parameters)
    return {name: _shorten(value) for name, value in values.items() if name not in OWN_OF_A_RUN}


def _shorten(value: object) -> object:
    """A path of somebody's machine shrinks to its last part."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def read_stored(folder: Path | str) -> tuple[dict[str, pd.DataFrame], dict]:
    """Tables (by file name) and provenance that `store_results` wrote.

    Raises:
        FileNotFoundError: the folder has no stored results.
    """
    folder = Path(folder)
    if not (folder / PROVENANCE).is_file():
        raise FileNotFoundError(f"no stored results in {folder}: run scripts/store_results.py")
    words = dict.fromkeys(("leak", "masks", "leaks_in", "weights"), str)
    tables = {path.name: pd.read_csv(path, dtype=words) for path in sorted(folder.glob("*.csv"))}
    for table in tables.values():
        present = [name for name in words if name in table]
        table[present] = table[present].fillna("")
    return tables, json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))


def hours_between(provenance: dict) -> float:
    """Hours from the first notebook's start to the last one's end."""
    start, end = (datetime.fromisoformat(provenance[name]) for name in ("started", "finished"))
    return math.nan if end < start else (end - start).total_seconds() / 3600
