"""Metrics against curves solved by hand, against scikit-learn, and on input that can't be judged."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
)

from defaug_utils.evaluation.metrics import (
    best_f1_threshold,
    choose_threshold,
    measure_gain,
    measure_scores,
    measure_sets,
    tabulate_scores,
)

# Four images, ranked positive, negative, positive, negative:
# (recall, precision) = (1/2, 1), (1/2, 1/2), (1, 2/3), (1, 1/2)
POSITIVE, NEGATIVE = np.array([0.9, 0.7]), np.array([0.8, 0.1])

labelled_scores = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=25).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


def split_pairs(pairs: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        np.array([score for label, score in pairs if label == kind], float) for kind in (True, False)
    )


def read_at(positive: np.ndarray, negative: np.ndarray, threshold: float) -> tuple[float, float, float]:
    """Precision, recall and F1."""
    numbers = measure_sets(positive, negative, threshold)
    return tuple(numbers[f"validation_{name}"] for name in ("precision", "recall", "f1"))


def scores_table(val: list[tuple[str, float]], test: list[tuple[str, float]]) -> pd.DataFrame:
    rows = [("val", *pair) for pair in val] + [("test", *pair) for pair in test]
    return pd.DataFrame(rows, columns=["split", "label", "score"])


def test_hand_solved_curve():
    numbers = measure_sets(POSITIVE, NEGATIVE, 0.75)
    assert numbers["ap"] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    # trapezoids over recall 0 … ½ (1 to 1) and ½ … 1 (½ to ⅔)
    assert numbers["ap_trapezoid"] == pytest.approx(1 / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2)
    assert numbers["auroc"] == pytest.approx(3 / 4)


def test_hand_solved_thresholds():
    assert best_f1_threshold(POSITIVE, NEGATIVE) == 0.7
    assert read_at(POSITIVE, NEGATIVE, 0.7) == (pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert read_at(POSITIVE, NEGATIVE, 0.75) == (0.5, 0.5, 0.5)
    assert read_at(POSITIVE, NEGATIVE, 0.95) == (0.0, 0.0, 0.0)


def test_of_equally_good_thresholds_the_lowest_is_taken():
    # F1 is 2/3 at 0.9 (2 of 4 found, no alarm) and at 0.5 (all found, 4 alarms)
    assert best_f1_threshold(np.array([0.9, 0.9, 0.5, 0.5]), np.full(4, 0.5)) == 0.5


def test_a_score_at_the_threshold_counts_as_positive():
    assert read_at(POSITIVE, NEGATIVE, 0.9)[1] == 0.5
    assert read_at(POSITIVE, NEGATIVE, np.nextafter(0.9, 1))[1] == 0.0


def test_perfect_and_reversed_ranking():
    positive, negative = np.arange(10, 7, -1.0), np.arange(7, 0, -1.0)
    perfect = measure_sets(positive, negative, 0)
    assert perfect["ap"] == perfect["ap_trapezoid"] == perfect["auroc"] == 1
    # reversed, the positives come at ranks 8, 9 and 10
    reverse = measure_sets(-positive, -negative, 0)
    assert reverse["ap"] == pytest.approx((1 / 8 + 2 / 9 + 3 / 10) / 3)
    assert reverse["auroc"] == 0


def test_equal_scores_give_the_share_of_positives():
    numbers = measure_sets(np.full(1, 0.5), np.full(3, 0.5), 1)
    assert (numbers["ap"], numbers["auroc"]) == (0.25, 0.5)
    assert numbers["paper_f1"] == pytest.approx(0.4)


@given(labelled_scores)
def test_agrees_with_scikit_learn_and_a_slow_search(pairs):
    labels, scores = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], float)
    sides = split_pairs(pairs)
    numbers = measure_sets(*sides, 0)
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert numbers["ap"] == pytest.approx(average_precision_score(labels, scores))
    assert numbers["ap_trapezoid"] == pytest.approx(auc(recall, precision))
    assert numbers["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    found = {}
    for threshold in np.unique(scores):
        called = scores >= threshold
        found[threshold] = precision_recall_fscore_support(labels, called, average="binary", zero_division=0)
        assert read_at(*sides, threshold) == pytest.approx(found[threshold][:3])
    best = found[best_f1_threshold(*sides)][:3]
    assert [numbers[f"paper_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(best)
    assert best[2] == pytest.approx(max(f1 for _, _, f1, _ in found.values()))


@given(labelled_scores, st.integers(-1, 7))
def test_many_at_once_equals_one_by_one(pairs, threshold):
    positive, negative = split_pairs(pairs)
    sets = [(positive, negative), (7 - positive, 7 - negative), (positive // 3, negative // 3)]
    many = measure_sets(*(np.stack(side) for side in zip(*sets, strict=True)), threshold)
    for place, sides in enumerate(sets):
        for name, expected in measure_sets(*sides, threshold).items():
            assert many[name][place] == pytest.approx(expected), name


def test_threshold_with_positives_is_that_of_the_best_f1():
    assert choose_threshold(POSITIVE, NEGATIVE) == (0.7, "max_f1")


@pytest.mark.parametrize(("rate", "passing"), [(0.0, 0), (0.02, 1), (0.05, 2), (0.5, 25), (0.29, 14)])
def test_threshold_without_positives_lets_the_allowed_share_through(rate, passing):
    scores = np.random.default_rng(0).permutation(np.linspace(0.1, 0.9, 50))
    threshold, rule = choose_threshold(np.empty(0), scores, rate)
    assert rule == "max_fpr"
    assert (scores >= threshold).sum() == passing
    # any lower threshold would let one more through
    assert (scores >= np.nextafter(threshold, 0)).sum() == passing + 1


def test_threshold_without_positives_keeps_ties_together():
    scores = np.array([0.9, 0.8, 0.8, 0.8, 0.1])
    threshold, _ = choose_threshold(np.empty(0), scores, 0.4)
    assert (scores >= threshold).sum() == 1


@pytest.mark.parametrize("rate", [-0.1, 1.0, np.nan])
def test_rate_out_of_range(rate):
    with pytest.raises(ValueError, match="max_false_positive_rate"):
        choose_threshold(np.empty(0), np.ones(3), rate)


def test_no_validation_image():
    with pytest.raises(ValueError, match="negatives"):
        choose_threshold(np.empty(0), np.empty(0))


def test_validation_that_cannot_be_judged():
    with pytest.raises(ValueError, match="3 of 3 images are positive: both classes"):
        choose_threshold(np.ones(3), np.empty(0))
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        choose_threshold(np.array([0.1]), np.array([np.nan, 0.3]))
    with pytest.raises(ValueError, match="finite scores of negatives"):
        choose_threshold(np.empty(0), np.array([np.nan, 0.3]))


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


def test_without_a_validation_part_no_threshold_is_told():
    test = [("negative", 0.1), ("negative", 0.8), ("positive", 0.9), ("positive", 0.7)]
    with_part = measure_scores(scores_table([("negative", 0.2)], test), resamples=50)
    summary = measure_scores(scores_table([], test), resamples=50)
    assert summary.keys() == with_part.keys()
    of_validation = {name for name in summary if name.startswith("validation_")}
    assert len(of_validation) == 1 + 3 * 3 and all(summary[name] is None for name in of_validation)
    assert (summary["threshold_rule"], summary["n_val"]) == ("no validation part", 0)
    others = summary.keys() - of_validation - {"threshold_rule", "n_val"}
    assert {name: summary[name] for name in others} == {name: with_part[name] for name in others}
    told = tabulate_scores(summary)["value"]
    assert (told[told.index.str.contains("validation")] == "no validation part").all()
    assert told["AP"] == summary["ap"] and (tabulate_scores(with_part)["value"] <= 1).all()


def test_a_validation_part_without_negatives_is_still_refused():
    with pytest.raises(ValueError, match="both classes"):
        measure_scores(scores_table([("positive", 0.2)], [("negative", 0.1), ("positive", 0.3)]))


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


def test_test_set_that_cannot_be_judged():
    with pytest.raises(ValueError, match="0 of 2 images are positive: both classes"):
        measure_scores(scores_table([("negative", 0.1)], [("negative", 0.1), ("negative", 0.3)]))
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        measure_scores(scores_table([("negative", 0.1)], [("negative", 0.1), ("positive", np.inf)]))


def score_images(*scores: float, positives: int = 2) -> pd.DataFrame:
    """Scores of test images, positives first, and of a validation image that must not count."""
    labels = ["positive"] * positives + ["negative"] * (len(scores) - positives)
    rows = [(f"{number}.png", "test", *pair) for number, pair in enumerate(zip(labels, scores, strict=True))]
    columns = ["image", "split", "label", "score"]
    return pd.DataFrame([("val.png", "val", "negative", 0.5), *rows], columns=columns)


def test_a_gain_solved_by_hand():
    # AP 1/2 · 1/2 + 1/2 · 2/3 = 7/12 before, when the first negative has the highest score, and 1 after
    before, after = score_images(0.8, 0.7, 0.9, 0.1), score_images(0.8, 0.7, 0.2, 0.1)
    found = measure_gain(before, after, resamples=500)
    assert found["gain"] == pytest.approx(5 / 12)
    # the negatives drawn are the first twice, either once, or the second twice: AP 5/12, 7/12 or 1 before
    assert (found["gain_low"], found["gain_high"]) == pytest.approx((0, 7 / 12))
    back = measure_gain(after, before, resamples=500)
    assert list(back.values()) == pytest.approx([-5 / 12, -7 / 12, 0])
    assert measure_gain(before, after, "auroc", resamples=50)["gain"] == pytest.approx(1 / 2)


def test_a_gain_pairs_the_images_so_what_is_hard_for_both_does_not_count():
    generator = np.random.default_rng(1)
    before = score_images(*generator.normal(0.3, 1, 20), *generator.normal(0, 1, 60), positives=20)
    squeezed = before.assign(score=before["score"] / 10)  # the same order: no resample can tell them apart
    assert list(measure_gain(before, squeezed, resamples=100).values()) == [0, 0, 0]
    mixed = before.sample(frac=1, random_state=0)  # rows in another order are the same scores
    assert list(measure_gain(before, mixed, resamples=100).values()) == [0, 0, 0]
    assert measure_gain(before, before.assign(score=-before["score"]), resamples=100)["gain_low"] < 0


def test_the_gain_of_one_positive_has_an_interval_that_says_nothing():
    found = measure_gain(score_images(0.1, 0.5, positives=1), score_images(0.9, 0.5, positives=1))
    assert list(found.values()) == [0.5, -1.0, 1.0]


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (score_images(0.8, 0.7, 0.2), "different test images or labels"),
        (score_images(0.8, 0.7, 0.2, 0.1, positives=3), "different test images or labels"),
        (score_images(0.8, np.nan, 0.2, 0.1), "1 of 4 scores are not finite"),
    ],
)
def test_a_gain_that_can_not_be_measured(after: pd.DataFrame, told: str):
    with pytest.raises(ValueError, match=told):
        measure_gain(score_images(0.8, 0.7, 0.9, 0.1), after)


def test_a_gain_needs_both_classes():
    only = score_images(0.8, 0.7, positives=2)
    with pytest.raises(ValueError, match="both classes are needed"):
        measure_gain(only, only)
