"""The images that the studio keeps: a pool to which each decision adds one line."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from defaug_utils.core.decisions import DECISIONS_FILE, DecisionLog, ImageReview, LogEntry
from defaug_utils.core.files import explain_read_only, lock_file, stamp_file
from defaug_utils.core.manifest import (
    ADDED_FILE,
    add_row,
    fold_decisions,
    make_manifest,
    read_manifest,
    stamp_manifest,
)
from defaug_utils.protocol.review_store import FOLD_SECONDS

# rows with the same values of these describe the same image
IDENTITY = ("recipe", "source_image", "prompt", "negative_prompt", "seed", "mask_sha256")


class KeptPicture(NamedTuple):
    """The files of an image, and the decision on it."""

    image: str
    mask: str
    accepted: bool | None


class KeptPictures:
    """All judged images of a folder, including those of other windows and kernels.

    The manifest is read again only if another process has changed it. A new image and a second decision on
    one go to the journals next to the manifest; opening the folder merges them.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open a folder, which need not exist yet."""
        self.folder, self.path = Path(folder), Path(folder) / "manifest.csv"
        self._stamp: tuple[int, ...] | None = None
        self._kept: dict[bytes, KeptPicture] = {}
        self._next, self._log = 0, DecisionLog(self.folder / DECISIONS_FILE)
        journals = (self._log.path, self.path.with_name(ADDED_FILE))
        if self.path.is_file() and any(journal.is_file() for journal in journals):
            with suppress(OSError, ValueError), lock_file(self.path, FOLD_SECONDS):
                fold_decisions(self.path)

    def read(self) -> pd.DataFrame:
        """The manifest, empty if there is none; raises what `read_manifest` raises."""
        stamp, log = self._stamp_files(), DecisionLog(self._log.path)
        log.read_new()  # for the columns in which it is continued
        kept = read_manifest(self.path) if self.path.is_file() else make_manifest([])
        if "negative_prompt" in kept:
            kept["negative_prompt"] = kept["negative_prompt"].astype(object).fillna("")
        self._kept, self._next, self._log = {}, 0, log
        columns = kept.filter(["image", "mask", "accepted", *IDENTITY])
        for values in columns.itertuples(index=False, name=None):
            self._keep(dict(zip(columns, values, strict=True)))
        self._stamp = stamp
        return kept

    def count(self) -> tuple[int, int]:
        """Numbers of accepted and of other images; raises what `read` raises."""
        self._reload()
        accepted = sum(known.accepted is True for known in self._kept.values())
        return accepted, len(self._kept) - accepted

    def store(self, row: dict, write_files: Callable[[str], object]) -> dict:
        """Store an image's row, or a newer decision on it; returns the row with the paths of its files.

        For a new image, `write_files` first writes image and mask under the given name. Everything is done
        under the lock that reviews also use. Raises what `Studio.decide` does.
        """
        with explain_read_only(self.folder, "the decision was not stored"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock_file(self.path):
                self._reload()
                row = row | {"reviewer_note": " ".join(row["reviewer_note"].split())}
                if known := self._kept.get(identify_row(row)):
                    row = row | {"image": known.image, "mask": known.mask}
                    review = ImageReview(row["accepted"], row["reviewer_note"])
                    self._log.append([LogEntry(known.image, (str(row["seed"]), row["recipe"]), review)])
                else:
                    name = f"{self._next:06d}.png"
                    write_files(name)
                    row = row | {"image": f"images/{name}", "mask": f"masks/{name}"}
                    add_row(row, self.path)
                self._keep(row)
                self._stamp = self._stamp_files()
        return row

    def _reload(self) -> None:
        if self._stamp != self._stamp_files():
            self.read()

    def _stamp_files(self) -> tuple[int, ...]:
        return stamp_manifest(self.path) + stamp_file(self._log.path)

    def _keep(self, row: dict) -> None:
        accepted = None if pd.isna(row["accepted"]) else bool(row["accepted"])
        self._kept[identify_row(row)] = KeptPicture(row["image"], row["mask"], accepted)
        self._next = max(self._next, int(Path(row["image"]).stem) + 1)


def identify_row(row: Mapping) -> bytes:
    """A hash shared by rows of the same image only."""
    texts = [str(row.get(column)) for column in IDENTITY]
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).digest()
