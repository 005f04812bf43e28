"""A form for the expert's decisions on prompts: accept, reject or reword each, and store them as a review."""

from collections.abc import Sequence
from pathlib import Path

import ipywidgets

from defaug_utils.core.prompts import Prompt
from defaug_utils.protocol.scenarios import (
    DECISIONS,
    PromptDecision,
    Review,
    ReviewError,
    read_review,
    write_review,
)


def make_review_form(prompts: Sequence[Prompt], path: Path | str) -> ipywidgets.VBox:
    """One line a prompt with decision, other words and a reason, and a button that stores them all.

    Args:
        prompts: the board that was looked at.
        path: file of the review. Decisions in it are shown, and decisions on pictures are kept.

    Returns:
        The form; its last line tells what happened.
    """
    path = Path(path)
    review = read_review(path) if path.is_file() else Review([], [])
    former = {entry.prompt: entry for entry in review.prompts}
    lines = [_make_line(former.get(prompt.text, PromptDecision(prompt.text, "accept"))) for prompt in prompts]
    button, told = ipywidgets.Button(description="Store"), ipywidgets.Label("Not stored yet.")

    def store(_: object) -> None:
        decided = [
            PromptDecision(prompt.text, *(field.value for field in line.children[1:]))
            for prompt, line in zip(prompts, lines, strict=True)
        ]
        try:
            write_review(Review(decided, review.images), path)
            told.value = f"Stored in {path}: run the cells below."
        except ReviewError as error:
            told.value = f"Not stored: {error}"

    button.on_click(store)
    return ipywidgets.VBox([*lines, button, told])


def _make_line(entry: PromptDecision) -> ipywidgets.HBox:
    return ipywidgets.HBox(
        [
            ipywidgets.Label(entry.prompt, layout={"width": "16em"}),
            ipywidgets.Dropdown(options=DECISIONS, value=entry.decision, layout={"width": "7em"}),
            ipywidgets.Text(entry.reworded, placeholder="in other words"),
            ipywidgets.Text(entry.note, placeholder="why"),
        ]
    )
