"""Checks of generated images against maps solved by hand."""

import numpy as np
import pytest

from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob
from defaug_utils.methods.painting import Check, CheckLimits, check_image, is_blank, measure_boundary_iou

LIMITS = CheckLimits(changed_from=10, contrast=4, completeness=0.5)


@pytest.fixture
def original() -> np.ndarray:
    return np.random.default_rng(0).integers(50, 200, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    return mask


def brighten(image: np.ndarray, where: np.ndarray, levels: int = 40) -> np.ndarray:
    return np.where(where[..., None], image + np.uint8(levels), image)


def check(
    original: np.ndarray,
    painted: np.ndarray,
    mask: np.ndarray,
    limits: CheckLimits = LIMITS,
    is_finite: bool = True,
) -> Check:
    finished = np.where(mask[..., None], painted, original)
    job = InpaintJob(original, mask, "crack", "", 0)
    return check_image(job, InpaintedImage(finished, painted, is_finite, 9), limits)


def test_a_change_of_the_whole_mask_is_perfect(original, mask):
    found = check(original, brighten(original, mask), mask)
    assert found == Check(40.0, 1.0, 1.0, 1.0, 0, True, "")


def test_half_the_mask_and_as_much_beside_it(original, mask):
    where = np.zeros((8, 8), bool)
    where[2:6, 4:8] = True
    found = check(original, brighten(original, where), mask)
    assert (found.contrast, found.completeness, found.precision) == (20.0, 0.5, 0.5)
    assert found.outside == 0, "the original was put back there"
    assert found.passed


def test_no_change_fails_by_name(original, mask):
    found = check(original, original, mask)
    assert not found.passed
    assert found.reason == "contrast 0 below 4; completeness 0 below 0.5"
    assert found.precision == 1.0, "nothing changed, so nothing changed elsewhere"


def test_haze_below_the_threshold_is_no_change_outside(original, mask):
    painted = brighten(brighten(original, ~mask, 9), mask, 40)
    assert check(original, painted, mask).precision == 1.0


def test_a_change_outside_is_never_passed(original, mask):
    finished = brighten(original, mask)
    finished[0, 0] += 3
    job = InpaintJob(original, mask, "crack", "", 0)
    found = check_image(job, InpaintedImage(finished, finished, True, 9), LIMITS)
    assert (found.outside, found.passed) == (3, False)
    assert "changed by 3 outside" in found.reason


def test_blank_and_unreal_pictures_fail(original, mask):
    blank = np.zeros_like(original)
    assert is_blank(blank) and not is_blank(original)
    assert check(original, blank, mask).reason.startswith("blank")
    assert check(original, blank, mask, is_finite=False).reason.startswith("not a number")


def test_every_limit_is_held_to(original, mask):
    where = np.zeros((8, 8), bool)
    where[2:6, 4:8] = True
    for name, value in {
        "contrast": 21.0,
        "completeness": 0.6,
        "precision": 0.6,
        "boundary_iou": 0.99,
    }.items():
        found = check(original, brighten(original, where), mask, limits=CheckLimits(**{name: value}))
        assert name in found.reason


def test_boundary_iou_by_hand():
    square = np.zeros((9, 9), bool)
    square[2:7, 2:7] = True
    inner = np.zeros((9, 9), bool)
    inner[3:6, 3:6] = True
    assert measure_boundary_iou(square, square, 1) == 1.0
    assert measure_boundary_iou(square, inner, 1) == 0.0, "rings of 16 and 8 pixels that nowhere meet"
    assert measure_boundary_iou(square, inner, 2) == pytest.approx(8 / 25), "24 and 9 pixels, 8 in both"
    nothing = np.zeros((9, 9), bool)
    assert measure_boundary_iou(nothing, nothing) == 1.0
    whole = np.ones((9, 9), bool)
    assert measure_boundary_iou(whole, square, 1) == 0.0, "the image's border is an edge"


@pytest.mark.parametrize(
    "wrong", [{"completeness": 1.1}, {"precision": -1}, {"changed_from": 0}, {"boundary_width": 0}]
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="expected shares"):
        CheckLimits(**wrong)


def test_columns_of_the_manifest(original, mask):
    row = check(original, brighten(original, mask), mask).as_row()
    assert set(row) == {f"check_{name}" for name in Check._fields}
    assert row["check_passed"] is True
