"""Two reviewers: agreement against a hand count, and a merge that loses nobody's word."""

from pathlib import Path

import pandas as pd
import pytest
from test_review_store import NAMES, make_pool, stored

from defaug_utils.protocol.review_agreement import (
    compare_decisions,
    merge_reviews,
    tabulate_agreement,
)
from defaug_utils.protocol.review_store import PoolReview, ReviewStoreError


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return make_pool(tmp_path / "diag")


def judge(pool: Path, reviewer: str, words: str) -> None:
    review = PoolReview(pool, reviewer)
    for name, word in zip(NAMES, words, strict=False):
        if word != ".":
            review.decide(name, word == "a")


def test_kappa_against_the_textbook():
    """Fifty proposals, read by two: 20 and 15 agreed, 5 and 10 not; κ = (0.7 - 0.5) / (1 - 0.5) = 0.4."""
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    told = compare_decisions(pairs)
    assert (told["judged by both"], told["agreed"], told["remark"]) == (50, 0.7, "")
    assert told["κ"] == pytest.approx(0.4)
    assert (told["both accepted"], told["only first accepted"]) == (20, 5)
    assert (told["only second accepted"], told["both rejected"]) == (10, 15)


def test_kappa_is_said_to_be_undefined_where_it_is():
    nothing = compare_decisions([])
    assert (nothing["judged by both"], nothing["agreed"], nothing["κ"]) == (0, None, None)
    assert "no image was judged by both" in nothing["remark"]
    same = compare_decisions([(False, False)] * 3)
    assert (same["judged by both"], same["agreed"], same["κ"]) == (3, 1.0, None)
    assert "both rejected every image" in same["remark"]
    assert "both accepted every image" in compare_decisions([(True, True)])["remark"]
    never_rejects = compare_decisions([(True, True), (True, False)])  # defined, and worth nothing
    assert (never_rejects["κ"], never_rejects["remark"]) == (0.0, "")


def test_agreement_counts_images_that_both_judged(pool: Path):
    judge(pool, "ann", "aarr.a")
    judge(pool, "bob", "aar.ra")
    (told,) = tabulate_agreement([pool]).to_dict("records")
    assert (told["judged by both"], told["agreed"], told["κ"]) == (4, 1.0, 1.0)
    with pytest.raises(ReviewStoreError, match=r"no review by eve \(existing: ann, bob\)"):
        merge_reviews(pool, ["ann", "eve"])


def test_every_two_reviewers_of_every_pool_have_a_row(pool: Path, tmp_path: Path):
    for reviewer, words in {"ann": "aarr", "bob": "aara", "cyd": "aaaa"}.items():
        judge(pool, reviewer, words)
    lonely = make_pool(tmp_path / "lonely")
    judge(lonely, "ann", "ar")
    table = tabulate_agreement([pool, lonely])
    assert list(zip(table["first"], table["second"], strict=True)) == [
        ("ann", "bob"),
        ("ann", "cyd"),
        ("bob", "cyd"),
    ]
    counts = table[["judged by both", "both accepted", "both rejected", "only first accepted"]]
    assert counts.to_numpy().tolist() == [[4, 2, 1, 0], [4, 2, 0, 0], [4, 3, 0, 0]]
    assert list(table["only second accepted"]) == [1, 2, 1]
    assert list(table["agreed"]) == [0.75, 0.5, 0.75]
    assert list(table["κ"]) == [0.5, 0.0, 0.0]
    assert tabulate_agreement([lonely]).empty


def test_a_merge_takes_what_is_agreed_and_leaves_the_rest_open(pool: Path):
    judge(pool, "ann", "aara.")
    judge(pool, "bob", "arr.r")
    PoolReview(pool, "bob").write_note(NAMES[1], "too bright")
    merged = merge_reviews(pool).set_index("image")
    assert list(merged["outcome"]) == ["agreed", "disagreed", "agreed", "one reviewer", "one reviewer"]
    table = stored(pool)
    accepted = table.loc[NAMES[:6], "accepted"]
    assert [None if pd.isna(word) else bool(word) for word in accepted] == [
        True,
        None,
        False,
        True,
        False,
        None,
    ]
    assert table.loc[NAMES[1], "reviewer_note"] == "ann: accepted; bob: rejected, too bright"
    again = merge_reviews(pool).set_index("image")
    pd.testing.assert_frame_equal(stored(pool), table)
    assert list(again["outcome"]) == list(merged["outcome"])


@pytest.mark.parametrize(("word", "expected"), [("accept", True), ("reject", False)])
def test_a_disagreement_is_settled_when_told(pool: Path, word: str, expected: bool):
    judge(pool, "ann", "a")
    judge(pool, "bob", "r")
    merge_reviews(pool, disagreement=word)
    assert stored(pool).loc[NAMES[0], "accepted"] == expected
    with pytest.raises(ReviewStoreError, match="'vote' is not one of open, accept, reject"):
        merge_reviews(pool, disagreement="vote")


def test_a_merge_keeps_the_manifests_own_decisions_unless_told(pool: Path):
    direct = PoolReview(pool)
    direct.decide(NAMES[0], False)
    direct.write_note(NAMES[0], "cut off")
    direct.decide(NAMES[7], True)
    judge(pool, "ann", "aa")
    judge(pool, "bob", "ar")
    merged = merge_reviews(pool).set_index("image")
    assert list(merged["outcome"]) == ["kept", "disagreed"]
    table = stored(pool)
    assert table.loc[NAMES[0], ["accepted", "reviewer_note"]].tolist() == [False, "cut off"]
    assert table.loc[NAMES[7], "accepted"]
    merge_reviews(pool, replace=True)
    assert stored(pool).loc[NAMES[0], ["accepted", "reviewer_note"]].tolist() == [True, "cut off"]


def test_a_merge_refuses_a_review_of_another_pool(pool: Path, tmp_path: Path):
    other = make_pool(tmp_path / "other", grey=30)
    judge(other, "ann", "ar")
    (pool / "review-ann.csv").write_bytes((other / "review-ann.csv").read_bytes())
    before = (pool / "manifest.csv").read_bytes()
    with pytest.raises(ReviewStoreError, match="2 problem"):
        merge_reviews(pool)
    assert (pool / "manifest.csv").read_bytes() == before
    with pytest.raises(ReviewStoreError, match="no review by anyone"):
        merge_reviews(other.parent / "diag", [])
