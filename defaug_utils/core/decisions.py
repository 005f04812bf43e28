"""Decisions on a pool's images: an append-only log next to the manifest, one line per decision.

An image's last line counts. `review.csv` belongs to the manifest: `read_manifest` shows both as one, and
`fold_decisions` moves the log into the table. `review-<name>.csv` belongs to one reviewer and stays. A
decision therefore costs the same in a pool of any size, and a killed process leaves at most one torn line.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from defaug_utils.core.files import append_line, write_atomically
from defaug_utils.core.texts import guard_cell, unguard_cell

DECISIONS_FILE = "review.csv"
LOG_COLUMNS = ("reviewer", "image", "seed", "recipe", "accepted", "note", "time")
WORDS = {"true": True, "false": False, "": None}


class ReviewStoreError(ValueError):
    """A decision can't be stored, or a file of decisions does not belong to its pool."""


class ImageReview(NamedTuple):
    """A reviewer's decision on an image; `accepted` is None while it is open."""

    accepted: bool | None = None
    note: str = ""


class LogEntry(NamedTuple):
    """One line of a log; `identity` is the image's seed and recipe, see `identify_images`."""

    image: str
    identity: tuple[str, str]
    review: ImageReview
    reviewer: str = ""
    time: str = ""


def identify_images(pool: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Seed and recipe of each image, as text: they distinguish it from another image of the same name."""
    seeds = pool["seed"].astype("string").fillna("")
    return dict(zip(pool["image"], zip(seeds, pool["recipe"], strict=True), strict=True))


def match_entries(
    entries: Iterable[LogEntry], identities: Mapping[str, tuple[str, str]]
) -> tuple[dict[str, ImageReview], list[LogEntry]]:
    """The last decision on every image of a pool, and the entries that belong to none of its images."""
    known, foreign = {}, []
    for entry in entries:
        if identities.get(entry.image) == entry.identity:
            known[entry.image] = entry.review
        else:
            foreign.append(entry)
    return known, foreign


class DecisionLog:
    """A log that is read incrementally. A missing file (`path`) means that nothing has been decided."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._names, self._end, self._inode = list(LOG_COLUMNS), 0, 0

    @property
    def is_replaced(self) -> bool:
        """Whether the file was replaced since it was read, so that it must be read from the beginning."""
        if not self._end or not self.path.is_file():
            return self._end > 0
        found = self.path.stat()
        return found.st_ino != self._inode or found.st_size < self._end

    def read_new(self) -> list[LogEntry]:
        """The entries since the last call, without a line that a killed process left unfinished.

        Raises a ReviewStoreError that lists every unreadable line.
        """
        if not self.path.is_file():
            return []
        with self.path.open("rb") as stream:
            inode = os.fstat(stream.fileno()).st_ino
            stream.seek(self._end)
            content = stream.read()
        try:
            lines = [next(csv.reader([line]), []) for line in content.decode("utf-8-sig").split("\n")]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ReviewStoreError(f"review {self.path} is not a readable table: {error}") from error
        names = self._names if self._end else lines.pop(0)
        problems = [f"column {name} is missing" for name in LOG_COLUMNS if name not in names]
        rows = [dict(zip(names, line, strict=False)) for line in lines if len(line) >= len(names)]
        problems = problems or [
            f"row {number}: accepted is {row['accepted']!r}, expected empty, true or false"
            for number, row in enumerate(rows)
            if row["accepted"].lower() not in WORDS
        ]
        if problems:
            raise ReviewStoreError(f"review {self.path}: {'; '.join(problems)}")
        self._names, self._inode = names, inode
        self._end += content.rfind(b"\n") + 1
        return [_parse_row(row) for row in rows]

    def append(self, entries: Iterable[LogEntry]) -> None:
        """Append entries; call it right after `read_new`, while holding the lock."""
        if not self.path.is_file():
            self.rewrite([])
        append_line(self.path, _make_lines(self._format_entry(entry) for entry in entries))

    def rewrite(self, entries: Iterable[LogEntry]) -> None:
        """Replace all entries, atomically."""
        lines = [self._names, *map(self._format_entry, entries)]
        with write_atomically(self.path) as temporary:
            temporary.write_bytes(_make_lines(lines) + b"\n")

    def _format_entry(self, entry: LogEntry) -> list[str]:
        """A line in the order of the file's columns, which a user may have changed."""
        accepted = "" if entry.review.accepted is None else str(entry.review.accepted).lower()
        told = (entry.reviewer, entry.image, *entry.identity, accepted, entry.review.note, entry.time)
        known = dict(zip(LOG_COLUMNS, map(guard_cell, told), strict=True))
        return [known.get(name, "") for name in self._names]


def _parse_row(row: dict[str, str]) -> LogEntry:
    row = {name: unguard_cell(cell) for name, cell in row.items()}
    review = ImageReview(WORDS[row["accepted"].lower()], row["note"])
    return LogEntry(row["image"], (row["seed"], row["recipe"]), review, row["reviewer"], row["time"])


def _make_lines(rows: Iterable[Iterable[str]]) -> bytes:
    """Rows as CSV, without the final newline."""
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()[:-1]
