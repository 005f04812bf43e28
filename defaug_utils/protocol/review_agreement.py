"""Several reviewers of one pool: their agreement, and merging their decisions into its manifest."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd
from sklearn.metrics import cohen_kappa_score

from defaug_utils.core.decisions import DecisionLog, ImageReview, ReviewStoreError, identify_images
from defaug_utils.core.files import explain_read_only, lock_file
from defaug_utils.core.manifest import fold_decisions, read_manifest, write_manifest
from defaug_utils.protocol import review_store
from defaug_utils.protocol.review_store import list_reviewers

DISAGREEMENTS = {"open": None, "accept": True, "reject": False}


def read_reviewers(
    folder: Path | str, reviewers: Sequence[str] | None = None
) -> dict[str, dict[str, ImageReview]]:
    """Read the files of all reviewers, or of those named: name → image → decision."""
    folder = Path(folder)
    pool, present = read_manifest(folder / "manifest.csv"), list_reviewers(folder)
    names = present if reviewers is None else list(reviewers)
    missing = [name for name in names if name not in present]
    if missing or not names:
        raise ReviewStoreError(
            f"{folder} has no review by {', '.join(missing) or 'anyone'} (existing: "
            f"{', '.join(present) or 'none'}); open the review grid with that reviewer's name first"
        )
    logs = {name: DecisionLog(folder / review_store.review_file_name(name)) for name in names}
    identities = identify_images(pool)
    return {name: review_store.match_own(log.path, log.read_new(), identities) for name, log in logs.items()}


def tabulate_agreement(folders: Sequence[Path | str]) -> pd.DataFrame:
    """Agreement of each pair of reviewers of each pool, on the images that both accepted or rejected.

    One row per pair: `pool`, `first`, `second`, and the numbers of `compare_decisions`.
    """
    rows = []
    for folder in map(Path, folders):
        for first, second in combinations(list_reviewers(folder), 2):
            one, other = read_reviewers(folder, [first, second]).values()
            pairs = [(one[image].accepted, other[image].accepted) for image in one if image in other]
            told = compare_decisions([pair for pair in pairs if None not in pair])
            rows.append({"pool": folder.name, "first": first, "second": second, **told})
    columns = ["pool", "first", "second", *compare_decisions([])]
    return pd.DataFrame(rows, columns=columns).astype({"agreed": float, "κ": float})


def compare_decisions(pairs: Sequence[tuple[bool, bool]]) -> dict[str, int | float | str | None]:
    """Agreement of two reviewers, from the (first, second) decision on each image.

    `agreed` is a share, 0 to 1. `κ` (Cohen 1960), -1 to 1, is the agreement beyond chance, for guesses with
    the same frequencies. Both are None if undefined; `remark` then says why.
    """
    counts, words = Counter(pairs), {word for pair in pairs for word in pair}
    kappa, remark = None, ""
    if not pairs:
        remark = "κ is not defined: no image was judged by both"
    elif len(words) == 1:
        word = "accepted" if True in words else "rejected"
        remark = f"κ is not defined: both {word} every image, so agreement could be chance"
    else:
        kappa = float(cohen_kappa_score(*zip(*pairs, strict=True)))
    return {
        "judged by both": len(pairs),
        "both accepted": counts[True, True],
        "both rejected": counts[False, False],
        "only first accepted": counts[True, False],
        "only second accepted": counts[False, True],
        "agreed": (counts[True, True] + counts[False, False]) / len(pairs) if pairs else None,
        "κ": kappa,
        "remark": remark,
    }


def merge_reviews(
    folder: Path | str,
    reviewers: Sequence[str] | None = None,
    disagreement: str = "open",
    replace: bool = False,
) -> pd.DataFrame:
    """Merge the files of some reviewers (None: all of them) into the pool's manifest.

    If all reviewers of an image agree, or there is only one, that is the decision. If they disagree, the
    image stays open, with a note of who decided what, unless `disagreement` is "accept" or "reject". Existing
    decisions in the manifest are kept unless `replace` is set. Notes are only added, and the reviewers' files
    don't change.

    Returns:
        One row per judged image: `image`, the decision of each reviewer (one column each, empty if open),
        `outcome` ("agreed", "one reviewer", "disagreed", or "kept" if a different decision in the manifest
        was kept) and `accepted` as it is now stored.

    Raises:
        ReviewStoreError: a file is missing or belongs to another pool, or `disagreement` is invalid.
        PermissionError: the folder can't be written to.
    """
    if disagreement not in DISAGREEMENTS:
        raise ReviewStoreError(f"disagreement {disagreement!r} is not one of {', '.join(DISAGREEMENTS)}")
    path = Path(folder) / "manifest.csv"
    with explain_read_only(folder, *review_store.NOT_STORED), lock_file(path):
        reviews, pool = read_reviewers(folder, reviewers), fold_decisions(path)
        merged, notes, decided = [], [], []
        for image, stored in review_store.manifest_decisions(pool).items():
            said = {name: review.get(image, ImageReview()) for name, review in reviews.items()}
            outcome, accepted = _settle(said, stored, DISAGREEMENTS[disagreement], replace)
            notes.append(_join_notes(stored.note, said, outcome))
            decided.append(accepted)
            if outcome:
                words = {name: review.accepted for name, review in said.items()}
                merged.append({"image": image, **words, "outcome": outcome, "accepted": accepted})
        pool["accepted"] = pd.array(decided, dtype="boolean")
        pool["reviewer_note"] = pd.array(notes, dtype="str")
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
