"""Three-stage sampling: with its edits off it is plain DDIM, without a defect the good image comes back."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from tiny_models import make_parts

from defaug_utils.diffusion.autoencoder import cover_latent_cells, encode_images
from defaug_utils.methods.blending import BlendSettings, blend_latents, watch_images

SIZE, STEPS, SEEDS = (16, 16), 10, (3, 4)
PLAIN = BlendSettings(SIZE, STEPS, latent_editing=None, image_editing=None)
ALL_STAGES = BlendSettings(SIZE, STEPS, latent_editing=(5, 9), image_editing=(9, 10))


@pytest.fixture(scope="module")
def parts() -> dict:
    return make_parts(unet_channels=4)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def masks() -> torch.Tensor:
    masks = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    masks[:, :, 5:8, 6:9] = True
    return masks


def make_scheduler(prediction: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def run(parts: dict, images, masks, settings: BlendSettings, prediction: str = "epsilon", **kwargs):
    texts = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))

    def denoise(latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return parts["unet"](latents, time, texts.repeat(len(latents), 1, 1)).sample

    scheduler = make_scheduler(prediction)
    return blend_latents(images, masks, SEEDS, denoise, parts["vae"], scheduler, settings, **kwargs)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_with_all_edits_off_it_is_plain_ddim(parts, images, masks, prediction: str):
    texts = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    pipeline = StableDiffusionPipeline(**parts | {"scheduler": make_scheduler(prediction)})
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt_embeds=texts.repeat(2, 1, 1),
        guidance_scale=1.0,
        num_inference_steps=STEPS,
        width=SIZE[0],
        height=SIZE[1],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
    ).images
    assert torch.equal(run(parts, images, masks, PLAIN, prediction), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_without_a_defect_the_good_image_is_reconstructed(parts, images, masks, prediction: str):
    latents = run(parts, images, torch.zeros_like(masks), ALL_STAGES, prediction)
    assert torch.allclose(latents, encode_images(parts["vae"], images), atol=1e-6)


def test_the_network_is_given_the_noise_of_each_steps_time(masks):
    """After image editing the latents are those of the next time, not of the step's own."""
    zeros = torch.zeros(1, 4, 64, 64)
    vae = SimpleNamespace(
        dtype=torch.float32,
        config=SimpleNamespace(scaling_factor=1.0),
        encode=lambda images: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: zeros)),
        decode=lambda latents: SimpleNamespace(sample=torch.zeros(1, 3, 128, 128)),
    )
    scheduler, told = make_scheduler("epsilon"), []

    def denoise(latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        spread = (1 - scheduler.alphas_cumprod[time]).sqrt()
        told.append((latents.std() / spread).item())
        return latents / spread  # the clean latents are 0

    settings = BlendSettings((128, 128), STEPS, latent_editing=(2, 7), image_editing=(4, 10), dilation=1)
    mask = torch.zeros(1, 1, 128, 128, dtype=torch.bool)
    blend_latents(torch.zeros(1, 3, 128, 128), mask, [0], denoise, vae, scheduler, settings)
    assert told == pytest.approx([1] * STEPS, abs=0.03)


def test_latent_editing_alone_leaves_a_trace_of_the_good_image(parts, images, masks):
    settings = BlendSettings(SIZE, STEPS, latent_editing=(5, 10), image_editing=None, dilation=1)
    cells = cover_latent_cells(masks, 2)
    good = encode_images(parts["vae"], images)
    edited, plain = (run(parts, images, masks, chosen) for chosen in (settings, PLAIN))
    outside = ~cells.expand_as(good)
    assert (edited - good)[outside].abs().mean() < 0.2 * (plain - good)[outside].abs().mean()


def test_after_image_editing_the_latents_are_those_of_the_composite(parts, images, masks):
    seen = []
    latents = run(parts, images, masks, ALL_STAGES, on_step=seen.append)
    assert torch.equal(seen[-1].clean_latents, latents)
    assert not torch.allclose(latents, encode_images(parts["vae"], images), atol=1e-3)


def test_an_image_does_not_depend_on_the_others_of_its_batch(parts, images, masks):
    both = run(parts, images, masks, ALL_STAGES)
    other = images.clone()
    other[1] = 0
    assert torch.equal(both, run(parts, images, masks, ALL_STAGES))
    assert torch.equal(both[0], run(parts, other, masks, ALL_STAGES)[0])


def test_stages_can_be_watched(parts, images, masks):
    seen = []
    watch = watch_images(parts["vae"], (4, 9), lambda *what: seen.append(what))
    run(parts, images, masks, ALL_STAGES, on_step=watch)
    assert [(index, stage) for index, stage, _ in seen] == [(4, "free"), (9, "image editing")]
    assert [image.shape for _, _, images_u8 in seen for image in images_u8] == [(16, 16, 3)] * 4


def test_the_papers_stages():
    settings = BlendSettings()
    stages = [settings.name_stage(index) for index in range(50)]
    assert stages == ["free"] * 26 + ["latent editing"] * 19 + ["image editing"] * 5
    assert settings.edits_latents(45) and settings.edits_images(45) and not settings.edits_latents(46)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"latent_editing": (30, 20)}, "latent_editing .30, 20. must be None or"),
        ({"image_editing": (45, 51)}, "image_editing .45, 51. must be None or .* within 0 … 50"),
        ({"latent_editing": (26, 46), "image_editing": (10, 20)}, "must not begin or end before"),
        ({"steps": 20}, "latent_editing"),
        ({"dilation": 4}, "dilation 4 must be odd"),
        ({"guidance": 0.5}, "guidance"),
    ],
)
def test_borders_out_of_order_are_refused(wrong: dict, said: str):
    with pytest.raises(ValueError, match=said):
        BlendSettings(**wrong)


def test_thin_cracks_reach_the_latent_grid():
    masks = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    masks[0, 0, 3, 9] = True
    cells = cover_latent_cells(masks, 4)
    assert cells.sum() == 1 and cells[0, 0, 0, 2]
    assert cover_latent_cells(masks, 4, 3).sum() == 2 * 3
