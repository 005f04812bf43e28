"""The drawing widget without a browser: what goes over the wire, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ipywidgets import VBox

from defaug_utils.widgets.mask_drawing import MaskCanvas, check_drawn, pack_mask, unpack_mask

IMAGE_U8 = np.full((20, 30, 3), 120, np.uint8)


def make_mask() -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[3:7, 11:25] = True
    return mask


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_mask_survives_the_wire(width: int, height: int, number: int):
    mask = np.random.default_rng(width * height).random((height, width)) < 0.5
    read, read_number = unpack_mask(pack_mask(mask, number), (width, height))
    assert read_number == number
    np.testing.assert_array_equal(read, mask)


def test_a_torn_mask_is_refused():
    with pytest.raises(ValueError, match="received a packed mask of 5 bytes, but 30 × 20 pixels need 79"):
        unpack_mask(b"12345", (30, 20))


def test_value_is_exact_and_read_only():
    canvas = MaskCanvas(IMAGE_U8, make_mask())
    assert canvas.value.dtype == np.uint8
    np.testing.assert_array_equal(canvas.value, make_mask() * 255)
    np.testing.assert_array_equal(canvas.mask, make_mask())
    with pytest.raises(ValueError, match="read-only"):
        canvas.value[0, 0] = 255


@pytest.mark.parametrize("mask", [np.zeros((30, 20), bool), np.zeros((20, 30, 3), np.uint8)])
def test_a_mask_of_another_size_is_refused_and_changes_nothing(mask: np.ndarray):
    with pytest.raises(ValueError, match=r"the mask of 'a.png' has .* the image 30 × 20"):
        MaskCanvas(IMAGE_U8, mask, "a.png")
    canvas = MaskCanvas(IMAGE_U8, make_mask(), "a.png")
    with pytest.raises(ValueError, match="fit_mask"):
        canvas.value = mask
    np.testing.assert_array_equal(canvas.mask, make_mask())


def test_grey_masks_and_other_images_are_refused():
    with pytest.raises(ValueError, match="threshold it first"):
        check_drawn(np.full((20, 30), 77, np.uint8), (30, 20))
    with pytest.raises(ValueError, match=r"expected \(height, width, 3\) and uint8"):
        MaskCanvas(np.zeros((20, 30), np.uint8))


def test_strokes_from_the_browser_reach_observers():
    canvas, seen = MaskCanvas(IMAGE_U8), []
    canvas.observe(lambda change: seen.append(change["new"]), "value")
    VBox([canvas])
    canvas.set_state({"packed_mask": memoryview(pack_mask(make_mask(), 0))})
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], make_mask() * 255)


def test_a_late_stroke_on_the_image_before_is_dropped():
    canvas = MaskCanvas(IMAGE_U8)
    canvas.set_image(IMAGE_U8, None, "next")
    canvas.set_state({"packed_mask": memoryview(pack_mask(make_mask(), 0))})
    assert not canvas.mask.any()
    assert unpack_mask(canvas.packed_mask, canvas.size)[1] == 1


def test_another_image_brings_its_size_and_mask():
    canvas = MaskCanvas(IMAGE_U8, make_mask())
    mask = np.zeros((8, 9), bool)
    mask[2, 3] = True
    canvas.set_image(np.zeros((8, 9, 3), np.uint8), mask, "small")
    assert canvas.size == (9, 8)
    np.testing.assert_array_equal(canvas.mask, mask)
    with pytest.raises(ValueError, match="the mask of 'bad'"):
        canvas.set_image(IMAGE_U8, mask, "bad")
    assert (canvas.size, canvas.name) == ((9, 8), "small")
