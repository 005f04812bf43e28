"""Decoder adaptation: the error outside the mask falls, and the model's own decoder is never touched."""

import gc
import weakref

import pytest
import torch
from tiny_models import make_parts

from defaug_utils.diffusion import autoencoder
from defaug_utils.diffusion.autoencoder import (
    TRAINED_MODULES,
    AdaptationSettings,
    adapt_decoder,
    adaptation_loss,
    decode_latents,
    encode_images,
    find_divergence,
    measure_background,
    split_decoder,
)

FAST = {"steps": 30, "learning_rate": 1e-3}


@pytest.fixture
def vae() -> torch.nn.Module:
    return make_parts(4)["vae"].eval()


def make_image(vae, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    good = torch.rand(1, 3, 16, 24, generator=generator) * 2 - 1
    mask = torch.zeros(1, 1, 16, 24, dtype=torch.bool)
    mask[:, :, 4:9, 5:12] = True
    with torch.no_grad():
        return encode_images(vae, good), good, mask


@pytest.mark.parametrize("parameters", TRAINED_MODULES)
def test_the_good_part_comes_nearer(vae, parameters: str):
    latents, good, mask = make_image(vae)
    adapted = adapt_decoder(vae, latents, good, mask, AdaptationSettings(parameters, **FAST))
    outside = ~mask.expand_as(good)
    before, after = ((image - good)[outside].square().mean() for image in (adapted.own_image, adapted.image))
    assert after < 0.9 * before
    assert not adapted.problem and len(adapted.losses) == 31 and adapted.losses[-1] < adapted.losses[0]


@pytest.mark.parametrize("parameters", TRAINED_MODULES)
def test_the_parts_of_the_decoder_are_the_decoder(vae, parameters: str):
    latents, _, _ = make_image(vae)
    trained, features = split_decoder(vae, latents, parameters)
    with torch.no_grad():
        assert torch.allclose(trained(features), decode_latents(vae, latents), atol=1e-5)


def test_the_models_own_decoder_stays_bit_for_bit_and_images_are_independent(vae):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    settings = AdaptationSettings(steps=3, learning_rate=1e-3)
    first = adapt_decoder(vae, *make_image(vae), settings).image
    adapt_decoder(vae, *make_image(vae, 1), settings)
    assert torch.equal(adapt_decoder(vae, *make_image(vae), settings).image, first)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_nothing_of_an_image_stays_in_memory(vae, monkeypatch):
    kept = []

    def split(*given: object) -> tuple:
        trained, features = split_decoder(*given)
        kept.extend(map(weakref.ref, (trained, features, *trained.parameters())))
        return trained, features

    monkeypatch.setattr(autoencoder, "split_decoder", split)
    result = adapt_decoder(vae, *make_image(vae), AdaptationSettings(steps=2))
    gc.collect()
    assert not result.image.requires_grad and not result.own_image.requires_grad
    assert len(kept) > 10 and not any(thing() is not None for thing in kept)


def test_a_diverging_adaptation_gives_the_own_image_and_says_so(vae, monkeypatch):
    latents, good, mask = make_image(vae)
    with monkeypatch.context() as forced:  # a wild learning rate overflows on some CPUs
        rising = iter(range(1, 100))
        forced.setattr(autoencoder, "adaptation_loss", lambda *given: adaptation_loss(*given) * next(rising))
        wild = adapt_decoder(vae, latents, good, mask, AdaptationSettings(steps=3, learning_rate=1e-9))
    assert wild.problem.startswith("the loss rose from")
    assert torch.equal(wild.image, wild.own_image)
    broken = adapt_decoder(vae, latents, good * float("nan"), mask, AdaptationSettings(steps=5))
    assert broken.problem == "the loss is not finite after 0 steps" and len(broken.losses) == 2
    with torch.no_grad():
        assert torch.equal(broken.image, decode_latents(vae, latents))


def test_divergence_in_words():
    assert find_divergence([2.0, 1.0]) == ""
    assert find_divergence([1.0, float("inf"), 0.5]) == "the loss is not finite after 1 steps"
    assert find_divergence([1.0, 0.5, 1.5]) == "the loss rose from 1 to 1.5"


def test_it_stops_when_nothing_improves(vae):
    settings = AdaptationSettings(steps=50, learning_rate=1e-9, patience=3, improvement=0.01)
    assert len(adapt_decoder(vae, *make_image(vae), settings).losses) == 5


def test_the_loss_by_hand():
    decoded, edited, good = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 9.0]), torch.tensor([7.0, 4.0])
    mask = torch.tensor([True, False])
    assert adaptation_loss(decoded, edited, good, mask, 100.0) == 4 / 2 + 100 * 1 / 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"parameters": "some"}, "parameters 'some' is not one of all, last_block, last_layer"),
        ({"steps": 0}, "steps 0"),
        ({"learning_rate": 0.0, "patience": -1}, "(?s)learning_rate 0.0 must be above 0.*patience -1"),
        ({"precision": "float8"}, "precision"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, said: str):
    with pytest.raises(ValueError, match=said):
        AdaptationSettings(**wrong)


def test_batches_are_refused(vae):
    latents, good, mask = make_image(vae)
    with pytest.raises(ValueError, match="expected one image"):
        adapt_decoder(vae, latents.repeat(2, 1, 1, 1), good, mask)


def test_the_papers_settings():
    settings = AdaptationSettings()
    assert (settings.steps, settings.learning_rate, settings.background_weight) == (200, 1e-4, 100.0)
    assert settings.parameters == "all" and settings.patience == 0


def test_background_errors_by_hand():
    good, mask = torch.zeros(1, 3, 1, 7), torch.zeros(1, 1, 1, 7, dtype=torch.bool)
    mask[..., 3] = True
    image = torch.tensor([2.0, 0, -0.2, 9, 0.4, 0, 0]).repeat(1, 3, 1, 1)
    errors = measure_background(image, good, mask, width=1)
    assert errors.outside == pytest.approx((1 + 0.2 + 0.4) / 6 * 127.5)
    assert errors.border == pytest.approx((0.2 + 0.4) / 2 * 127.5)
