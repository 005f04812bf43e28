"""Several reviewers of one pool: how far they agree, and their decisions merged into its manifest."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from defaug_utils.core.decisions import ImageReview, ReviewStoreError
from defaug_utils.core.files import explain_read_only, lock_file
from defaug_utils.core.manifest import fold_decisions, read_manifest, write_manifest
from defaug_utils.protocol.review_store import (
    NOT_STORED,
    list_reviewers,
    manifest_decisions,
    read_reviewer_file,
    review_file_name,
)

DISAGREEMENTS = {"open": None, "accept": True, "reject": False}
AGREEMENT_COLUMNS = (
    "pool",
    "first",
    "second",
    "judged by both",
    "both accepted",
    "both rejected",
    "only first accepted",
    "only second accepted",
    "agreed",
    "κ",
    "remark",
)


class Agreement(NamedTuple):
    """How far two reviewers agree on the images that both judged.

    Attributes:
        count: those images.
        table: what the first said (rows) against what the second said (columns), in images.
        agreed: part of them with the same decision, 0 to 1; None without any.
        kappa: Cohen's κ, -1 to 1: the agreement beyond that of two who guess with these frequencies; None
            where it is not defined.
        remark: why κ is not defined; empty where it is.
    """

    count: int
    table: pd.DataFrame
    agreed: float | None
    kappa: float | None
    remark: str


def read_reviewers(
    folder: Path | str, reviewers: Sequence[str] | None = None
) -> dict[str, dict[str, ImageReview]]:
    """Read reviewers' own files, of all who have one or of those named: name → image → decision.

    Raises:
        ReviewStoreError: a file is missing, or does not suit the pool.
    """
    folder = Path(folder)
    pool, present = read_manifest(folder / "manifest.csv"), list_reviewers(folder)
    names = present if reviewers is None else list(reviewers)
    missing = [name for name in names if name not in present]
    if missing or not names:
        raise ReviewStoreError(
            f"{folder} has no review of {', '.join(missing) or 'anybody'} (there are: "
            f"{', '.join(present) or 'none'}); open the review grid with that reviewer's name first"
        )
    return {name: read_reviewer_file(folder / review_file_name(name), pool) for name in names}


def measure_agreement(folder: Path | str, first: str, second: str) -> Agreement:
    """Compare two reviewers by Cohen's κ (Cohen 1960), on the images that both accepted or rejected.

    Raises:
        ReviewStoreError: a file is missing, or does not suit the pool.
    """
    reviews = read_reviewers(folder, [first, second])
    judged = [
        (decision.accepted, reviews[second][image].accepted)
        for image, decision in reviews[first].items()
        if image in reviews[second]
    ]
    return compare_decisions([pair for pair in judged if None not in pair], first, second)


def tabulate_agreement(folders: Sequence[Path | str]) -> pd.DataFrame:
    """Agreement of every two reviewers of every pool, one row a pair, with the columns `AGREEMENT_COLUMNS`.

    Raises:
        ReviewStoreError: a file does not suit its pool.
    """
    rows = []
    for folder in map(Path, folders):
        for first, second in combinations(list_reviewers(folder), 2):
            told = measure_agreement(folder, first, second)
            (both, only_first), (only_second, neither) = told.table.to_numpy()
            counts = (told.count, both, neither, only_first, only_second)
            rows.append((folder.name, first, second, *counts, told.agreed, told.kappa, told.remark))
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS)).astype({"agreed": float, "κ": float})


def compare_decisions(
    pairs: Sequence[tuple[bool, bool]], first: str = "first", second: str = "second"
) -> Agreement:
    """Agreement of two people by name, from the (first's, second's) decision on each image."""
    words = ["accepted", "rejected"]
    counts = [[0, 0], [0, 0]]
    if pairs:
        left, right = zip(*pairs, strict=True)
        counts = confusion_matrix(left, right, labels=[True, False])
    table = pd.DataFrame(
        counts, pd.Index([f"{first} {word}" for word in words]), [f"{second} {word}" for word in words]
    )
    if not pairs:
        return Agreement(0, table, None, None, "κ is not defined: no image was judged by both")
    agreed = sum(a == b for a, b in pairs) / len(pairs)
    if len(set(left) | set(right)) == 1:
        remark = f"κ is not defined: both {words[not left[0]]} every image, so chance alone would agree, too"
        return Agreement(len(pairs), table, agreed, None, remark)
    return Agreement(len(pairs), table, agreed, float(cohen_kappa_score(left, right)), "")


def merge_reviews(
    folder: Path | str,
    reviewers: Sequence[str] | None = None,
    disagreement: str = "open",
    replace: bool = False,
) -> pd.DataFrame:
    """Bring reviewers' files together in the pool's manifest.

    The rule: where all who judged an image say the same, or one alone judged it, that is the decision. Where
    they disagree, the image stays open, with a note of who said what, unless `disagreement` settles it. A
    decision that the manifest holds already stays, unless `replace` is set. Notes are added, none is removed,
    and the reviewers' files stay as they are.

    Args:
        folder: of the pool.
        reviewers: their names; everybody who has a file when not given.
        disagreement: "open", "accept" or "reject".
        replace: let what the reviewers say now replace decisions of the manifest.

    Returns:
        One row an image that somebody judged: `image`, what each reviewer said (a column each, empty where
        open), `outcome` ("agreed", "one reviewer", "disagreed", or "kept" where the manifest's own decision
        was another and stayed) and `accepted` as it is stored now.

    Raises:
        ReviewStoreError: a file is missing or does not suit the pool, or `disagreement` is no such word.
        PermissionError: the folder can't be written to.
    """
    if disagreement not in DISAGREEMENTS:
        raise ReviewStoreError(f"disagreement {disagreement!r} is none of {', '.join(DISAGREEMENTS)}")
    path = Path(folder) / "manifest.csv"
    with explain_read_only(folder, *NOT_STORED), lock_file(path):
        reviews, pool = read_reviewers(folder, reviewers), fold_decisions(path)
        merged = []
        for row, (image, stored) in zip(pool.index, manifest_decisions(pool).items(), strict=True):
            said = {name: review.get(image, ImageReview()) for name, review in reviews.items()}
            outcome, accepted = _settle(said, stored, DISAGREEMENTS[disagreement], replace)
            pool.loc[row, "reviewer_note"] = _join_notes(stored.note, said, outcome)
            if outcome:
                pool.loc[row, "accepted"] = pd.NA if accepted is None else accepted
                words = {name: review.accepted for name, review in said.items()}
                merged.append({"image": image, **words, "outcome": outcome, "accepted": accepted})
        write_manifest(pool, path)
    table = pd.DataFrame(merged, columns=["image", *reviews, "outcome", "accepted"])
    return table.astype(dict.fromkeys([*reviews, "accepted"], "boolean"))


def _settle(
    said: dict[str, ImageReview], stored: ImageReview, tie: bool | None, replace: bool
) -> tuple[str, bool | None]:
    judged = [review.accepted for review in said.values() if review.accepted is not None]
    if not judged:
        return "", stored.accepted
    outcome = "one reviewer" if len(judged) == 1 else "agreed" if len(set(judged)) == 1 else "disagreed"
    accepted = tie if outcome == "disagreed" else judged[0]
    if stored.accepted is not None and stored.accepted != accepted and not replace:
        return "kept", stored.accepted
    return outcome, accepted


def _join_notes(stored: str, said: dict[str, ImageReview], outcome: str) -> str:
    notes = [stored] if stored else []
    for name, review in said.items():
        told = [review.note] if review.note else []
        if outcome == "disagreed" and review.accepted is not None:
            told.insert(0, "accepted" if review.accepted else "rejected")
        note = f"{name}: {', '.join(told)}"
        if told and note not in stored:
            notes.append(note)
    return "; ".join(notes)
