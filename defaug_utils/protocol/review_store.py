"""A reviewer's decisions on a pool's images: stored immediately, undoable, safe with several windows.

Without a reviewer's name, decisions belong to the pool's manifest (`accepted`, `reviewer_note`). With a name,
they go to that reviewer's own file, `review-<name>.csv`, and the decisions of others are hidden, so that
reviewers judge independently. `review_agreement` compares and merges these files.

A decision is one line, appended under a lock to a log (`core.decisions`) after reading the lines that others
have appended. Two windows, kernels or machines working on one pool therefore keep all decisions; on the same
image, the later one counts.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from defaug_utils.core import decisions
from defaug_utils.core.decisions import ImageReview, LogEntry, ReviewStoreError
from defaug_utils.core.files import explain_read_only, lock_file
from defaug_utils.core.guards import raise_problems
from defaug_utils.core.manifest import ADDED_FILE, fold_decisions, read_manifest, stamp_manifest

REVIEWER_NAME = re.compile(r"[\w-]{1,40}")
FOLD_SECONDS = 1.0  # to wait for the lock if nothing is lost without it
NOT_STORED = (  # for `explain_read_only`
    "this decision was not stored, all earlier ones are kept",
    "allow writing, or copy the pool, and decide again",
)


class PoolReview:
    """One reviewer's decisions on one pool; each is on disk when the call returns.

    `path` is their file. `decisions` (image → `ImageReview`, for all images) and `counts` (images by
    decision) are as of the last call; `pool` is the manifest, and may be older.
    """

    def __init__(self, folder: Path | str, reviewer: str = "") -> None:
        """Open a pool; without a reviewer's name, decisions go to its manifest.

        Raises:
            FileNotFoundError, ManifestError: there is no pool, or its manifest is broken.
            ReviewStoreError: invalid name, or the file of decisions belongs to another pool.
        """
        self.folder, self.reviewer = Path(folder), reviewer
        self._manifest = self.folder / "manifest.csv"
        self.path = self.folder / (review_file_name(reviewer) if reviewer else decisions.DECISIONS_FILE)
        self._stamp: tuple[int, ...] = ()
        self._identities: dict[str, tuple[str, str]] = {}
        self._changes: list[tuple[str, ImageReview, ImageReview]] = []
        self.fold()
        self.reload()

    @property
    def undoable(self) -> int:
        """Number of changes made through this object that can be undone."""
        return len(self._changes)

    def fold(self) -> None:
        """Write the decisions into `manifest.csv`, for programs that don't read the log.

        If this fails, they stay in the log. A reviewer's own file doesn't change.
        """
        journals = (self.path, self._manifest.with_name(ADDED_FILE))
        if not self.reviewer and self._manifest.is_file() and any(path.is_file() for path in journals):
            with suppress(OSError), lock_file(self._manifest, FOLD_SECONDS):
                fold_decisions(self._manifest)

    def reload(self) -> None:
        """Read newly stored decisions; raises as when opening, or if the pool was remade."""
        stamp = stamp_manifest(self._manifest)
        if not stamp or stamp != self._stamp or self._log.is_replaced:
            self._read_pool()
            self._stamp = stamp
        entries = self._log.read_new()
        if self.reviewer:
            reviews = match_own(self.path, entries, self._identities)
        else:
            reviews, _ = decisions.match_entries(entries, self._identities)
        for image, review in reviews.items():
            self._keep(image, review)

    def _read_pool(self) -> None:
        """Read the manifest, which is replaced, never changed in place, and forget the log's content."""
        pool = read_manifest(self._manifest)
        found = decisions.identify_images(pool)
        changed = [image for image, identity in self._identities.items() if found.get(image) != identity]
        if changed:
            raise ReviewStoreError(
                f"{self._manifest} is not the pool that was opened: {len(changed)} images are different or "
                f"missing (the first is {changed[0]}); nothing was stored, open the review again"
            )
        self.pool, self._identities, self._log = pool, found, decisions.DecisionLog(self.path)
        self.decisions = dict.fromkeys(found, ImageReview()) if self.reviewer else manifest_decisions(pool)
        self.counts = Counter(review.accepted for review in self.decisions.values())

    def _keep(self, image: str, review: ImageReview) -> None:
        self.counts[self.decisions[image].accepted] -= 1
        self.counts[review.accepted] += 1
        self.decisions[image] = review

    def decide(self, image: str, accepted: bool | None) -> ImageReview:
        """Accept (true), reject (false) or reopen (None) an image; its note stays. Returns the stored review.

        Raises:
            ReviewStoreError: the pool has no such image, its file is missing, or the pool was remade.
            PermissionError: the folder can't be written to.
            TimeoutError: another process keeps the file locked.
        """
        return self._change(image, accepted=accepted)

    def write_note(self, image: str, note: str) -> ImageReview:
        """Store a note on an image; its decision stays. Raises what `decide` raises."""
        return self._change(image, note=" ".join(note.split()))

    def undo(self) -> str | None:
        """Undo the last change made through this object; returns the image, or None if there is none.

        Raises what `decide` raises, and the change can still be undone later. Raises a `ReviewStoreError` if
        the image was changed elsewhere in the meantime; it then keeps that change.
        """
        if not self._changes:
            return None
        image, before, after = self._changes[-1]
        with self._locked():
            if self.decisions[image] != after:
                self._changes.pop()
                raise ReviewStoreError(f"{image} was changed elsewhere in the meantime: it was not undone")
            self._append(image, before)
        self._changes.pop()
        return image

    def _change(self, image: str, **said: bool | str | None) -> ImageReview:
        if image not in self.decisions:
            raise ReviewStoreError(f"the pool in {self.folder} has no image {image}")
        if not (self.folder / image).is_file():
            raise ReviewStoreError(
                f"{self.folder / image} is missing, so nothing was stored for it: restore the file, or "
                "remake the pool; all other decisions are kept"
            )
        with self._locked():
            before = self.decisions[image]
            after = before._replace(**said)
            if after != before:
                self._append(image, after)
                self._changes.append((image, before, after))
        return after

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the file, with the newest decisions of all windows in `decisions`."""
        held = self.path if self.reviewer else self._manifest
        with explain_read_only(self.folder, *NOT_STORED), lock_file(held):
            self.reload()
            yield

    def _append(self, image: str, review: ImageReview) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._log.append([LogEntry(image, self._identities[image], review, self.reviewer, now)])
        self._keep(image, review)


def review_file_name(reviewer: str) -> str:
    """Name of a reviewer's own file; only letters, digits, `_` and `-` are allowed."""
    if not REVIEWER_NAME.fullmatch(reviewer):
        raise ReviewStoreError(f"reviewer {reviewer!r}: use 1 to 40 letters, digits, _ or -")
    return f"review-{reviewer}.csv"


def list_reviewers(folder: Path | str) -> list[str]:
    """Names of all reviewers who have a file of decisions in a pool."""
    return sorted(path.stem.removeprefix("review-") for path in Path(folder).glob("review-*.csv"))


def manifest_decisions(pool: pd.DataFrame) -> dict[str, ImageReview]:
    """The decisions in a manifest, for all its images."""
    return {
        image: ImageReview(None if pd.isna(accepted) else bool(accepted), note)
        for image, accepted, note in zip(pool["image"], pool["accepted"], pool["reviewer_note"], strict=True)
    }


def match_own(
    path: Path, entries: Sequence[LogEntry], identities: Mapping[str, tuple[str, str]]
) -> dict[str, ImageReview]:
    """A reviewer's decisions, all of which must belong to this pool."""
    reviews, foreign = decisions.match_entries(entries, identities)
    told = [f"{e.image!r} with seed {e.identity[0]} is not an image of this pool" for e in foreign]
    raise_problems(f"review {path}", told, ReviewStoreError)
    return reviews
