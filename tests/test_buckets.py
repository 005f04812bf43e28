"""Aspect-ratio buckets: In&Out's own sizes, no distortion, and everything that is lost is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defaug_utils.core.images import fit_image
from defaug_utils.diffusion.training_images import (
    BucketError,
    BucketSettings,
    assign_buckets,
    choose_bucket,
    count_buckets,
    list_buckets,
    tell_fit,
)

SMALL = BucketSettings(area=128 * 384, smallest=64, largest=768, step=32)


def test_the_papers_buckets():
    buckets = list_buckets(BucketSettings())
    assert len(buckets) == len(set(buckets))
    assert {(512, 512), (256, 1024), (1024, 256), (320, 768), (448, 576)} <= set(buckets)
    for width, height in buckets:
        assert width % 64 == height % 64 == 0 and width * height <= 512 * 512
        assert min(width, height) >= 256 and max(width, height) <= 1024
    assert {(height, width) for width, height in buckets} == set(buckets)


def test_upright_surfaces_get_upright_buckets():
    assert choose_bucket((230, 630), list_buckets(BucketSettings())) == (320, 768)
    assert choose_bucket((200, 600), list_buckets(BucketSettings())) == (256, 832)
    assert choose_bucket((128, 384), list_buckets(SMALL)) == (128, 384)
    assert choose_bucket((500, 500), list_buckets(BucketSettings())) == (512, 512)


@given(width=st.integers(20, 900), height=st.integers(20, 900))
def test_the_nearest_aspect_is_chosen(width: int, height: int):
    buckets = list_buckets(SMALL)
    chosen = choose_bucket((width, height), buckets)
    distances = {b: abs(np.log(b[0] / b[1]) - np.log(width / height)) for b in buckets}
    assert distances[chosen] <= min(distances.values()) + 1e-8
    assert choose_bucket((height, width), buckets) == chosen[::-1]


def test_a_circle_stays_a_circle():
    rows, columns = np.mgrid[:630, :230]
    disc = (rows - 315) ** 2 + (columns - 115) ** 2 < 80**2
    disc_u8 = np.repeat(disc[..., None], 3, 2).astype(np.uint8) * 255
    fitted = fit_image(disc_u8, (320, 768), "centre_crop")[..., 0] > 127
    assert fitted.shape == (768, 320)
    wide, high = np.ptp(np.nonzero(fitted.any(0))), np.ptp(np.nonzero(fitted.any(1)))
    assert abs(int(wide) - int(high)) <= 2 and wide == pytest.approx(160 * 320 / 230, abs=3)


def test_the_table_tells_what_is_enlarged_and_cut():
    sizes = {"a.png": (230, 630), "b.png": (1000, 2400), "c.png": (512, 512)}
    assigned = assign_buckets(sizes, BucketSettings())
    table = count_buckets(assigned).set_index("bucket")
    assert table.loc["320 × 768"].tolist()[:2] == [2, 1]
    assert table.loc["320 × 768", "largest scale"] == pytest.approx(320 / 230, rel=0.01)
    assert table.loc["320 × 768", "most cropped"] == pytest.approx(1 - 552 / 630, abs=0.01)
    assert table.loc["512 × 512"].tolist() == [1, 0, 1.0, 0.0]
    enlarged, cropped = tell_fit(assigned)
    assert "1 of 3" in enlarged and "1.39 times" in enlarged
    assert "1 of 3" in cropped and "12%" in cropped
    assert tell_fit(assign_buckets({"c.png": (512, 512)}, BucketSettings())) == []


def test_small_images_are_refused_where_enlarging_is_not_wanted():
    with pytest.raises(
        BucketError, match=r"(?s)2 images.*may_enlarge.*1 prob.*a\.png 230 × 630 \(bucket 320 × 768\)"
    ):
        assign_buckets({"a.png": (230, 630), "b.png": (960, 2304)}, BucketSettings(may_enlarge=False))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"step": 0}, "step 0"),
        ({"smallest": 250}, "multiple of the step"),
        ({"largest": 128}, "must not be below"),
        ({"area": 1000}, "area 1000"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict, said: str):
    with pytest.raises(BucketError, match=said):
        BucketSettings(**wrong)
