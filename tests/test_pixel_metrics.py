"""Score maps to numbers: maps solved by hand, an independent slow count, and what must not matter."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, roc_auc_score

from defaug_utils.evaluation import pixel_metrics
from defaug_utils.evaluation.pixel_metrics import (
    count_pixels,
    instance_average_precision,
    measure_pixels,
    pixel_auroc,
    pixel_average_precision,
    region_overlap_area,
)

NUMBERS = ("pixel_auroc", "pro", "pixel_ap", "iap", "iap90")


def lay_out(regions: list[list[float]], normal: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """One row of pixels: the regions' scores and the normal ones, the first of these between the regions."""
    scores, mask = [], []
    gaps = iter(normal)
    for region in regions:
        scores += [*region, next(gaps)]
        mask += [True] * len(region) + [False]
    rest = list(gaps)
    return np.array([scores + rest]), np.array([mask + [False] * len(rest)])


@pytest.fixture
def two_regions():
    """Regions (0.9, 0.3) and (0.5), ten normal pixels."""
    return lay_out([[0.9, 0.3], [0.5]], [0.8, 0.6, 0.4] + [0.1] * 7)


def test_overlap_solved_by_hand(two_regions):
    # falling: 0.9 → overlap 1/4; 0.8, 0.6 → rate 0.2; 0.5 → overlap 3/4; 0.4 → rate 0.3; 0.3 → overlap 1
    counts = count_pixels([two_regions])
    assert region_overlap_area(counts) == pytest.approx((0.2 * 0.25 + 0.1 * 0.75) / 0.3)
    assert region_overlap_area(counts, 0.25) == pytest.approx((0.2 * 0.25 + 0.05 * 0.75) / 0.25)
    assert region_overlap_area(counts, 1) == pytest.approx(0.05 + 0.075 + 0.7)


def test_a_rate_between_two_points_is_interpolated():
    # 0.9 → overlap 1/2; then one score holds all four normal pixels and the other half: a slanted line
    scores, mask = lay_out([[0.9, 0.2]], [0.2] * 4)
    assert region_overlap_area(count_pixels([(scores, mask)])) == pytest.approx((0.5 + 0.65) / 2)


def test_area_and_precision_solved_by_hand(two_regions):
    counts = count_pixels([two_regions])
    assert pixel_auroc(counts) == pytest.approx((10 + 8 + 7) / 30)
    assert pixel_average_precision(counts) == pytest.approx((1 / 1 + 2 / 4 + 3 / 6) / 3)


def test_instances_solved_by_hand():
    # half of (0.9, 0.8) reach 0.8, half of (0.6, 0.5, 0.2) reach 0.5: entries 1 and 1 of the falling scores
    image = lay_out([[0.9, 0.8], [0.6, 0.5, 0.2]], [0.7, 0.55, 0.1])
    counts = count_pixels([image])
    assert counts.instance_scores.tolist() == [0.5, 0.8]
    # at 0.5: 4 of 6 pixels are right; at 0.8: 2 of 2
    assert instance_average_precision(counts) == pytest.approx(((4 / 6 + 1) / 2, 4 / 6))
    assert instance_average_precision(counts, 0.5) == pytest.approx(((4 / 6 + 1) / 2, 1))


def test_precision_is_made_monotone():
    # at 0.5: 4 of 5; at 0.8: 2 of 3, but a higher recall has 4 of 5
    image = lay_out([[0.9, 0.8], [0.6, 0.5, 0.2]], [0.85, 0.1, 0.1])
    assert instance_average_precision(count_pixels([image])) == pytest.approx((0.8, 0.8))


@pytest.mark.parametrize(("instances", "missed"), [(9, 0), (10, 1), (19, 1), (20, 2)])
def test_iap90_may_miss_one_instance_in_ten(instances, missed):
    # instance i scores i + 1, a normal pixel lies just below each: the precision tells the instance
    image = lay_out([[i + 1.0] for i in range(instances)], [i + 0.5 for i in range(instances)])
    rising = [(instances - i) / (2 * (instances - i) - 1) for i in range(instances)]
    expected = (np.mean(rising), rising[missed])
    assert instance_average_precision(count_pixels([image])) == pytest.approx(expected)


def test_regions_touch_at_corners():
    mask = np.eye(4, dtype=bool)
    mask[0, 3] = True
    assert measure_pixels([(mask.astype(float), mask)])["instances"] == 2


def draw_maps(seed: int, levels: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Four images of different size, one without defect; scores are random, or of so many levels."""
    rng = np.random.default_rng(seed)
    images = []
    for number, shape in enumerate([(9, 7), (6, 11), (8, 8), (5, 5)]):
        mask = (rng.random(shape) < 0.25) & (number != 2)
        scores = rng.normal(mask.astype(float), 1.0)
        if levels:
            scores = np.floor(scores * levels / 4)
        images.append((scores, mask))
    return images


def measure_slowly(images: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The same numbers by a loop over every threshold and region."""
    scores = np.concatenate([score_map.ravel() for score_map, _ in images])
    masks = np.concatenate([mask.ravel() for _, mask in images])
    regions = []
    for score_map, mask in images:
        labelled, number = label(mask, np.ones((3, 3)))
        regions += [score_map[labelled == one] for one in range(1, number + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores), reverse=True):
        rate = (scores[~masks] >= threshold).mean()
        points.append((rate, np.mean([(region >= threshold).mean() for region in regions])))
    area = 0.0
    for (x, y), (next_x, next_y) in pairwise(points):
        if x < 0.3 and next_x > x:
            end = min(next_x, 0.3)
            end_y = y + (next_y - y) * (end - x) / (next_x - x)
            area += (end - x) * (y + end_y) / 2
    reached = sorted(sorted(region, reverse=True)[len(region) // 2] for region in regions)
    precision = [masks[scores >= threshold].mean() for threshold in reached]
    best = [max(precision[: i + 1]) for i in range(len(precision))]
    good = [p for i, p in enumerate(best) if (len(best) - i) * 10 >= 9 * len(best)]
    return {
        "pixel_auroc": roc_auc_score(masks, scores),
        "pro": area / 0.3,
        "pixel_ap": average_precision_score(masks, scores),
        "iap": np.mean(best),
        "iap90": good[-1],
    }


@pytest.mark.parametrize("levels", [0, 3, 12])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_slow_count(seed, levels):
    images = draw_maps(seed, levels)
    found = measure_pixels(images)
    assert {name: found[name] for name in NUMBERS} == pytest.approx(measure_slowly(images))


@given(st.integers(0, 10**6), st.integers(2, 40))
@settings(max_examples=30)
def test_only_the_order_of_scores_counts(seed, levels):
    images = draw_maps(seed, levels)
    transformed = [(np.exp(scores / 5) * 3 - 100, mask) for scores, mask in images]
    assert measure_pixels(transformed) == pytest.approx(measure_pixels(images))


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_order_of_images_merging_and_mirroring_do_not_count(seed):
    images = draw_maps(seed, 9)
    changed = [(scores[::-1].T, mask[::-1].T) for scores, mask in reversed(images)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel_metrics, "MERGE_AFTER", 10)
        assert measure_pixels(iter(changed)) == pytest.approx(measure_pixels(images))


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_perfect_map_has_one_everywhere_and_its_opposite_zero_area(seed):
    masks = [mask for _, mask in draw_maps(seed)]
    perfect = measure_pixels((mask.astype(np.float32), mask) for mask in masks)
    assert [perfect[name] for name in NUMBERS] == pytest.approx([1] * 5)
    inverted = measure_pixels(((~mask).astype(float), mask) for mask in masks)
    share = np.concatenate([mask.ravel() for mask in masks]).mean()
    assert [inverted[name] for name in NUMBERS] == pytest.approx([0, 0, share, share, share])


def test_a_constant_map_knows_nothing():
    images = [(np.full(mask.shape, 0.4), mask) for _, mask in draw_maps(1)]
    share = np.concatenate([mask.ravel() for _, mask in images]).mean()
    found = measure_pixels(images)
    assert [found[name] for name in NUMBERS] == pytest.approx([0.5, 0.15, share, share, share])


def test_counts_add_up():
    images = draw_maps(3)
    found = measure_pixels(images)
    assert found["pixels"] == sum(mask.size for _, mask in images)
    assert found["defect_pixels"] == sum(mask.sum() for _, mask in images)


def test_every_broken_map_is_listed():
    mask = np.zeros((3, 4), bool)
    images = [
        (np.zeros((3, 4)), mask),
        (np.zeros((4, 3)), mask),
        (np.full((3, 4), np.nan), mask),
        (np.zeros((3, 4)), mask.astype(np.uint8)),
    ]
    with pytest.raises(ValueError, match=r"3 problem.*\n.*image 1: .*\n.*image 2: 12 of 12.*\n.*image 3: "):
        count_pixels(images)


@pytest.mark.parametrize("images", [[], [(np.zeros((2, 2)), np.zeros((2, 2), bool))]])
def test_both_kinds_of_pixels_are_needed(images):
    with pytest.raises(ValueError, match="both kinds are needed"):
        count_pixels(images)
