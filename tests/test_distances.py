"""Distances against textbook values, slow references, and what they must do on special sets."""

from itertools import combinations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from defaug_utils.evaluation.distances import (
    FeatureSummary,
    Moments,
    compare_features,
    frechet_distance,
    spread_over_draws,
    squared_kernel_distance,
)


def draw_features(count: int, channels: int = 5, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(channels, channels))
    return generator.normal(size=(count, channels)) @ mixing + shift


def draw_directions(count: int, seed: int = 0) -> np.ndarray:
    values = np.abs(np.random.default_rng(seed).normal(size=(count, 3, 2, 4)))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def summarise(features: np.ndarray, directions: np.ndarray, batch: int, **options: int) -> FeatureSummary:
    summary = FeatureSummary(**options)
    for start in range(0, len(features), batch):
        summary.add(features[start : start + batch], directions[start : start + batch])
    return summary


def slow_frechet(first: np.ndarray, second: np.ndarray) -> float:
    """As most programs compute it: the root of the product of both covariances by SciPy."""
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    gap = first.mean(0) - second.mean(0)
    return gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)


def slow_kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Pair by pair, as the formula is printed."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    within = [
        sum(2 * kernel(x, y) for x, y in combinations(side, 2)) / (len(side) * (len(side) - 1))
        for side in (first, second)
    ]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in first for y in second])


def test_frechet_distance_of_hand_solved_normals():
    """In one dimension it is (μ₁ − μ₂)² + (σ₁ − σ₂)²; with diagonal covariances the sum of these."""
    first = Moments(np.array([1.0, 0.0]), np.diag([4.0, 9.0]))
    second = Moments(np.array([3.0, 0.0]), np.diag([1.0, 25.0]))
    assert frechet_distance(first, second) == pytest.approx(4 + (2 - 1) ** 2 + (3 - 5) ** 2)
    one = Moments(np.array([2.0]), np.array([[4.0]]))
    other = Moments(np.array([5.0]), np.array([[1.0]]))
    assert frechet_distance(one, other) == pytest.approx(9 + 1)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_frechet_distance_agrees_with_the_slow_way(shift):
    first, second = draw_features(40), draw_features(60, seed=1, shift=shift)
    assert compare_features(first, second) == pytest.approx(slow_frechet(first, second))
    assert compare_features(second, first) == pytest.approx(compare_features(first, second))
    assert compare_features(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_with_fewer_images_than_channels():
    """The roots of singular covariances are real all the same; turning the axes changes nothing."""
    first, second = draw_features(4, channels=9), draw_features(5, channels=9, seed=1)
    turned, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(9, 9)))
    value = compare_features(first, second)
    assert value > 0 and np.isfinite(value)
    assert compare_features(first @ turned, second @ turned) == pytest.approx(value)
    assert compare_features(first, first) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_agrees_with_the_formula_pair_by_pair():
    first, second = draw_features(7), draw_features(9, seed=1, shift=0.5)
    slow = slow_kernel_distance(first, second)
    assert squared_kernel_distance(first, second) == pytest.approx(slow)


def test_kernel_distance_of_one_kind_is_zero_on_average_and_not_biased_by_few_images():
    few = [
        squared_kernel_distance(draw_features(8, 3, 2 * seed), draw_features(8, 3, 2 * seed + 1))
        for seed in range(400)
    ]
    assert min(few) < 0 < max(few)
    assert abs(np.mean(few)) < 3 * np.std(few) / np.sqrt(len(few))
    frechet = [
        compare_features(draw_features(count, 3, 1), draw_features(count, 3, 2)) for count in (8, 80, 800)
    ]
    assert frechet == sorted(frechet, reverse=True), "the Fréchet distance is biased by few images"


def test_draws_are_seeded_and_parts_of_one_set_share_no_image():
    features = draw_features(20)
    seen = []

    def record(first: np.ndarray, second: np.ndarray) -> float:
        seen.append((first, second))
        return float(first.sum() - second.sum())

    spread = spread_over_draws(record, features, None, 10, draws=6)
    for parts in seen:
        together = np.concatenate(parts)
        assert len(np.unique(together, axis=0)) == 20
    values = [first.sum() - second.sum() for first, second in seen]
    assert spread == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert spread == spread_over_draws(record, features, None, 10, draws=6)
    assert spread != spread_over_draws(record, features, None, 10, draws=6, seed=1)


def test_too_few_images_give_no_number():
    features = draw_features(5)
    assert np.isnan(spread_over_draws(compare_features, features, None, 3)).all()
    assert np.isnan(spread_over_draws(compare_features, features, draw_features(2), 3)).all()
    assert np.isnan(spread_over_draws(compare_features, features, features, 1)).all()
    with pytest.raises(ValueError, match="at least 2 images, found 1"):
        _ = summarise(features[:1], draw_directions(1), 1).moments


@pytest.mark.parametrize("batch", [1, 4, 11])
def test_running_sums_are_those_of_all_images_at_once(batch):
    features, directions = draw_features(11, shift=1e4), draw_directions(11)
    summary = summarise(features, directions, batch)
    expected = Moments(features.mean(0), np.cov(features, rowvar=False))
    assert summary.count == 11
    assert (summary.kept == features).all()
    np.testing.assert_allclose(summary.moments.mean, expected.mean)
    np.testing.assert_allclose(summary.moments.covariance, expected.covariance, rtol=1e-6)


def test_diversity_is_the_mean_over_all_pairs():
    directions = draw_directions(7)
    pairs = [((first - second) ** 2).sum(axis=0).mean() for first, second in combinations(directions, 2)]
    assert summarise(draw_features(7), directions, 3).diversity == pytest.approx(np.mean(pairs))


def test_equal_images_have_no_diversity_and_foreign_ones_two():
    same = np.repeat(draw_directions(1), 5, axis=0)
    assert summarise(draw_features(5), same, 2).diversity == pytest.approx(0, abs=1e-12)
    foreign = np.zeros((3, 3, 2, 2))
    foreign[np.arange(3), np.arange(3)] = 1
    assert summarise(draw_features(3), foreign, 2).diversity == pytest.approx(2)
    assert np.isnan(summarise(draw_features(1), same[:1], 1).diversity)


def test_every_image_has_the_same_chance_to_be_kept():
    features, directions = np.arange(20.0)[:, None], np.ones((20, 1, 1, 1))
    kept = [
        summarise(features, directions, 6, limit=5, seed=seed).kept[:, 0].astype(int) for seed in range(800)
    ]
    assert all(len(set(row)) == 5 for row in kept)
    counts = np.bincount(np.concatenate(kept), minlength=20)
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200 * 0.75)
