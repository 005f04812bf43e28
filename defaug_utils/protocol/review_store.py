"""A person's decisions on the images of a pool: stored at once, undone, never lost to another window.

Without a reviewer's name the decisions go to the pool's manifest (`accepted`, `reviewer_note`). With one they
go to a file of that person's own beside it, `review-<name>.csv`, and what others decided stays out of sight:
only so do two people judge independently. `review_agreement` compares and merges such files. (`reviews` is
about something else: the stored review of a prompt board, which zero-shot In&Out replays.)

Every change is read, merged and written anew under a lock, one image at a time, so two windows, kernels or
machines on one pool keep all decisions of both; on the same image the later one counts.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from defaug_utils.core.files import explain_read_only, lock_file, write_csv
from defaug_utils.core.manifest import raise_problems, read_manifest, write_manifest

REVIEWER_NAME = re.compile(r"[\w-]{1,40}")
REVIEW_COLUMNS = ("reviewer", "image", "seed", "recipe", "accepted", "note", "time")
WORDS = {"true": True, "false": False, "": None}
NOT_STORED = (  # what `explain_read_only` says of decisions
    "nothing was stored now, all earlier decisions are kept",
    "allow writing, or copy the pool, and decide again",
)


class ReviewStoreError(ValueError):
    """A decision that can't be stored, or a file of decisions that does not suit its pool."""


class ImageReview(NamedTuple):
    """What a reviewer said about an image: `accepted` is None while it is open."""

    accepted: bool | None = None
    note: str = ""


Change = Callable[[ImageReview], ImageReview]


class PoolReview:
    """One person's review of one pool; every decision is on the disk when the call returns.

    Attributes:
        folder: of the pool.
        reviewer: whose file the decisions go to; empty for the pool's manifest.
        path: that file.
        pool: the manifest, as of the last call.
        decisions: image → `ImageReview`, for every image of the pool, as of the last call.
    """

    def __init__(self, folder: Path | str, reviewer: str = "") -> None:
        """Open a pool.

        Args:
            folder: where its `manifest.csv` is.
            reviewer: letters, digits, `_` and `-`; see the module.

        Raises:
            FileNotFoundError: there is no pool.
            ManifestError: its manifest is broken.
            ReviewStoreError: no such name, or the reviewer's file does not suit the pool.
        """
        self.folder, self.reviewer = Path(folder), reviewer
        name = review_file_name(reviewer) if reviewer else "manifest.csv"
        self.path = self.folder / name
        self._stamp: tuple[int, ...] = ()
        self._opened: dict[str, tuple[str, str]] = {}
        self._changes: list[tuple[str, ImageReview, ImageReview]] = []
        self.decisions: dict[str, ImageReview] = {}
        self.reload()

    @property
    def undoable(self) -> int:
        """Number of changes made through this object that can be taken back."""
        return len(self._changes)

    def reload(self) -> None:
        """Read what is stored now, by whomever.

        Raises:
            FileNotFoundError, ManifestError, ReviewStoreError: as when opening; or the pool was made anew.
        """
        self._reload_pool()
        stored = read_reviewer_file(self.path, self.pool) if self.reviewer else manifest_decisions(self.pool)
        self.decisions = {image: stored.get(image, ImageReview()) for image in self._opened}

    def _reload_pool(self) -> None:
        """Read the manifest where it is another file than last time: files are renamed, never changed."""
        path = self.folder / "manifest.csv"
        stamp = _stamp(path)
        if stamp and stamp == self._stamp:
            return
        pool = read_manifest(path)
        found = identify_images(pool)
        changed = [image for image, identity in self._opened.items() if found.get(image) != identity]
        if changed:
            raise ReviewStoreError(
                f"{self.folder / 'manifest.csv'} is not the pool that was opened: {len(changed)} images are "
                f"others or gone (the first is {changed[0]}); nothing was stored, open the review again"
            )
        self.pool, self._opened, self._stamp = pool, found, stamp

    def decide(self, image: str, accepted: bool | None) -> ImageReview:
        """Accept (true), reject (false) or reopen (None) an image; its note stays.

        Args:
            image: its name in the manifest.
            accepted: the decision.

        Returns:
            What is stored now.

        Raises:
            ReviewStoreError: the pool has no such image, its file vanished, or the pool was made anew.
            PermissionError: the folder can't be written to.
            TimeoutError: another process keeps the file locked.
        """
        return self._change(image, lambda old: old._replace(accepted=accepted))

    def write_note(self, image: str, note: str) -> ImageReview:
        """Store a note on an image, its decision stays; raises what `decide` raises."""
        return self._change(image, lambda old: old._replace(note=" ".join(note.split())))

    def undo(self) -> str | None:
        """Take back the last change made through this object that is not taken back yet.

        Returns:
            The image, or None when there is nothing to undo.

        Raises:
            ReviewStoreError: somebody has changed this image since; it stays as they left it.
            PermissionError, TimeoutError: as for `decide`; the change can still be undone later.
        """
        if not self._changes:
            return None
        image, before, after = self._changes[-1]
        with self._locked():
            if self.decisions[image] != after:
                self._changes.pop()
                raise ReviewStoreError(f"{image} was changed elsewhere since: it stays as it is now")
            self._write(image, before)
        self._changes.pop()
        return image

    def _change(self, image: str, change: Change) -> ImageReview:
        if image not in self.decisions:
            raise ReviewStoreError(f"the pool in {self.folder} has no image {image}")
        if not (self.folder / image).is_file():
            raise ReviewStoreError(
                f"{self.folder / image} has vanished, so nothing was stored on it: bring the file back, or "
                "make the pool again; all other decisions are kept"
            )
        with self._locked():
            before = self.decisions[image]
            after = change(before)
            if after != before:
                self._write(image, after)
                self._changes.append((image, before, after))
        return after

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file, with the newest decisions of all windows in `decisions`."""
        with explain_read_only(self.folder, *NOT_STORED), lock_file(self.path):
            self.reload()
            yield

    def _write(self, image: str, decision: ImageReview) -> None:
        decisions = {**self.decisions, image: decision}
        if self.reviewer:
            write_reviewer_file(self.path, self.reviewer, self.pool, decisions, image)
        else:
            pool = self.pool.copy()
            row = pool.index[pool["image"] == image][0]
            accepted = pd.NA if decision.accepted is None else decision.accepted
            pool.loc[row, ["accepted", "reviewer_note"]] = [accepted, decision.note]
            write_manifest(pool, self.path)
            self.pool, self._stamp = pool, _stamp(self.path)
        self.decisions = decisions


def review_file_name(reviewer: str) -> str:
    """Name of a reviewer's own file.

    Raises:
        ReviewStoreError: the name has other characters than letters, digits, `_` and `-`.
    """
    if not REVIEWER_NAME.fullmatch(reviewer):
        raise ReviewStoreError(f"reviewer {reviewer!r}: use 1 to 40 letters, digits, _ or -")
    return f"review-{reviewer}.csv"


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with every new version of a file; empty while there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def list_reviewers(folder: Path | str) -> list[str]:
    """Everybody who has a file of decisions in a pool, by name."""
    return sorted(path.stem.removeprefix("review-") for path in Path(folder).glob("review-*.csv"))


def identify_images(pool: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """What tells an image from another of the same name: its seed and recipe, as text."""
    seeds = pool["seed"].astype("string").fillna("")
    return dict(zip(pool["image"], zip(seeds, pool["recipe"], strict=True), strict=True))


def manifest_decisions(pool: pd.DataFrame) -> dict[str, ImageReview]:
    """The decisions that a manifest holds, for all its images."""
    return {
        image: ImageReview(None if pd.isna(accepted) else bool(accepted), note)
        for image, accepted, note in zip(pool["image"], pool["accepted"], pool["reviewer_note"], strict=True)
    }


def read_reviewer_file(path: Path, pool: pd.DataFrame) -> dict[str, ImageReview]:
    """Read a reviewer's own file; nothing is decided while there is none.

    Args:
        path: `review-<name>.csv`.
        pool: the manifest that it must be about.

    Raises:
        ReviewStoreError: it is no such table, or lists every row that does not suit the pool.
    """
    if not path.is_file():
        return {}
    table = _read_text_table(path)
    known, seen, problems = identify_images(pool), set(), []
    for number, row in enumerate(table.to_dict("records")):
        image = row["image"]
        if known.get(image) != (row["seed"], row["recipe"]):
            problems.append(f"row {number}: {image!r} of seed {row['seed']} is no image of this pool")
        if row["accepted"].lower() not in WORDS:
            problems.append(f"row {number}: accepted {row['accepted']!r} is neither empty, true nor false")
        if image in seen:
            problems.append(f"row {number}: {image!r} stands there twice")
        seen.add(image)
    raise_problems(f"review {path}", problems, ReviewStoreError)
    return {
        row["image"]: ImageReview(WORDS[row["accepted"].lower()], row["note"])
        for row in table.to_dict("records")
    }


def _read_text_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise ReviewStoreError(f"review {path} is not a readable table: {error}") from error
    missing = [column for column in REVIEW_COLUMNS if column not in table]
    raise_problems(f"review {path}", [f"column {name} is missing" for name in missing], ReviewStoreError)
    return table


def write_reviewer_file(
    path: Path, reviewer: str, pool: pd.DataFrame, decisions: dict[str, ImageReview], changed: str
) -> None:
    """Write a reviewer's own file, whole or not at all; `changed` gets the time of now."""
    time_of = {}
    if path.is_file():
        time_of = _read_text_table(path).set_index("image")["time"].to_dict()
    time_of[changed] = datetime.now(UTC).isoformat(timespec="seconds")
    rows = []
    for image, (seed, recipe) in identify_images(pool).items():
        accepted, note = decisions.get(image, ImageReview())
        if image in time_of:
            word = "" if accepted is None else str(accepted).lower()
            rows.append((reviewer, image, seed, recipe, word, note, time_of[image]))
    write_csv(pd.DataFrame(rows, columns=list(REVIEW_COLUMNS)), path)
