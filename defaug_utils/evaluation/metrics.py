"""Scores to numbers: AP, AUROC, precision and recall at two kinds of threshold, with bootstrap intervals.

Precision, recall and F1 "by the papers' protocol" are read at the threshold that maximises F1 on the test
set itself. Beside them stand the honest ones, whose threshold is chosen on the validation part.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, rankdata
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from defaug_utils.core.guards import raise_problems

# One part in ten is defective in KSDD2: 2 % false alarms are then one for every four defects found.
MAX_FALSE_POSITIVE_RATE = 0.02
RESAMPLES = 1000
CONFIDENCE = 0.95


class OperatingPoint(NamedTuple):
    """A classifier used at one threshold: an image is called positive when score ≥ threshold."""

    threshold: float
    precision: float
    recall: float
    f1: float


def _check_scores(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=float)
    problems = []
    if labels.shape != scores.shape or labels.ndim != 1:
        problems.append(f"labels of shape {labels.shape} and scores of shape {scores.shape} don't pair up")
    if not np.isfinite(scores).all():
        problems.append(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite")
    if labels.all() or not labels.any():
        problems.append(f"{labels.sum()} of {labels.size} images are positive: both classes are needed")
    raise_problems("these scores can't be judged", problems, ValueError)
    return labels, scores


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """AP as the step-wise sum Σ (Rₙ − Rₙ₋₁) Pₙ, as DIAG reports it; guessing has the share of positives."""
    return float(average_precision_score(*_check_scores(labels, scores)))


def average_precision_trapezoid(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve by the trapezoid rule, as the official KSDD2 code has it."""
    precision, recall, _ = precision_recall_curve(*_check_scores(labels, scores))
    return float(auc(recall, precision))


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of (positive, negative) pairs in which the positive scores higher; ties count half."""
    return float(roc_auc_score(*_check_scores(labels, scores)))


def precision_recall_at(labels: np.ndarray, scores: np.ndarray, threshold: float) -> OperatingPoint:
    """Precision, recall and F1 of "score ≥ threshold"; precision is 0 when nothing is called positive."""
    labels, scores = _check_scores(labels, scores)
    called = scores >= threshold
    found = int((called & labels).sum())
    precision = found / max(1, int(called.sum()))
    recall = found / int(labels.sum())
    f1 = 2 * found / int(called.sum() + labels.sum())
    return OperatingPoint(float(threshold), precision, recall, f1)


def best_f1_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The score that, as threshold, gives the largest F1 (the lowest such score)."""
    labels, scores = _check_scores(labels, scores)
    thresholds = np.unique(scores)
    found, alarms = (
        len(values) - np.searchsorted(np.sort(values), thresholds)
        for values in (scores[labels], scores[~labels])
    )
    return float(thresholds[np.argmax(2 * found / (found + alarms + labels.sum()))])


def choose_threshold(
    labels: np.ndarray, scores: np.ndarray, max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE
) -> tuple[float, str]:
    """Choose a threshold on the validation part, which has positives or only negatives.

    Args:
        labels: shape (images,), true for positive.
        scores: shape (images,).
        max_false_positive_rate: share of the negatives that may be called positive, in [0, 1); counts
            only where there is no positive.

    Returns:
        The threshold and the rule it came from: "max_f1", or "max_fpr" (the lowest threshold that lets
        no more than that share of the negatives through).

    Raises:
        ValueError: no negative, scores that are not finite, or a rate out of range.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=float)
    if labels.any():
        return best_f1_threshold(labels, scores), "max_f1"
    if not 0 <= max_false_positive_rate < 1:
        raise ValueError(f"max_false_positive_rate {max_false_positive_rate} must be in [0, 1)")
    if not labels.size or not np.isfinite(scores).all():
        raise ValueError(f"a threshold needs finite scores of negatives, got {scores}")
    allowed = math.floor(max_false_positive_rate * scores.size + 1e-9)
    highest_refused = np.sort(scores)[::-1][allowed]
    return float(np.nextafter(highest_refused, np.inf)), "max_fpr"


def measure_scores(
    scores_table: pd.DataFrame,
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """All numbers of one run.

    Args:
        scores_table: columns split ("val" and "test"), label and score.
        max_false_positive_rate: see `choose_threshold`.
        resamples: bootstrap resamples of the test set, positives and negatives each among themselves.
        seed: of the resampling.

    Returns:
        The numbers of `measure_at` by name and, with _low and _high appended, their 95 % percentile
        intervals ([0, 1] where a class has fewer than two images). Also paper_threshold,
        validation_threshold, threshold_rule, max_false_positive_rate, n_val, n_val_positive, n_test and
        n_test_positive.

    Raises:
        ValueError: one class only, scores that are not finite, or no negative in validation.
    """
    is_positive = (scores_table["label"] == "positive").to_numpy()
    scores = scores_table["score"].to_numpy(float)
    in_val, in_test = ((scores_table["split"] == split).to_numpy() for split in ("val", "test"))
    labels, scores_test = _check_scores(is_positive[in_test], scores[in_test])
    threshold, rule = choose_threshold(is_positive[in_val], scores[in_val], max_false_positive_rate)
    summary = measure_at(labels, scores_test, threshold)
    for name, (low, high) in _bootstrap(labels, scores_test, threshold, resamples, seed).items():
        summary |= {f"{name}_low": low, f"{name}_high": high}
    return summary | {
        "paper_threshold": best_f1_threshold(labels, scores_test),
        "validation_threshold": threshold,
        "threshold_rule": rule,
        "max_false_positive_rate": max_false_positive_rate,
        "n_val": int(in_val.sum()),
        "n_val_positive": int(is_positive[in_val].sum()),
        "n_test": int(in_test.sum()),
        "n_test_positive": int(labels.sum()),
    }


def tabulate_scores(summary: Mapping[str, float]) -> pd.DataFrame:
    """The numbers of `measure_scores`, one row each, with the columns value, from and to."""
    titles = {"ap": "AP", "ap_trapezoid": "AP (trapezoid)", "auroc": "AUROC"}
    for protocol, words in (("paper", "papers' protocol"), ("validation", "validation threshold")):
        for number in ("precision", "recall", "f1"):
            titles[f"{protocol}_{number}"] = f"{number.replace('f1', 'F1')}, {words}"
    ends = {"value": "", "from": "_low", "to": "_high"}
    rows = {
        title: {end: summary[name + ending] for end, ending in ends.items()} for name, title in titles.items()
    }
    return pd.DataFrame(rows).T.rename_axis("number")


def measure_at(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """The test set's numbers: "paper_" at its own best F1, "validation_" at the given threshold."""
    paper = precision_recall_at(labels, scores, best_f1_threshold(labels, scores))
    chosen = precision_recall_at(labels, scores, threshold)
    return {
        "ap": average_precision(labels, scores),
        "ap_trapezoid": average_precision_trapezoid(labels, scores),
        "auroc": auroc(labels, scores),
        "paper_precision": paper.precision,
        "paper_recall": paper.recall,
        "paper_f1": paper.f1,
        "validation_precision": chosen.precision,
        "validation_recall": chosen.recall,
        "validation_f1": chosen.f1,
    }


def measure_many(positive: np.ndarray, negative: np.ndarray, threshold: float) -> np.ndarray:
    """The numbers of `measure_at`, shape (9, sets), for many sets of scores at once.

    Args:
        positive: scores of the positives, shape (sets, positives).
        negative: scores of the negatives, shape (sets, negatives).
        threshold: see `measure_at`.
    """
    n_positive, n_negative = positive.shape[-1], negative.shape[-1]
    scores = np.concatenate([positive, negative], axis=-1)
    order = np.argsort(-scores, axis=-1)
    ordered = np.take_along_axis(scores, order, axis=-1)
    # a threshold takes in all images of one score: each is read at the last place of its score
    is_last = np.diff(ordered, axis=-1, append=-np.inf) != 0
    place = np.where(is_last, np.arange(scores.shape[-1]), scores.shape[-1])
    last = np.minimum.accumulate(place[..., ::-1], axis=-1)[..., ::-1]
    found = np.take_along_axis(np.cumsum(order < n_positive, axis=-1), last, axis=-1)
    recall, precision = found / n_positive, found / (last + 1)
    f1 = 2 * found / (last + 1 + n_positive)
    best = scores.shape[-1] - 1 - f1[..., ::-1].argmax(axis=-1, keepdims=True)
    paper = [np.take_along_axis(values, best, axis=-1)[..., 0] for values in (precision, recall, f1)]

    step = np.diff(recall, axis=-1, prepend=0)
    middle = (precision + np.concatenate([np.ones_like(precision[..., :1]), precision[..., :-1]], -1)) / 2
    ranks = rankdata(scores, axis=-1)[..., :n_positive].sum(axis=-1)
    area = (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    hits, alarms = (positive >= threshold).sum(axis=-1), (negative >= threshold).sum(axis=-1)
    called = hits + alarms
    chosen = [hits / np.maximum(1, called), hits / n_positive, 2 * hits / (called + n_positive)]
    return np.stack([(step * precision).sum(-1), (step * middle).sum(-1), area, *paper, *chosen])


def _bootstrap(
    labels: np.ndarray, scores: np.ndarray, threshold: float, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals (Efron and Tibshirani 1993); each class is resampled among itself."""
    positive, negative = scores[labels], scores[~labels]
    names = list(measure_at(labels, scores, threshold))
    if min(len(positive), len(negative)) < 2:
        return dict.fromkeys(names, (0.0, 1.0))
    found = bootstrap(
        (positive, negative),
        lambda positive, negative, axis: measure_many(positive, negative, threshold),
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {name: (float(a), float(b)) for name, a, b in zip(names, found.low, found.high, strict=True)}
