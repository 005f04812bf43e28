"""The binarised object: bright on dark, dark on bright, and what has no object."""

import numpy as np
import pytest

from defaug_utils.core.images import find_foreground


@pytest.fixture
def disc():
    """A mask of a disc in the middle of a wide image."""
    rows, columns = np.ogrid[:40, :60]
    return (rows - 20) ** 2 + (columns - 30) ** 2 < 150


@pytest.mark.parametrize(("object_grey", "background_grey"), [(200, 30), (30, 200)])
def test_auto_finds_the_object_whatever_its_brightness(disc, object_grey, background_grey):
    image = np.where(disc[..., None], object_grey, background_grey).astype(np.uint8).repeat(3, axis=2)
    assert (find_foreground(image, "auto") == disc).all()
    word = "bright" if object_grey > background_grey else "dark"
    assert (find_foreground(image, word) == disc).all()


def test_whole_is_everything_and_flat_images_have_no_object():
    flat = np.full((4, 5, 3), 7, np.uint8)
    assert find_foreground(flat, "whole").all()
    assert not find_foreground(flat, "auto").any()


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError, match="not one of whole"):
        find_foreground(np.zeros((2, 2, 3), np.uint8), "objekt")
