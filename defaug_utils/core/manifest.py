"""The manifest: a table with one row per image that every stage reads and writes."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd

from defaug_utils.core.decisions import DECISIONS_FILE, DecisionLog, LogEntry, identify_images, match_entries
from defaug_utils.core.files import append_line, read_csv, read_journal, stamp_file, write_csv
from defaug_utils.core.guards import check_demands, raise_problems
from defaug_utils.core.origins import ORIGINS, REAL

COLUMNS = (
    *("image", "mask", "label", "split", "origin", "category", "defect_type"),
    *("source_image", "mask_source", "prompt", "seed", "recipe"),  # of generated images
    *("accepted", "reviewer_note"),  # of reviewed images
)
LABELS = ("negative", "positive")
SPLITS = ("train", "val", "test")
SOURCE_COLUMNS = ("source_image", "defect_source")  # where a row names the real images it was made from
ADDED_FILE = "added.jsonl"  # next to a manifest: rows that were added one by one, see `add_row`
PLAIN_PATH = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # needs no closer look, see `is_inside`


class ManifestError(ValueError):
    """A manifest, or a file that it lists, breaks the contract."""


def image_seed(pool_seed: int, index: int) -> int:
    """Seed of image `index` of a pool, in [0, 2**63): the same whatever the batch size, shard or restart."""
    state = np.random.SeedSequence([pool_seed, index]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def make_manifest(rows: Iterable[dict] | pd.DataFrame) -> pd.DataFrame:
    """Build a manifest from row dictionaries or a table; missing columns are empty, extra ones are kept.

    Raises a ManifestError that lists every invalid seed and `accepted`.
    """
    manifest = (
        rows.astype(object) if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), dtype=object)
    )
    further = [column for column in manifest.columns if column not in COLUMNS]
    manifest = manifest.reindex(columns=[*COLUMNS, *further])
    problems: list[str] = []
    for column in COLUMNS:
        parse, empty, dtype = PARSERS.get(column, (str, "", "str"))
        values = []
        for row, value in enumerate(manifest[column].astype(object)):
            try:
                values.append(empty if pd.isna(value) or value == "" else parse(value))
            except ValueError as error:
                values.append(empty)
                problems.append(f"row {row}: column {column}: {value!r} {error}")
        manifest[column] = pd.array(values, dtype=dtype)
    raise_problems("manifest", problems, ManifestError)
    manifest[further] = manifest[further].infer_objects()
    return manifest


def _parse_seed(value: object) -> int:
    digits = str(value).removesuffix(".0")
    if not digits.isdecimal() or int(digits) >= 2**63:
        raise ValueError("is not a whole number in 0 … 2**63 - 1")
    return int(digits)


def _parse_accepted(value: object) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError("is not empty, true or false")
    return str(value).lower() == "true"


PARSERS = {"seed": (_parse_seed, None, "Int64"), "accepted": (_parse_accepted, None, "boolean")}


def read_manifest(path: Path | str, check_files: bool = False) -> pd.DataFrame:
    """Read and validate a manifest; `check_files` also demands that every listed image and mask exists.

    Returns:
        One row per image, with `COLUMNS` and any further columns of the file; paths are relative to its
        folder. Added rows and decisions that are still in the journals next to it are included.

    Raises:
        FileNotFoundError: there is no such file.
        ManifestError: lists every broken row, see `validate_manifest`.
        ReviewStoreError: the log of decisions can't be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no manifest at {path}: run the notebook that makes it first")
    log = DecisionLog(path.with_name(DECISIONS_FILE))  # read before the table, into which it may be folded
    entries = log.read_new() if path.name == "manifest.csv" else []
    added = list(read_journal(path.with_name(ADDED_FILE))) if path.name == "manifest.csv" else []
    try:
        table = read_csv(path, dtype=dict.fromkeys(COLUMNS, str), keep_default_na=False, na_values=[""])
        check_demands("columns", {f"column {column} is missing": column in table for column in COLUMNS})
        known = set(table["image"]) if added else ()
        new = [row for row in added if isinstance(row, dict) and row.get("image", "") not in known]
        manifest = make_manifest([*table.to_dict("records"), *new] if new else table)
    except ValueError as error:  # all errors of the reader are ValueErrors
        raise ManifestError(f"manifest {path} is not a readable table: {error}") from error
    _show_decisions(manifest, entries)
    validate_manifest(manifest, path, check_files)
    return manifest


def _show_decisions(manifest: pd.DataFrame, entries: list[LogEntry]) -> list[LogEntry]:
    """Copy decisions into their rows; return those on images that are not in the manifest."""
    if not entries:
        return []
    reviews, foreign = match_entries(entries, identify_images(manifest))
    is_reviewed = manifest["image"].isin(list(reviews))
    found = [reviews[image] for image in manifest["image"][is_reviewed]]
    manifest.loc[is_reviewed, "accepted"] = pd.array([review.accepted for review in found], dtype="boolean")
    manifest.loc[is_reviewed, "reviewer_note"] = pd.array([review.note for review in found], dtype="str")
    return foreign


def fold_decisions(path: Path | str) -> pd.DataFrame:
    """Read a pool's manifest and move what the journals hold into it; the caller must hold the lock.

    Call this before changing decisions in the manifest, or the log would override them. Decisions on unknown
    images stay in the log.
    """
    added = Path(path).with_name(ADDED_FILE)
    log = DecisionLog(Path(path).with_name(DECISIONS_FILE))
    entries, manifest = log.read_new(), read_manifest(path)
    if entries or added.is_file():
        write_manifest(manifest, path)
        added.unlink(missing_ok=True)
    if entries:
        if left := _show_decisions(manifest, entries):
            log.rewrite(left)
        else:
            log.path.unlink()
    return manifest


def add_row(row: dict, path: Path | str) -> None:
    """Add a row of JSON values to a manifest without rewriting it; the caller must hold the lock.

    It goes to a journal that `read_manifest` includes and `fold_decisions` merges; without a manifest, it
    starts one. Its image must be new. Raises a ManifestError that says what is wrong with it.
    """
    path, journal = Path(path), Path(path).with_name(ADDED_FILE)
    added = make_manifest([row])
    if path.is_file():
        validate_manifest(added, path)
        told = {column: value for column, value in row.items() if not pd.isna(value) and value != ""}
        append_line(journal, json.dumps(told).encode())
    else:
        journal.unlink(missing_ok=True)  # of a pool that is gone
        write_manifest(added, path)


def stamp_manifest(path: Path | str) -> tuple[int, ...]:
    """Values that change with the rows of a manifest (not with decisions); empty if there is no manifest."""
    stamp = stamp_file(path)
    return stamp and stamp + stamp_file(Path(path).with_name(ADDED_FILE))


def write_manifest(manifest: pd.DataFrame, path: Path | str) -> None:
    """Validate a manifest and write it as CSV, atomically."""
    validate_manifest(manifest, path)
    write_csv(manifest, path)


def validate_manifest(manifest: pd.DataFrame, path: Path | str, check_files: bool = False) -> None:
    """Check for known words, unique images, paths inside the folder and, if asked, existing files.

    Raises a ManifestError that lists every problem with its row.
    """
    problems = []
    for column, words in (("label", LABELS), ("split", SPLITS), ("origin", (REAL, *ORIGINS))):
        foreign = manifest[column][~manifest[column].isin(words)]
        problems += [
            f"row {row}: {column} {word!r} is not one of {', '.join(words)}" for row, word in foreign.items()
        ]
    repeated = manifest["image"][manifest["image"].duplicated()]
    problems += [f"image {image!r} is listed more than once" for image in repeated]
    folder = Path(path).parent
    for column in ("image", "mask"):
        for row, relative in manifest[column].items():
            if not relative:
                if column == "image":
                    problems.append(f"row {row}: no image")
            elif not is_inside(relative):
                problems.append(f"row {row}: {column} {relative!r} leaves the manifest's folder")
            elif check_files and not _is_file(folder / relative):
                problems.append(f"row {row}: {column} {relative!r} does not exist")
    raise_problems(f"manifest {path}", problems, ManifestError)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # for example a name that is too long
        return False


def is_inside(relative: str) -> bool:
    """Whether a stored path is relative and stays inside its folder."""
    if PLAIN_PATH.fullmatch(relative):
        return True
    path = PureWindowsPath(relative)  # handles both slashes and drives, but not "1:x" in every Python
    return not path.anchor and ".." not in path.parts and relative[1:2] != ":"


def rebase_manifest(manifest: pd.DataFrame, folder: Path | str, new_folder: Path | str) -> pd.DataFrame:
    """Rewrite paths relative to `folder` so that the manifest can be moved to `new_folder`, a parent folder.

    `source_image` still names the data set's row. Raises a ValueError if `folder` is not inside `new_folder`.
    """
    inner, outer = (Path(os.path.abspath(path)) for path in (folder, new_folder))  # `folder` may be a link
    prefix = inner.relative_to(outer)
    rebased, columns = manifest.copy(), ["image", "mask"]
    rebased[columns] = manifest[columns].map(lambda path: path and (prefix / path).as_posix())
    return rebased


def check_sources(pool: pd.DataFrame, dataset: pd.DataFrame) -> None:
    """Refuse images whose source (any of the `SOURCE_COLUMNS`) is not in the train split; lists them all."""
    rows = pool.filter(["image", *SOURCE_COLUMNS]).to_dict("records")
    refuse_sources(rows, dict(zip(dataset["image"], dataset["split"], strict=True)))


def refuse_sources(rows: Iterable[Mapping], split_of: Mapping[str, str]) -> None:
    """As `check_sources`, for rows of a pool; `split_of` gives the split of each image of the data set."""
    problems = []
    for row in rows:
        for source in (row.get(column, "") for column in SOURCE_COLUMNS):
            if not pd.isna(source) and source != "" and split_of.get(source) != "train":
                found = split_of.get(source, "unknown to the data set")
                told = f"its source {source} is {found}, only train images may be sources"
                problems.append(f"{row['image']}: {told}")
    raise_problems("generated images", problems, ManifestError)
