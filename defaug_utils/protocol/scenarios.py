"""In&Out's scenarios as data: what a generator learns from, its prompts, and the expert's review.

Zero-shot replays a stored review of its prompt board whenever its pool is made. Decisions made in the review
grid, on the images of an existing pool, are handled by `review_store`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from defaug_utils.core.files import lock_file, write_atomically
from defaug_utils.core.guards import raise_problems
from defaug_utils.core.manifest import fold_decisions, write_manifest
from defaug_utils.core.origins import SCENARIOS
from defaug_utils.core.prompts import Prompt, make_prompts
from defaug_utils.core.yaml_files import read_yaml
from defaug_utils.diffusion.training_images import DreamBoothError, choose_training_rows

DECISIONS = ("accept", "reject", "reword")


@dataclass(frozen=True)
class ScenarioPlan:
    """A line of the scenarios table (Capogrosso et al. 2024, section 4); see `choose_training_rows`."""

    instances: int  #: images to fine-tune on; 0, only in full-shot, uses all positives
    epochs: int  #: of fine-tuning
    share: float  #: α, the adapter's weight at generation
    prompts: tuple[Prompt, ...]  #: used in turns for the pool's images


def read_scenarios(
    instances: Mapping[str, int],
    epochs: Mapping[str, int],
    shares: Mapping[str, float],
    prompts: Mapping[str, Sequence[str | Mapping]],
    instance_prompt: str,
    negative: str = "",
) -> dict[str, ScenarioPlan]:
    """Read the scenarios table from plain data, each column a mapping from the scenario.

    Raises a DreamBoothError that lists every invalid scenario, value and number.

    Args:
        prompts: as for `make_prompts`; scenarios without prompts use the instance prompt.
        instance_prompt: prompt of the images to fine-tune on.
        negative: negative prompt of all lines without one.
    """
    columns = {"instances": instances, "epochs": epochs, "shares": shares}
    asked = {scenario: prompts.get(scenario, [instance_prompt]) for scenario in SCENARIOS}
    problems = [
        f"{name}: {scenario!r} is not one of {', '.join(SCENARIOS)}"
        for name, column in {**columns, "prompts": prompts}.items()
        for scenario in column
        if scenario not in SCENARIOS
    ]
    for name, column in columns.items():
        problems += filter(None, (_find_problem(name, s, column.get(s)) for s in SCENARIOS))
    strings = {scenario: lines for scenario, lines in asked.items() if isinstance(lines, str)}
    problems += [f"prompts of {scenario}: {lines!r} is not a list" for scenario, lines in strings.items()]
    raise_problems("scenarios table", problems, DreamBoothError)
    return {
        s: ScenarioPlan(instances[s], epochs[s], float(shares[s]), tuple(make_prompts(asked[s], negative)))
        for s in SCENARIOS
    }


def _find_problem(name: str, scenario: str, value: object) -> str:
    """What is wrong with a number of the table; empty if nothing is."""
    title = f"{name} of {scenario}: {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float if name == "shares" else int):
        return f"{title} is not a {'number' if name == 'shares' else 'whole number'}"
    if (name, scenario) == ("instances", "full-shot"):
        return "" if value == 0 else f"{title} must be 0: full-shot uses all positives"
    least = 0 if name == "shares" else 1
    return "" if least <= value < float("inf") else f"{title} must be {least} or more"


def choose_instances(
    dataset: pd.DataFrame, scenario: str, plan: ScenarioPlan, pool_of_seed: int, seed: int = 0
) -> pd.DataFrame:
    """The rows of the data set that a scenario's generator is fine-tuned on.

    The seed of the pool's training sets draws the positives of few-shot; the other seed draws the negatives
    of zero-shot, the same ones for all training sets. Raises what `choose_training_rows` raises.
    """
    drawn_by = pool_of_seed if scenario == "few-shot" else seed
    count = plan.instances
    return choose_training_rows(dataset, scenario, drawn_by, few_shot_count=count, negative_count=count)


class ReviewError(ValueError):
    """A stored review can't be read, or doesn't match its prompts or images."""


class PromptDecision(NamedTuple):
    """The expert's decision on a prompt, and why: "accept", "reject", or "reword" with the new text."""

    prompt: str
    decision: str
    reworded: str = ""
    note: str = ""


class ImageDecision(NamedTuple):
    """The expert's decision on an image, identified by prompt and seed, and why."""

    prompt: str
    seed: int
    accepted: bool
    note: str = ""


class Review(NamedTuple):
    """All decisions of one review."""

    prompts: list[PromptDecision]
    images: list[ImageDecision]


def read_review(path: Path | str | None) -> Review:
    """Read a stored review; None gives one without decisions.

    It is YAML with the lists `prompts` (of `PromptDecision`) and `images` (of `ImageDecision`). Raises a
    ReviewError if it is missing or invalid YAML, or lists every invalid entry.
    """
    if path is None:
        return Review([], [])
    path = Path(path)
    if not path.is_file():
        raise ReviewError(f"no review at {path}: look at the images and store your decisions")
    content = read_yaml(path, "review", ReviewError) or {}
    is_right = isinstance(content, dict) and set(content) <= {"prompts", "images"}
    if not is_right or not all(isinstance(entries, list | None) for entries in content.values()):
        raise ReviewError(f"review {path}: expected the lists prompts and images")
    review, problems = Review([], []), []
    for name, kind in (("prompts", PromptDecision), ("images", ImageDecision)):
        for number, entry in enumerate(content.get(name) or []):
            try:
                made = kind(**entry)
                texts = [field for field, type_ in kind.__annotations__.items() if type_ is str]
                if not all(isinstance(getattr(made, field), str) for field in texts):
                    raise TypeError
                getattr(review, name).append(made)
            except TypeError:
                problems.append(f"{name} {number}: expected {', '.join(kind._fields)}")
    raise_problems(f"review {path}", problems + find_problems(review), ReviewError)
    return review


def find_problems(review: Review) -> list[str]:
    """All invalid decisions."""
    problems, seen = [], set()
    for prompt, decision, reworded, note in review.prompts:
        if decision not in DECISIONS:
            problems.append(f"{prompt!r}: decision {decision!r} is not one of {', '.join(DECISIONS)}")
        if (decision == "reword") != bool(reworded.strip()):
            problems.append(f"{prompt!r}: `reworded` is needed for the decision reword, and only for that")
        if decision != "accept" and not note.strip():
            problems.append(f"{prompt!r}: a note must say why it is not accepted")
        if prompt in seen:
            problems.append(f"{prompt!r}: there are two decisions")
        seen.add(prompt)
    for _, seed, accepted, note in review.images:
        if not isinstance(accepted, bool):
            problems.append(f"image of seed {seed}: accepted is {accepted!r}, expected true or false")
        elif not accepted and not note.strip():
            problems.append(f"image of seed {seed}: a note must say why it is rejected")
    return problems


def write_review(review: Review, path: Path | str) -> None:
    """Store a review, atomically; a `ReviewError` lists all invalid decisions."""
    raise_problems("review", find_problems(review), ReviewError)
    content = {name: [entry._asdict() for entry in entries] for name, entries in review._asdict().items()}
    with write_atomically(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def settle_prompts(board: Sequence[Prompt], review: Review) -> list[Prompt]:
    """The prompts of a board to use: accepted, reworded or unreviewed ones, without rejected ones."""
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
    """Write a review into a pool's manifest and return it; unreviewed images stay open.

    A decision on an image sets `accepted`; a decision on its prompt only goes to `reviewer_note`. Raises a
    ReviewError that lists every reviewed image that is not in the pool.
    """
    path = Path(folder) / "manifest.csv"
    with lock_file(path):
        pool = fold_decisions(path)
        settled = [entry for entry in review.prompts if entry.decision != "reject"]
        note_of = {entry.reworded or entry.prompt: _prompt_note(entry) for entry in settled}
        decision_of = {(entry.prompt, entry.seed): entry for entry in review.images}
        keys = list(zip(pool["prompt"], pool["seed"], strict=True))
        lost = [
            f"{prompt!r}, seed {seed}: the pool in {folder} has no such image: review it again"
            for prompt, seed in sorted(decision_of.keys() - set(keys))
        ]
        raise_problems("review", lost, ReviewError)
        accepted, notes = list(pool["accepted"]), list(pool["reviewer_note"])
        for row, key in enumerate(keys):
            told = [note_of.get(key[0], "")]
            if key in decision_of:
                accepted[row] = decision_of[key].accepted
                told.insert(0, decision_of[key].note)
            if any(told):
                notes[row] = "; ".join(filter(None, told))
        pool["accepted"] = pd.array(accepted, dtype="boolean")
        pool["reviewer_note"] = pd.array(notes, dtype="str")
        write_manifest(pool, path)
    return pool


def _prompt_note(entry: PromptDecision) -> str:
    what = f"prompt reworded from {entry.prompt!r}" if entry.decision == "reword" else "prompt accepted"
    return f"{what} ({entry.note})" if entry.note else what
