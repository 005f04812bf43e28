"""Reviews: read, replayed and logged, and every slip named."""

from pathlib import Path

import numpy as np
import pytest

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, read_manifest, write_manifest
from defaug_utils.core.prompts import make_prompts
from defaug_utils.protocol.scenarios import (
    ImageDecision,
    PromptDecision,
    Review,
    ReviewError,
    read_review,
    record_review,
    settle_prompts,
    write_review,
)

REVIEW = Review(
    [
        PromptDecision("skt background cracked", "accept", note="thin dark lines"),
        PromptDecision("skt background scratched", "reword", "skt background with scratches", "no scratch"),
        PromptDecision("skt wall", "reject", note="bricks"),
    ],
    [
        ImageDecision("skt background cracked", 12, False, "empty"),
        ImageDecision("skt background cracked", 13, True),
    ],
)
BOARD = make_prompts([entry.prompt for entry in REVIEW.prompts], "dark")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = []
    for number, prompt in enumerate(["skt background cracked"] * 3 + ["skt background with scratches"]):
        row = {"image": f"images/{number}.png", "label": "positive", "split": "train", "origin": "ddpm"}
        write_png(tmp_path / row["image"], np.zeros((4, 4, 3), np.uint8))
        rows.append(row | {"prompt": prompt, "seed": 12 + number})
    write_manifest(make_manifest(rows), tmp_path / "manifest.csv")
    return tmp_path


def test_a_review_reads_back_as_it_was_written(tmp_path: Path):
    write_review(REVIEW, tmp_path / "review.yaml")
    assert read_review(tmp_path / "review.yaml") == REVIEW


def test_prompts_are_accepted_reworded_and_rejected():
    settled = settle_prompts(BOARD, REVIEW)
    assert [prompt.text for prompt in settled] == ["skt background cracked", "skt background with scratches"]
    assert {prompt.negative for prompt in settled} == {"dark"}
    assert settle_prompts(BOARD, Review([], [])) == BOARD
    with pytest.raises(ReviewError, match="rejects every prompt"):
        settle_prompts(BOARD[2:], REVIEW)


def test_decisions_reach_the_manifest_and_the_others_stay_open(pool: Path):
    for _ in range(2):
        stored = record_review(pool, REVIEW)
    assert stored["accepted"].tolist()[:2] == [False, True] and stored["accepted"][2:].isna().all()
    again = read_manifest(pool / "manifest.csv")
    assert again["reviewer_note"].tolist() == [
        "empty; prompt accepted (thin dark lines)",
        "prompt accepted (thin dark lines)",
        "prompt accepted (thin dark lines)",
        "prompt reworded from 'skt background scratched' (no scratch)",
    ]


def test_a_review_of_pictures_that_are_gone_is_refused(pool: Path):
    before = (pool / "manifest.csv").read_bytes()
    with pytest.raises(ReviewError, match=r"seed 99: the pool .* has no such image"):
        record_review(pool, Review([], [ImageDecision("skt background cracked", 99, True)]))
    assert (pool / "manifest.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompts: [{prompt: a, decision: maybe, note: x}]", "'maybe' is not one of accept, reject, reword"),
        ("prompts: [{prompt: a, decision: reword, note: x}]", "`reworded` is needed"),
        ("prompts: [{prompt: a, decision: accept, reworded: b}]", "`reworded` is needed"),
        ("prompts: [{prompt: a, decision: reject}]", "a note must say why"),
        ("prompts: [{prompt: a, decision: accept}, {prompt: a, decision: accept}]", "two decisions"),
        ("prompts: [{decision: accept}]", "prompts 0: expected"),
        ("images: [{prompt: a, seed: 1, accepted: maybe}]", "expected true or false"),
        ("images: [{prompt: a, seed: 1, accepted: false}]", "a note must say why"),
        ("images: [{prompt: a, seed: 1, accepted: true, colour: red}]", "images 0: expected"),
        ("pictures: []", "expected the lists"),
        ("a: [", "not valid YAML"),
        ("prompts: [!!python/name:os.system '']", "not valid YAML"),
    ],
)
def test_reviews_that_make_no_sense_are_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "review.yaml").write_text(text)
    with pytest.raises(ReviewError, match=said):
        read_review(tmp_path / "review.yaml")


def test_a_missing_review_is_told(tmp_path: Path):
    with pytest.raises(ReviewError, match="no review at"):
        read_review(tmp_path / "review.yaml")


@pytest.mark.parametrize("text", ["prompts: 3", "images: x", "prompts: [{prompt: 3, decision: accept}]"])
def test_entries_of_another_kind_are_told_with_the_file(tmp_path, text):
    (tmp_path / "review.yaml").write_text(text)
    with pytest.raises(ReviewError, match=r"review\.yaml"):
        read_review(tmp_path / "review.yaml")
