"""Metrics against curves solved by hand, against scikit-learn, and on input that can't be judged."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from defaug_utils.evaluation.metrics import (
    auroc,
    average_precision,
    average_precision_trapezoid,
    best_f1_threshold,
    choose_threshold,
    measure_at,
    measure_many,
    measure_scores,
    precision_recall_at,
)

# Four images, ranked positive, negative, positive, negative:
# (recall, precision) = (1/2, 1), (1/2, 1/2), (1, 2/3), (1, 1/2)
LABELS = np.array([True, False, True, False])
SCORES = np.array([0.9, 0.8, 0.7, 0.1])

labelled_scores = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=25).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


def scores_table(val: list[tuple[str, float]], test: list[tuple[str, float]]) -> pd.DataFrame:
    rows = [("val", *pair) for pair in val] + [("test", *pair) for pair in test]
    return pd.DataFrame(rows, columns=["split", "label", "score"])


def test_hand_solved_curve():
    assert average_precision(LABELS, SCORES) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    # trapezoids over recall 0 … ½ (1 to 1) and ½ … 1 (½ to ⅔)
    assert average_precision_trapezoid(LABELS, SCORES) == pytest.approx(1 / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2)
    assert auroc(LABELS, SCORES) == pytest.approx(3 / 4)


def test_hand_solved_thresholds():
    assert best_f1_threshold(LABELS, SCORES) == 0.7
    assert precision_recall_at(LABELS, SCORES, 0.7) == (0.7, pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert precision_recall_at(LABELS, SCORES, 0.75) == (0.75, 0.5, 0.5, 0.5)
    assert precision_recall_at(LABELS, SCORES, 0.95) == (0.95, 0.0, 0.0, 0.0)


def test_of_equally_good_thresholds_the_lowest_is_taken():
    # F1 is 2/3 at 0.9 (2 of 4 found, no alarm) and at 0.5 (all found, 4 alarms)
    labels = np.array([True, True, True, True, False, False, False, False])
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert best_f1_threshold(labels, scores) == 0.5


def test_a_score_at_the_threshold_counts_as_positive():
    assert precision_recall_at(LABELS, SCORES, 0.9).recall == 0.5
    assert precision_recall_at(LABELS, SCORES, np.nextafter(0.9, 1)).recall == 0.0


def test_perfect_and_reversed_ranking():
    labels = np.array([True] * 3 + [False] * 7)
    scores = np.arange(10, 0, -1.0)
    assert average_precision(labels, scores) == average_precision_trapezoid(labels, scores) == 1
    assert auroc(labels, scores) == 1
    # reversed, the positives come at ranks 8, 9 and 10
    assert average_precision(labels, -scores) == pytest.approx((1 / 8 + 2 / 9 + 3 / 10) / 3)
    assert auroc(labels, -scores) == 0


def test_equal_scores_give_the_share_of_positives():
    labels, scores = np.array([True, False, False, False]), np.full(4, 0.5)
    assert average_precision(labels, scores) == 0.25
    assert auroc(labels, scores) == 0.5
    assert precision_recall_at(labels, scores, best_f1_threshold(labels, scores)).f1 == pytest.approx(0.4)


@given(labelled_scores)
def test_agrees_with_scikit_learn_and_a_slow_search(pairs):
    labels, scores = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], float)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores))
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    for threshold in np.unique(scores):
        expected = precision_recall_fscore_support(
            labels, scores >= threshold, average="binary", zero_division=0
        )[:3]
        assert precision_recall_at(labels, scores, threshold)[1:] == pytest.approx(expected)
    best = max(precision_recall_at(labels, scores, threshold).f1 for threshold in scores)
    assert precision_recall_at(labels, scores, best_f1_threshold(labels, scores)).f1 == pytest.approx(best)


@given(labelled_scores, st.integers(-1, 7))
def test_many_at_once_equals_one_by_one(pairs, threshold):
    labels, scores = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], float)
    sets = [scores, scores[::-1].copy(), np.round(scores / 3)]
    many = measure_many(
        np.stack([values[labels] for values in sets]),
        np.stack([values[~labels] for values in sets]),
        threshold,
    )
    for column, values in enumerate(sets):
        expected = list(measure_at(labels, values, threshold).values())
        assert many[:, column] == pytest.approx(expected)


def test_threshold_with_positives_is_that_of_the_best_f1():
    assert choose_threshold(LABELS, SCORES) == (0.7, "max_f1")


@pytest.mark.parametrize(("rate", "passing"), [(0.0, 0), (0.02, 1), (0.05, 2), (0.5, 25), (0.29, 14)])
def test_threshold_without_positives_lets_the_allowed_share_through(rate, passing):
    scores = np.random.default_rng(0).permutation(np.linspace(0.1, 0.9, 50))
    threshold, rule = choose_threshold(np.zeros(50, bool), scores, rate)
    assert rule == "max_fpr"
    assert (scores >= threshold).sum() == passing
    # any lower threshold would let one more through
    assert (scores >= np.nextafter(threshold, 0)).sum() == passing + 1


def test_threshold_without_positives_keeps_ties_together():
    scores = np.array([0.9, 0.8, 0.8, 0.8, 0.1])
    threshold, _ = choose_threshold(np.zeros(5, bool), scores, 0.4)
    assert (scores >= threshold).sum() == 1


@pytest.mark.parametrize("rate", [-0.1, 1.0, np.nan])
def test_rate_out_of_range(rate):
    with pytest.raises(ValueError, match="max_false_positive_rate"):
        choose_threshold(np.zeros(3, bool), np.ones(3), rate)


def test_no_validation_image():
    with pytest.raises(ValueError, match="negatives"):
        choose_threshold(np.zeros(0, bool), np.zeros(0))


@pytest.mark.parametrize("metric", [average_precision, average_precision_trapezoid, auroc, best_f1_threshold])
def test_input_that_cannot_be_judged(metric):
    with pytest.raises(ValueError, match="both classes"):
        metric(np.ones(3, bool), np.ones(3))
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        metric(np.array([True, False, False]), np.array([0.1, np.nan, 0.3]))
    with pytest.raises(ValueError, match="pair up"):
        metric(np.array([True, False]), np.ones(3))


def test_summary_of_a_run():
    negatives = [("negative", value) for value in np.linspace(0, 0.5, 50)]
    test = [*negatives, ("positive", 0.9), ("positive", 0.495), ("positive", 0.6), ("positive", 0.7)]
    summary = measure_scores(scores_table(negatives, test), max_false_positive_rate=0.02, resamples=200)
    assert summary["threshold_rule"] == "max_fpr"
    assert 0.48 < summary["validation_threshold"] < 0.5  # lets the highest of 50 negatives through
    assert (summary["validation_precision"], summary["validation_recall"]) == (0.8, 1.0)
    assert (summary["paper_precision"], summary["paper_recall"]) == (0.8, 1.0)  # F1 8/9 against 6/7
    assert summary["ap"] == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)
    counts = [summary[name] for name in ("n_val", "n_val_positive", "n_test", "n_test_positive")]
    assert counts == [50, 0, 54, 4]
    for name in ("ap", "auroc", "paper_f1", "validation_precision"):
        assert 0 <= summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"] <= 1


def test_intervals_repeat_and_narrow_with_more_images():
    def width(count: int) -> float:
        generator = np.random.default_rng(1)
        rows = [("positive", value) for value in generator.normal(1, 1, count)]
        rows += [("negative", value) for value in generator.normal(0, 1, 5 * count)]
        table = scores_table([("negative", 0.0)], rows)
        first, second = (measure_scores(table, resamples=300, seed=3) for _ in range(2))
        assert first == second
        return first["ap_high"] - first["ap_low"]

    assert width(200) < 0.5 * width(20)


def test_interval_of_one_positive_says_nothing():
    table = scores_table([("negative", 0.2)], [("positive", 0.9), ("negative", 0.3), ("negative", 0.1)])
    summary = measure_scores(table)
    assert (summary["ap"], summary["ap_low"], summary["ap_high"]) == (1.0, 0.0, 1.0)


def test_summary_without_positives_in_test():
    with pytest.raises(ValueError, match="both classes"):
        measure_scores(scores_table([("negative", 0.1)], [("negative", 0.1), ("negative", 0.3)]))
