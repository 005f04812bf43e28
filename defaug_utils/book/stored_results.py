"""Results of a finished run as small files: tables and their provenance, no images or weights."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd

from defaug_utils.book.pool_times import measure_pool_times
from defaug_utils.book.session import WATERMARK_TYPE, describe_machine
from defaug_utils.core.files import read_csv, stage_folder, write_csv, write_json
from defaug_utils.core.guards import raise_problems
from defaug_utils.report.results import METRICS, SETUP, gather_results, list_unfinished
from defaug_utils.report.tables import RUN_COLUMNS

RUNS, PIXELS = "classifier_runs.csv", "pixel_runs.csv"
QUALITY, TIMES, PROVENANCE = "pool_quality.csv", "pool_times.csv", "provenance.json"
LAST_NOTEBOOK, PIXEL_NOTEBOOK = "08_results", "09_pixel_level"
FURTHER_COLUMNS = (
    *("auroc", "final_loss", "at_chance"),
    *("n_train", "n_train_positive", "seconds"),
)
OWN_OF_A_RUN = ("scenario", "arm", "n_aug", "training_seed", "pool_of_seed")
DIGITS = 6


class StoreError(ValueError):
    """A run's results can't be stored as requested."""


def store_results(run_folder: Path | str, shelf: Path | str, name: str, command: str) -> dict:
    """Write the tables of a finished run and their provenance to a folder, replacing previous content.

    Args:
        run_folder: the run's folder, with all notebooks executed.
        shelf: folder of all stored results, such as `book/stored`.
        name: of the folder in it to write to; lower-case letters, digits, - and _.
        command: the one that made the run, for the provenance, which is returned.

    Raises:
        StoreError: the name is invalid, or the run has not finished; says what is missing.
        ResultsError: metrics of finished runs are broken or can't be compared.
    """
    run_folder, target = Path(run_folder), Path(shelf) / name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise StoreError(f"name {name!r}: expected lower-case letters, digits, - and _")
    _check_finished(run_folder)
    runs, provenance = gather_results(run_folder), describe_run(run_folder, command)
    columns = dict.fromkeys([*RUN_COLUMNS, *METRICS, *FURTHER_COLUMNS, *SETUP])
    made = [name for name in (PIXELS, QUALITY) if (run_folder / name).is_file()]  # of the last two notebooks
    tables = {RUNS: runs[[name for name in columns if name in runs]].round(DIGITS)}
    tables |= {name: read_csv(run_folder / name) for name in made}
    times = measure_pool_times(run_folder)
    tables |= {TIMES: times} if len(times) else {}
    with stage_folder(target) as staging:
        for file_name, table in tables.items():
            write_csv(table, staging / file_name)
        write_json(staging / PROVENANCE, provenance)
    return provenance


def _check_finished(run_folder: Path) -> None:
    """Refuse a run with classifiers without metrics, failed notebooks, or unexecuted results notebooks."""
    needed = [LAST_NOTEBOOK, *([PIXEL_NOTEBOOK] if (run_folder / "segmenter").is_dir() else [])]
    waiting = list_unfinished(run_folder)
    problems = [f"{len(waiting)} runs have no metrics: {', '.join(waiting[:5])} …"] if waiting else []
    executed = [run_folder / "notebooks" / f"{name}.ipynb" for name in needed]
    problems += [f"{path} is missing: it has not been executed" for path in executed if not path.is_file()]
    problems += [f"{path} failed" for path in sorted(run_folder.glob("notebooks/**/*.failed.ipynb"))]
    advice = "run the same command again to resume it"
    raise_problems(f"run {run_folder} has not finished ({advice})", problems, StoreError)


def describe_run(run_folder: Path | str, command: str) -> dict:
    """The provenance of a run's results, from the watermarks of its executed notebooks.

    `seconds` are their wall times by path, `notebook_seconds` the sum; `versions` are the last notebook's,
    with this machine's processor and memory if the notebook doesn't tell its own. Parameters that differ
    between executions of a notebook are omitted. Raises a StoreError that lists notebooks without watermark.
    """
    folder = Path(run_folder) / "notebooks"
    read = {path: nbformat.read(path, as_version=4) for path in sorted(folder.rglob("*.ipynb"))}
    marks = {path.relative_to(folder): _read_watermark(notebook) for path, notebook in read.items()}
    unmarked = [f"{folder / name}: delete it and run it again" for name, mark in marks.items() if not mark]
    raise_problems(f"watermarks of {folder}", unmarked, StoreError)
    parameters: dict[str, dict] = {}
    for name, mark in marks.items():
        values = mark["parameters"].items()
        shared = {key: _shorten(value) for key, value in values if key not in OWN_OF_A_RUN}
        parameters.setdefault(Path(name.parts[0]).stem, shared)
    times = [notebook.metadata.papermill for notebook in read.values()]
    names = [name.with_suffix("").as_posix() for name in marks]
    return {
        "name": Path(run_folder).name,
        "command": command,
        "notebooks": len(read),
        "started": min(entry.start_time for entry in times)[:19],
        "finished": max(entry.end_time for entry in times)[:19],
        "seconds": {name: round(entry.duration, 1) for name, entry in zip(names, times, strict=True)},
        "notebook_seconds": round(sum(entry.duration for entry in times)),
        "versions": describe_machine() | marks[Path(f"{LAST_NOTEBOOK}.ipynb")]["versions"],
        "commits": sorted({mark["commit"] for mark in marks.values()}),
        "parameters": parameters,
    }


def _read_watermark(notebook: nbformat.NotebookNode) -> dict | None:
    """The values of `session.Watermark` in the output of a notebook's last cell."""
    bundles = (output.get("data", {}) for output in notebook.cells[-1].get("outputs", []))
    return next((bundle[WATERMARK_TYPE] for bundle in bundles if WATERMARK_TYPE in bundle), None)


def _shorten(value: object) -> object:
    """Shorten an absolute path to its last part."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def read_stored(folder: Path | str) -> tuple[dict[str, pd.DataFrame], dict]:
    """Tables (by file name) and provenance that `store_results` wrote; a FileNotFoundError without any."""
    folder = Path(folder)
    if not (folder / PROVENANCE).is_file():
        raise FileNotFoundError(f"there are no stored results in {folder}: run scripts/store_results.py")
    words = dict.fromkeys(("leak", "masks", "leaks_in", "weights"), str)
    tables = {path.name: read_csv(path, dtype=words) for path in sorted(folder.glob("*.csv"))}
    tables = {name: table.fillna(dict.fromkeys(words, "")) for name, table in tables.items()}
    return tables, json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
