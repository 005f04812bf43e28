"""Decoders side by side: what is measured is what was decoded, and weights are told apart bit by bit."""

import pytest
import torch
from tiny_models import make_parts

from defaug_utils.diffusion.autoencoder import (
    AdaptationSettings,
    encode_images,
    measure_background,
    to_floats,
)
from defaug_utils.methods.blending import Blend, compare_decoders, tabulate_errors
from defaug_utils.training.backbones import hash_weights


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    return make_parts(4)["vae"].eval()


@pytest.fixture(scope="module")
def blend(vae) -> Blend:
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.zeros(2, 1, 16, 24, dtype=torch.bool)
    masks[:, :, 4:9, 5:12] = True
    with torch.no_grad():
        return Blend([], images, masks, encode_images(vae, images))


@pytest.fixture(scope="module")
def compared(vae, blend):
    finished = []
    settings = AdaptationSettings(steps=20, learning_rate=1e-3)
    comparisons = compare_decoders(vae, blend, settings, finished.append)
    assert finished == [1, 1]
    return comparisons


def test_errors_are_those_of_the_pictures(compared, blend):
    for number, pair in enumerate(compared):
        good, mask = blend.images[number : number + 1], blend.masks[number : number + 1]
        assert pair.mask.sum() == 5 * 7 and not pair.problem and len(pair.losses) == 21
        for picture, errors in ((pair.own_u8, pair.own), (pair.adapted_u8, pair.adapted)):
            assert measure_background(to_floats([picture]), good, mask) == pytest.approx(errors, abs=0.5)
        assert pair.adapted.outside < pair.own.outside


def test_the_table_has_a_row_for_each_image_and_place(compared):
    table = tabulate_errors(compared)
    assert table["place"].tolist() == ["outside the mask", "at its border"] * 2
    assert table["image"].tolist() == [0, 0, 1, 1]
    assert table["before"].tolist() == [error for pair in compared for error in pair.own]
    assert table["after"].tolist() == [error for pair in compared for error in pair.adapted]


def test_a_single_bit_changes_the_hash(vae):
    before = hash_weights(vae)
    assert hash_weights(vae) == before
    weight = next(vae.parameters()).data.view(-1).view(torch.int32)
    weight[0] ^= 1
    assert hash_weights(vae) != before
    weight[0] ^= 1
    assert hash_weights(vae) == before
    assert hash_weights(torch.nn.Linear(2, 2, dtype=torch.bfloat16))
