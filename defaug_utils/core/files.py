"""Writing files so that nothing half-written is ever taken for done."""

import csv
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image

from defaug_utils.core.texts import guard_cell, unguard_cell

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space left, the user's share used up, a file too large
LOCK_SECONDS = 30.0  # reading and writing a manifest takes a small part of this


@contextmanager
def explain_full_disk(path: Path | str) -> Iterator[None]:
    """Turn the system's "no space left" into a message that names the file and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            error.errno,
            f"the disk is full: {path} was not written (a former version is kept); "
            "free some space and run again, what is finished is kept",
        ) from error


@contextmanager
def explain_read_only(
    folder: Path | str, lost: str, advice: str = "choose another folder, or allow writing and try again"
) -> Iterator[None]:
    """Turn the system's refusals to write into a PermissionError that says what was lost, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise
        raise PermissionError(f"{folder} can't be written to ({error}): {lost}; {advice}") from error


@contextmanager
def write_atomically(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`, with the same suffix, renamed to it when the block ends well.

    The folder is made when missing. Where the disk is full or the folder can't be written, `path` keeps its
    former content, and an OSError says so.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    with explain_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def lock_file(path: Path | str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Let one process at a time read, change and write a file, which need not exist yet; others wait.

    The lock is the system's, on a hidden file beside `path`, and ends with the process that holds it; after
    `seconds` without it there is a TimeoutError. Those who only read need none: files are renamed into place.
    """
    path = Path(path)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=seconds):
            yield
    except Timeout as error:
        raise TimeoutError(
            f"{path} has been in use by another process for {seconds:g} seconds and was not changed: "
            "wait until that one is done, then try again"
        ) from error


def stamp_file(path: Path | str) -> tuple[int, ...]:
    """What changes with every new version of a file; empty while there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def append_line(path: Path | str, line: bytes) -> None:
    """Append a line to a journal, starting a new one where a killed process left a torn line behind."""
    with explain_full_disk(path), Path(path).open("a+b") as journal:
        if journal.tell():
            journal.seek(-1, os.SEEK_END)
            if journal.read(1) != b"\n":
                journal.write(b"\n")
        journal.write(line + b"\n")


def read_journal(path: Path | str) -> Iterator[Any]:
    """The JSON values of a journal that may be missing; a line torn by a kill, or damaged, is passed over."""
    with suppress(FileNotFoundError), Path(path).open(encoding="utf-8", errors="replace") as journal:
        for line in journal:
            with suppress(ValueError, RecursionError):
                yield json.loads(line)


def write_png(path: Path | str, pixels: np.ndarray) -> None:
    """Write a uint8 or (grey) uint16 image, or a bool mask as 0 / 255, as PNG."""
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: expected uint8, uint16 or bool pixels, got {pixels.dtype}")
    with write_atomically(path) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=1)


def write_json(path: Path | str, content: object) -> None:
    """Write indented JSON with sorted keys; NaN is refused, since JSON has none."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(table: pd.DataFrame, path: Path | str) -> None:
    """Write a table as CSV at full precision, whole or not at all; `read_csv` reads it back.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    guarded = _change_texts(table, guard_cell)
    has_return = guarded.map(lambda cell: isinstance(cell, str) and "\r" in cell).any(axis=None)
    quoting = csv.QUOTE_NONNUMERIC if has_return else csv.QUOTE_MINIMAL  # which lets it begin a row
    with write_atomically(path) as temporary:
        guarded.to_csv(temporary, index=False, quoting=quoting)


def read_csv(path: Path | str, **options: Any) -> pd.DataFrame:
    """Read a table that `write_csv` wrote, with the options of pandas's reader.

    A ValueError tells that it is no table: no text, or rows with more cells than the head has names.
    """
    table = pd.read_csv(path, **options)
    if len(table) and "index_col" not in options and not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{path}: rows have more cells than the first line has names")  # pandas shifts them
    return _change_texts(table, unguard_cell)


def _change_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with every text in it changed; each column keeps its type."""
    changed = table.copy()
    for name, column in table.items():
        if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
            cells = [change(cell) if isinstance(cell, str) else cell for cell in column.astype(object)]
            changed[name] = pd.Series(cells, table.index, column.dtype)
    return changed
