"""Writing files so that a half-written file is never taken for a finished one."""

import csv
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from defaug_utils.core.texts import guard_cell, unguard_cell

if TYPE_CHECKING:  # these are imported late: the engine starts in a second less without them
    import numpy as np
    import pandas as pd

RUST_ERROR = re.compile(r"\(os error (\d+)\)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space left, quota exceeded, file too large
LOCK_SECONDS = 30.0  # reading and writing a manifest takes far less


@contextmanager
def explain_full_disk(path: Path | str) -> Iterator[None]:
    """Turn the system's "no space left" into a message that names the file and what to do."""
    try:
        yield
    except Exception as error:
        told = RUST_ERROR.search(str(error))  # safetensors has an error of its own
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number not in FULL:
            raise
        raise OSError(
            number,
            f"the disk is full: {path} was not written (a previous version is kept); "
            "free some space and run again, finished work is kept",
        ) from error


@contextmanager
def explain_read_only(
    folder: Path | str, lost: str, advice: str = "choose another folder, or allow writing and try again"
) -> Iterator[None]:
    """Turn the system's write errors into a PermissionError that says what was lost and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise
        raise PermissionError(f"{folder} can't be written to ({error}): {lost}; {advice}") from error


@contextmanager
def write_atomically(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path with the same suffix, and rename it to `path` if the block succeeds.

    A missing folder is created. If the disk is full or the folder can't be written to, `path` keeps its
    previous content and an OSError is raised.
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
def stage_folder(target: Path | str) -> Iterator[Path]:
    """Yield a hidden folder next to the target, which replaces it if the block succeeds."""
    target = Path(target)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    former = staging.with_suffix(".old")
    try:
        staging.mkdir(parents=True)
        with explain_full_disk(target):
            yield staging
        if target.exists():
            target.rename(former)
        staging.rename(target)
    except BaseException:
        if former.exists():
            former.rename(target)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


@contextmanager
def lock_file(path: Path | str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Let one process at a time read, change and write a file, which need not exist yet; others wait.

    It is a system lock on a hidden file next to `path`, released when its process ends. A TimeoutError is
    raised after `seconds` of waiting: 0 for long work, which must not be begun twice. Readers need no lock,
    because files are renamed into place.
    """
    path = Path(path)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=seconds):
            yield
    except Timeout as error:
        raise TimeoutError(
            f"{path} is in use by another process and was not changed: wait until it has finished, then try "
            "again"
        ) from error


def stamp_file(path: Path | str) -> tuple[int, ...]:
    """Values that change with every new version of a file; empty if there is no file."""
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def append_line(path: Path | str, line: bytes) -> None:
    """Append a line to a journal, on a new line if a killed process left a torn one behind."""
    with explain_full_disk(path), Path(path).open("a+b") as journal:
        if journal.tell():
            journal.seek(-1, os.SEEK_END)
            if journal.read(1) != b"\n":
                journal.write(b"\n")
        journal.write(line + b"\n")


def read_journal(path: Path | str) -> Iterator[Any]:
    """The JSON values of a journal, which may be missing; torn or damaged lines are skipped."""
    with suppress(FileNotFoundError), Path(path).open(encoding="utf-8", errors="replace") as journal:
        for line in journal:
            with suppress(ValueError, RecursionError):
                yield json.loads(line)


def write_png(path: Path | str, pixels: "np.ndarray") -> None:
    """Write a uint8 or (grey) uint16 image, or a bool mask as 0 / 255, as PNG."""
    from PIL import Image

    if pixels.dtype == bool:
        pixels = pixels.astype("uint8") * 255
    if pixels.dtype not in ("uint8", "uint16"):
        raise ValueError(f"{path}: expected uint8, uint16 or bool pixels, got {pixels.dtype}")
    with write_atomically(path) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=1)


def write_json(path: Path | str, content: object) -> None:
    """Write indented JSON with sorted keys; NaN is refused, because JSON doesn't support it."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(table: "pd.DataFrame", path: Path | str) -> None:
    """Write a table as CSV at full precision, atomically; `read_csv` reads it back.

    Text that a spreadsheet would interpret as a formula gets a leading apostrophe.
    """
    guarded = _change_texts(table, guard_cell)
    has_return = guarded.map(lambda cell: isinstance(cell, str) and "\r" in cell).any(axis=None)
    quoting = csv.QUOTE_NONNUMERIC if has_return else csv.QUOTE_MINIMAL  # so that it can start a row
    with write_atomically(path) as temporary:
        guarded.to_csv(temporary, index=False, quoting=quoting)


def read_csv(path: Path | str, **options: Any) -> "pd.DataFrame":
    """Read a table written by `write_csv`; `options` are those of pandas' reader.

    Raises a ValueError if the file is not text, or if a row has more cells than the header.
    """
    import pandas as pd

    table = pd.read_csv(path, **{"low_memory": False} | options)  # in pieces, a column could have two types
    if len(table) and "index_col" not in options and not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{path}: some rows have more cells than the header")  # pandas shifts them
    return _change_texts(table, unguard_cell)


def _change_texts(table: "pd.DataFrame", change: Callable[[str], str]) -> "pd.DataFrame":
    """The table with every text in it changed; each column keeps its type."""
    import pandas as pd

    changed = table.copy()
    for name, column in table.items():
        if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
            cells = [change(cell) if isinstance(cell, str) else cell for cell in column.astype(object)]
            changed[name] = pd.Series(cells, table.index, column.dtype)
    return changed
