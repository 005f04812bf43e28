"""Metrics from scores: AP, AUROC, precision and recall at two kinds of threshold, bootstrap intervals.

Precision, recall and F1 "by the papers' protocol" use the threshold that maximises F1 on the test set itself.
The honest ones, with a threshold chosen on the validation part, are reported next to them.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, rankdata

from defaug_utils.core.guards import raise_problems

# One part in ten is defective in KSDD2: a rate of 2 % is then one false alarm for every four defects found.
MAX_FALSE_POSITIVE_RATE = 0.02
RESAMPLES = 1000
CONFIDENCE = 0.95
NO_VALIDATION = "no validation part"


def measure_scores(
    scores_table: pd.DataFrame,
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """All metrics of one run.

    Args:
        scores_table: columns split ("test", and "val" if there is a validation part), label and score.
        max_false_positive_rate: see `choose_threshold`.
        resamples, seed: of the bootstrap of the test set.

    Returns:
        The metrics of `measure_sets` by name and, with _low and _high appended, their 95 % percentile
        intervals ([0, 1] if a class has fewer than two images). Also paper_threshold,
        validation_threshold, threshold_rule, max_false_positive_rate, n_val, n_val_positive, n_test and
        n_test_positive. Without a validation part n_val is 0, threshold_rule is "no validation part", and
        every metric at its threshold is None.

    Raises:
        ValueError: only one class, scores that are not finite, or no negatives in a validation part.
    """

    def pick(split: str) -> list[np.ndarray]:
        scores = scores_table[scores_table["split"] == split].set_index("label")["score"]
        return [scores[scores.index == label].to_numpy(float) for label in ("positive", "negative")]

    val, test = pick("val"), pick("test")
    _check_classes(*test)
    n_val = sum(map(len, val))
    threshold, rule = choose_threshold(*val, max_false_positive_rate) if n_val else (math.inf, NO_VALIDATION)
    summary = {name: float(value) for name, value in measure_sets(*test, threshold).items()}
    for name, (low, high) in _bootstrap(*test, threshold, resamples, seed).items():
        summary |= {f"{name}_low": low, f"{name}_high": high}
    summary |= {"validation_threshold": threshold}
    if not n_val:
        summary |= dict.fromkeys([name for name in summary if name.startswith("validation_")])
    return summary | {
        "paper_threshold": best_f1_threshold(*test),
        "threshold_rule": rule,
        "max_false_positive_rate": max_false_positive_rate,
        "n_val": n_val,
        "n_val_positive": len(val[0]),
        "n_test": sum(map(len, test)),
        "n_test_positive": len(test[0]),
    }


def tabulate_scores(summary: Mapping[str, float]) -> pd.DataFrame:
    """The metrics of `measure_scores`, one row each, with the columns value, from and to.

    If there is no validation part, its rows say so instead of a value.
    """
    titles = {"ap": "AP", "ap_trapezoid": "AP (trapezoid)", "auroc": "AUROC"}
    for protocol, words in (("paper", "papers' protocol"), ("validation", "validation threshold")):
        for number in ("precision", "recall", "f1"):
            titles[f"{protocol}_{number}"] = f"{number.replace('f1', 'F1')}, {words}"
    rows = [[summary[name + ending] for ending in ("", "_low", "_high")] for name in titles]
    table = pd.DataFrame(rows, list(titles.values()), ["value", "from", "to"]).rename_axis("number")
    if summary["n_val"]:
        return table
    return table.assign(value=table["value"].astype(object).where(table["value"].notna(), NO_VALIDATION))


def choose_threshold(
    positive: np.ndarray, negative: np.ndarray, max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE
) -> tuple[float, str]:
    """Choose a threshold from the scores (images,) of the validation part; return it and the rule.

    The rule is "max_f1" (see `best_f1_threshold`) or, without positives, "max_fpr": the lowest threshold with
    at most the given share of false positives, in [0, 1). Raises a ValueError if there are no negatives,
    scores are not finite, or the rate is out of range.
    """
    if len(positive):
        _check_classes(positive, negative)
        return best_f1_threshold(positive, negative), "max_f1"
    if not 0 <= max_false_positive_rate < 1:
        raise ValueError(f"max_false_positive_rate {max_false_positive_rate} must be in [0, 1)")
    if not len(negative) or not np.isfinite(negative).all():
        raise ValueError(f"a threshold needs finite scores of negatives, found {negative}")
    allowed = math.floor(max_false_positive_rate * len(negative) + 1e-9)
    highest_refused = np.sort(negative)[::-1][allowed]
    return float(np.nextafter(highest_refused, np.inf)), "max_fpr"


def _check_classes(positive: np.ndarray, negative: np.ndarray) -> None:
    scores, problems = np.concatenate([positive, negative]), []
    if not np.isfinite(scores).all():
        problems.append(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite")
    if not len(positive) or not len(negative):
        problems.append(f"{len(positive)} of {scores.size} images are positive: both classes are needed")
    raise_problems("these scores can't be evaluated", problems, ValueError)


class Ranking(NamedTuple):
    """Images from the highest to the lowest score, with the metrics of the rule "score ≥ this one".

    Every array has shape (..., images). Images with equal scores are classified together and therefore have
    equal metrics.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def at_best_f1(self) -> list[np.ndarray]:
        """Score, precision, recall and F1 at the lowest score with the largest F1, each with shape (...)."""
        place = self.f1.shape[-1] - 1 - self.f1[..., ::-1].argmax(axis=-1, keepdims=True)
        return [np.take_along_axis(values, place, axis=-1)[..., 0] for values in self]


def rank_scores(positive: np.ndarray, negative: np.ndarray) -> Ranking:
    """Rank the images of many sets at once, see `measure_sets`."""
    scores = np.concatenate([positive, negative], axis=-1)
    count, n_positive = scores.shape[-1], positive.shape[-1]
    order = np.argsort(-scores, axis=-1)
    ordered = np.take_along_axis(scores, order, axis=-1)
    # a threshold includes all images with the same score, so each is read at the last of them
    is_last = np.diff(ordered, axis=-1, append=-np.inf) != 0
    place = np.where(is_last, np.arange(count), count)
    last = np.minimum.accumulate(place[..., ::-1], axis=-1)[..., ::-1]
    found = np.take_along_axis(np.cumsum(order < n_positive, axis=-1), last, axis=-1)
    called = last + 1
    return Ranking(ordered, found / called, found / n_positive, 2 * found / (called + n_positive))


def best_f1_threshold(positive: np.ndarray, negative: np.ndarray) -> float:
    """The score that gives the largest F1 as threshold (the lowest such score)."""
    return float(rank_scores(positive, negative).at_best_f1()[0])


def measure_sets(positive: np.ndarray, negative: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """The metrics of one set of scores, or of many at once.

    Args:
        positive, negative: finite scores of each class, shape (..., images).
        threshold: an image is classified as positive if score ≥ threshold.

    Returns:
        Name → shape (...): "ap" (step-wise Σ (Rₙ − Rₙ₋₁) Pₙ, as in DIAG), "ap_trapezoid" (by the
        trapezoid rule, as in the official KSDD2 code), "auroc" (share of pairs in which the positive
        scores higher; ties count half); precision, recall and f1 after "paper_" at the best F1 and after
        "validation_" at the threshold. Precision is 0 if nothing is classified as positive.
    """
    n_positive, n_negative = positive.shape[-1], negative.shape[-1]
    ranking = rank_scores(positive, negative)
    precision, step = ranking.precision, np.diff(ranking.recall, axis=-1, prepend=0)
    middle = (precision + np.concatenate([np.ones_like(precision[..., :1]), precision[..., :-1]], -1)) / 2
    ranks = rankdata(np.concatenate([positive, negative], axis=-1), axis=-1)[..., :n_positive].sum(axis=-1)
    hits, alarms = (positive >= threshold).sum(axis=-1), (negative >= threshold).sum(axis=-1)
    called = hits + alarms
    _, *paper = ranking.at_best_f1()
    return {
        "ap": (step * precision).sum(axis=-1),
        "ap_trapezoid": (step * middle).sum(axis=-1),
        "auroc": (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative),
        **dict(zip(("paper_precision", "paper_recall", "paper_f1"), paper, strict=True)),
        "validation_precision": hits / np.maximum(1, called),
        "validation_recall": hits / n_positive,
        "validation_f1": 2 * hits / (called + n_positive),
    }


def measure_gain(
    before: pd.DataFrame,
    after: pd.DataFrame,
    metric: str = "ap",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """How much a metric of the test set differs between two classifiers, with a paired bootstrap interval.

    Every resample takes the same images for both, so that what the choice of images does to both cancels.

    Args:
        before, after: scores of the same images, with the columns image, split, label and score.
        metric: one of `measure_sets` that needs no threshold, such as "ap" or "auroc".
        resamples, seed: of the bootstrap; each class is resampled separately.

    Returns:
        gain (after − before), and gain_low and gain_high, its 95 % percentile interval ([−1, 1] if a class
        has fewer than two images).

    Raises:
        ValueError: the tables list different test images or labels, only one class, or scores that are not
            finite.
    """
    tables = [table[table["split"] == "test"].set_index("image") for table in (before, after)]
    labels = [table["label"].sort_index() for table in tables]
    if not labels[0].equals(labels[1]):
        raise ValueError("the two tables list different test images or labels: score the same test set")
    first, second = tables
    scores = np.stack([first["score"], second["score"].reindex(first.index)]).astype(float)
    is_positive = (first["label"] == "positive").to_numpy()
    positive, negative = scores[:, is_positive], scores[:, ~is_positive]
    for classes in zip(positive, negative, strict=True):
        _check_classes(*classes)

    def compare(positives: np.ndarray, negatives: np.ndarray, axis: int = -1) -> np.ndarray:
        found = measure_sets(positive[:, positives], negative[:, negatives], threshold=math.inf)[metric]
        return found[1] - found[0]

    places = np.arange(positive.shape[1]), np.arange(negative.shape[1])
    gain, interval = float(compare(*places)), (-1.0, 1.0)
    if min(map(len, places)) > 1:
        found = _resample(places, compare, resamples, seed)
        interval = float(found.low), float(found.high)
    return {"gain": gain, "gain_low": interval[0], "gain_high": interval[1]}


def _bootstrap(
    positive: np.ndarray, negative: np.ndarray, threshold: float, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals (Efron and Tibshirani 1993); each class is resampled separately."""
    names = list(measure_sets(positive, negative, threshold))
    if min(len(positive), len(negative)) < 2:
        return dict.fromkeys(names, (0.0, 1.0))
    found = _resample(
        (positive, negative),
        lambda *sets, axis: np.stack(list(measure_sets(*sets, threshold).values())),
        resamples,
        seed,
    )
    return {name: (float(a), float(b)) for name, a, b in zip(names, found.low, found.high, strict=True)}


def _resample(
    classes: tuple[np.ndarray, np.ndarray], statistic: Callable[..., np.ndarray], resamples: int, seed: int
) -> NamedTuple:
    """The percentile interval of a statistic of two classes, each resampled separately."""
    return bootstrap(
        classes,
        statistic,
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
