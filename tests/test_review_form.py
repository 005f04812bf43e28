"""The form stores what was decided, refuses what makes no sense, and shows what was stored before."""

from pathlib import Path

from defaug_utils.core.prompts import make_prompts
from defaug_utils.protocol.scenarios import ImageDecision, PromptDecision, Review, read_review, write_review
from defaug_utils.widgets.parts import Message
from defaug_utils.widgets.studio_panel import make_review_form

PROMPTS = make_prompts(["skt background cracked", "skt background scratched"])


def fill(form, *decided: tuple[str, str, str]) -> None:
    for line, values in zip(form.children, decided, strict=False):
        for field, value in zip(line.children[1:], values, strict=True):
            field.value = value
    form.children[-2].click()


def test_decisions_are_stored_and_shown_again(tmp_path: Path):
    path = tmp_path / "review.yaml"
    fill(make_review_form(PROMPTS, path), ("accept", "", "dark lines"), ("reword", "skt scratch", "unseen"))
    expected = [
        PromptDecision("skt background cracked", "accept", "", "dark lines"),
        PromptDecision("skt background scratched", "reword", "skt scratch", "unseen"),
    ]
    assert read_review(path) == Review(expected, [])
    again = make_review_form(PROMPTS, path)
    assert [field.value for field in again.children[1].children[1:]] == ["reword", "skt scratch", "unseen"]


def test_a_decision_without_reason_is_not_stored(tmp_path: Path):
    form = make_review_form(PROMPTS, tmp_path / "review.yaml")
    fill(form, ("reject", "", ""), ("accept", "", ""))
    assert "a note must say why" in form.children[-1].value
    assert not (tmp_path / "review.yaml").exists()


def test_a_prompt_is_text_and_no_formula(tmp_path: Path):
    form = make_review_form(make_prompts(["<b>$x$</b>"]), tmp_path / "review.yaml")
    shown = form.children[0].children[0]
    assert isinstance(shown, Message)  # a Label would set the formula
    assert "&lt;b&gt;$x$&lt;/b&gt;" in shown.value


def test_decisions_on_pictures_are_kept(tmp_path: Path):
    path, images = tmp_path / "review.yaml", [ImageDecision("skt background cracked", 3, False, "empty")]
    write_review(Review([], images), path)
    fill(make_review_form(PROMPTS, path), ("accept", "", ""), ("accept", "", ""))
    assert read_review(path).images == images
