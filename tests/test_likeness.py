"""Kept until good: a painted defect must resemble a known one, and a pool that hardly ever passes stops."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import ManifestError, make_manifest
from defaug_utils.core.origins import Run
from defaug_utils.core.pools import GeneratedImage, PoolPlan, PoolRejected, make_pool, read_recipe
from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob
from defaug_utils.methods.likeness import CROP_SIDE, LAYER, crop_square, fit_likeness
from defaug_utils.methods.painting import CheckLimits, Painting, paint_until_passed
from defaug_utils.protocol.run_folder import read_pools
from defaug_utils.training.backbones import FeatureNetwork

SAME = nn.Conv2d(3, 3, 1, bias=False)
nn.init.dirac_(SAME.weight)
NETWORK = FeatureNetwork("identity", {LAYER: SAME})  # its features are a crop's mean colour
BRIGHTNESS = (100, 110, 130)  # of the known defects' images
BOX = np.zeros((40, 40), bool)
BOX[10:30, 15:25] = True


def grey(level: int) -> np.ndarray:
    return np.full((40, 40, 3), level, np.uint8)


@pytest.fixture
def known(tmp_path: Path) -> pd.DataFrame:
    rows = []
    for number, level in enumerate(BRIGHTNESS):
        row = {"image": f"images/{number}.png", "mask": f"masks/{number}.png", "label": "positive"}
        write_png(tmp_path / "data" / row["image"], grey(level))
        write_png(tmp_path / "data" / row["mask"], BOX)
        rows.append(row | {"split": "train", "origin": "real"})
    return make_manifest(rows)


class Levels(Painting):
    """Paints masks in given grey levels, one per attempt."""

    levels: Sequence[int] = ()

    def plan_image(self, index: int, seed: int):
        raise NotImplementedError

    def paint(self, jobs):
        level, *type(self).levels = type(self).levels
        made = [np.where(job.mask[..., None], np.uint8(level), job.image_u8) for job in jobs]
        return [InpaintedImage(image_u8, image_u8, True, 99) for image_u8 in made]


def test_the_threshold_is_the_largest_distance_of_a_known_defect_to_the_nearest_other_one(tmp_path, known):
    likeness = fit_likeness(known, tmp_path / "data", NETWORK)
    level, far, near = (likeness.measure(grey(value), BOX) for value in (110, 160, 128))
    assert level == pytest.approx(0, abs=1e-4)
    steps = [likeness.measure(grey(value), BOX) for value in (131, 132)]
    assert steps[1] == pytest.approx(2 * steps[0], rel=1e-3)
    assert likeness.threshold == pytest.approx(20 * steps[0], rel=1e-3)  # of 130, whose nearest is 110
    assert near < likeness.threshold < far
    assert likeness.describe()["known"] == [f"images/{number}.png" for number in range(3)]


def test_a_square_crop_shows_the_defect_in_its_middle_at_one_size():
    image_u8 = grey(50)
    image_u8[BOX] = 200
    crop = crop_square(image_u8, BOX)
    assert crop.shape == (CROP_SIDE, CROP_SIDE, 3)
    rows, columns = np.nonzero(crop[..., 0] > 125)
    middle = (CROP_SIDE - 1) / 2
    assert (rows.mean(), columns.mean()) == pytest.approx((middle, middle), abs=0.51)
    assert np.ptp(rows) + 1 == pytest.approx(20 * CROP_SIDE / 36, abs=1.5)  # 20 pixels and two margins of 8


def test_a_defect_is_painted_again_until_it_resembles_a_known_one(tmp_path, known):
    likeness = fit_likeness(known, tmp_path / "data", NETWORK)
    limits = CheckLimits(contrast=10, completeness=0.1)
    Levels.levels = (140, 255, 170)  # on 60, with which the known defects share nothing
    wish = {"data": tmp_path / "data", "prompts": [], "limits": limits, "max_attempts": 3}
    method = Levels(likeness=likeness, **wish)
    job = InpaintJob(grey(60), BOX, "stain", "", 0)
    (result,) = paint_until_passed(method, [job])
    assert (result.attempt, result.check.passed) == (1, True)
    assert result.as_row()["check_distance"] == pytest.approx(
        likeness.measure(result.painted.image_u8, BOX), abs=1e-4
    )
    Levels.levels = (140, 150, 120)
    (result,) = paint_until_passed(method, [job])
    assert not result.check.passed and result.check.reason.startswith("unlike the known defects: distance ")
    Levels.levels = (140,)
    (plain,) = paint_until_passed(Levels(**wish), [job])
    assert plain.check.passed and "check_distance" not in plain.as_row()


def test_the_recipe_says_which_defects_were_compared_and_scenarios_that_must_not_know_them_are_told(
    tmp_path, known
):
    likeness = fit_likeness(known, tmp_path / "data", NETWORK)
    described = Levels(data=tmp_path, prompts=[], likeness=likeness).describe()
    assert described["likeness"]["threshold"] == round(likeness.threshold, 4)
    assert "likeness" not in Levels(data=tmp_path, prompts=[]).describe(), "older pools stay valid"
    folder = tmp_path / "run" / "diag"
    make_pool(folder, Checked(0, likeness=described["likeness"]), PoolPlan(2))
    assert read_pools(tmp_path / "run", Run("zero-shot", "diag", 2, 0)).learned["diag"] == list(
        likeness.known
    )


def test_too_few_known_defects_and_missing_masks_are_refused(tmp_path, known):
    with pytest.raises(ValueError, match="2 known defects have a mask, at least 3 are needed"):
        fit_likeness(known[:2], tmp_path / "data", NETWORK)
    with pytest.raises(ManifestError, match="none of 3 training positives has a mask: draw where"):
        fit_likeness(known.assign(mask=""), tmp_path / "data", NETWORK)


class Checked:
    """A method without sources, of whose images every so many pass."""

    origin, data, group = "diag", None, 1

    def __init__(self, every: int, **described: object) -> None:
        self.every, self.described = every, described

    def describe(self) -> dict:
        return {"every": self.every} | self.described

    def make(self, indices, seeds):
        passed = [self.every > 0 and index % self.every == 0 for index in indices]
        reasons = ["" if good else "unlike the known defects: distance 3 above 2; blank" for good in passed]
        rows = [
            {"check_passed": good, "check_reason": told} for good, told in zip(passed, reasons, strict=True)
        ]
        return [GeneratedImage(grey(1), BOX, row) for row in rows]


def test_a_pool_is_refilled_until_enough_images_pass(tmp_path: Path):
    pool = make_pool(tmp_path / "pool", Checked(2), PoolPlan(30, passing=30))
    assert len(pool) == 59 and (pool["check_passed"].astype(str) == "True").sum() == 30


def test_a_pool_in_which_hardly_an_image_passes_stops_and_says_why(tmp_path: Path):
    told = (
        r"2 of 30 images of .*pool passed their checks, and 30 are needed; .*unlike the known defects \(28\)"
    )
    for _ in range(2):  # again, too, without making an image
        with pytest.raises(PoolRejected, match=told):
            make_pool(tmp_path / "pool", Checked(20), PoolPlan(30, passing=30))
    assert len(list((tmp_path / "pool" / "images").iterdir())) == 30, "it didn't grow"
    assert read_recipe(tmp_path / "pool")["every"] == 20
    assert len(make_pool(tmp_path / "small", Checked(0), PoolPlan(5, passing=5))) == 10, "too few to tell"
    assert len(make_pool(tmp_path / "any", Checked(0), PoolPlan(30))) == 30, "nothing was demanded"
