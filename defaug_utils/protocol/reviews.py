"""The expert's review of a prompt board as data: decisions on prompts and pictures, stored and replayed.

Zero-shot In&Out replays such a stored review whenever its pool is made. Decisions on the images of a pool
that exists, made in the review grid, are `review_store`'s.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from defaug_utils.core.files import lock_file, write_atomically
from defaug_utils.core.manifest import fold_decisions, raise_problems, read_manifest, write_manifest
from defaug_utils.core.prompts import Prompt

DECISIONS = ("accept", "reject", "reword")


class ReviewError(ValueError):
    """A stored review that can't be read, or doesn't suit what it is about."""


class PromptDecision(NamedTuple):
    """What the expert said about a prompt after a look at its pictures.

    Attributes:
        prompt: the text looked at.
        decision: "accept", "reject" or "reword".
        reworded: the text to use instead, for "reword".
        note: why.
    """

    prompt: str
    decision: str
    reworded: str = ""
    note: str = ""


class ImageDecision(NamedTuple):
    """What the expert said about one picture, known by its prompt and seed, and why."""

    prompt: str
    seed: int
    accepted: bool
    note: str = ""


class Review(NamedTuple):
    """All decisions of one look."""

    prompts: list[PromptDecision]
    images: list[ImageDecision]


def read_review(path: Path | str) -> Review:
    """Read a stored review.

    Args:
        path: YAML with the lists `prompts` and `images`, see `PromptDecision` and `ImageDecision`.

    Raises:
        ReviewError: it is missing or no such YAML; or lists every entry that makes no sense.
    """
    path = Path(path)
    if not path.is_file():
        raise ReviewError(f"no review at {path}: look at the pictures and store what you decide")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReviewError(f"review {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not set(content) <= {"prompts", "images"}:
        raise ReviewError(f"review {path}: expected the lists prompts and images")
    problems: list[str] = []
    prompts = _read_entries(content.get("prompts"), PromptDecision, "prompts", problems)
    images = _read_entries(content.get("images"), ImageDecision, "images", problems)
    problems += find_problems(Review(prompts, images))
    raise_problems(f"review {path}", problems, ReviewError)
    return Review(prompts, images)


def _read_entries(entries: object, kind: type, name: str, problems: list[str]) -> list:
    read = []
    for number, entry in enumerate(entries or []):
        needed = [field for field in kind._fields if field not in kind._field_defaults]
        if not isinstance(entry, Mapping) or not set(needed) <= set(entry) <= set(kind._fields):
            problems.append(f"{name} {number}: expected {', '.join(kind._fields)}")
        else:
            read.append(kind(**entry))
    return read


def find_problems(review: Review) -> list[str]:
    """Every decision that makes no sense."""
    problems, seen = [], set()
    for entry in review.prompts:
        if entry.decision not in DECISIONS:
            problems.append(
                f"{entry.prompt!r}: decision {entry.decision!r} is none of {', '.join(DECISIONS)}"
            )
        if (entry.decision == "reword") != bool(entry.reworded.strip()):
            problems.append(f"{entry.prompt!r}: `reworded` belongs to the decision reword, and to it only")
        if entry.decision != "accept" and not entry.note.strip():
            problems.append(f"{entry.prompt!r}: a note must say why it is not accepted")
        if entry.prompt in seen:
            problems.append(f"{entry.prompt!r}: there are two decisions")
        seen.add(entry.prompt)
    for image in review.images:
        if not isinstance(image.accepted, bool):
            problems.append(
                f"image of seed {image.seed}: accepted {image.accepted!r} is neither true nor false"
            )
        elif not image.accepted and not image.note.strip():
            problems.append(f"image of seed {image.seed}: a note must say why it is rejected")
    return problems


def write_review(review: Review, path: Path | str) -> None:
    """Store a review, whole or not at all.

    Raises:
        ReviewError: lists every decision that makes no sense.
    """
    raise_problems("review", find_problems(review), ReviewError)
    content = {
        "prompts": [entry._asdict() for entry in review.prompts],
        "images": [entry._asdict() for entry in review.images],
    }
    with write_atomically(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def settle_prompts(board: Sequence[Prompt], review: Review) -> list[Prompt]:
    """The prompts to generate with: accepted as they are, reworded, or not looked at; rejected ones go.

    Args:
        board: the prompts asked for.
        review: decisions on some of them.

    Raises:
        ReviewError: every prompt was rejected.
    """
    decision_of = {entry.prompt: entry for entry in review.prompts}
    settled: list[Prompt] = []
    for prompt in board:
        entry = decision_of.get(prompt.text, PromptDecision(prompt.text, "accept"))
        text = entry.reworded if entry.decision == "reword" else prompt.text
        if entry.decision != "reject" and text not in [other.text for other in settled]:
            settled.append(prompt._replace(text=text))
    if not settled:
        raise ReviewError(f"the review rejects every prompt ({', '.join(p.text for p in board)}): reword one")
    return settled


def record_review(folder: Path | str, review: Review) -> pd.DataFrame:
    """Write a review into a pool's manifest.

    A picture's own decision fills `accepted`. What was decided on its prompt goes to `reviewer_note` and
    accepts nothing: pictures that nobody looked at stay unreviewed.

    Args:
        folder: of the pool.
        review: the decisions.

    Returns:
        The manifest as it is stored now.

    Raises:
        ReviewError: lists every picture that the review is about and the pool does not hold.
    """
    path = Path(folder) / "manifest.csv"
    with lock_file(path):
        fold_decisions(path)
        pool = read_manifest(path)
        note_of = {
            (entry.reworded or entry.prompt): _prompt_note(entry)
            for entry in review.prompts
            if entry.decision != "reject"
        }
        decision_of = {(entry.prompt, entry.seed): entry for entry in review.images}
        keys = list(zip(pool["prompt"], pool["seed"], strict=True))
        lost = [
            f"{prompt!r}, seed {seed}: the pool in {folder} has no such picture; look at it again"
            for prompt, seed in decision_of
            if (prompt, seed) not in keys
        ]
        raise_problems("review", lost, ReviewError)
        for row, key in zip(pool.index, keys, strict=True):
            notes = [note_of.get(key[0], "")]
            if key in decision_of:
                pool.loc[row, "accepted"] = decision_of[key].accepted
                notes.insert(0, decision_of[key].note)
            note = "; ".join(text for text in notes if text)
            if note:
                pool.loc[row, "reviewer_note"] = note
        write_manifest(pool, path)
    return pool


def _prompt_note(entry: PromptDecision) -> str:
    what = f"prompt reworded from {entry.prompt!r}" if entry.decision == "reword" else "prompt accepted"
    return f"{what} ({entry.note})" if entry.note else what
