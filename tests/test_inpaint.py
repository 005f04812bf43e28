"""Inpainting on models of the real classes with random weights, and on a stand-in where memory must end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import MAX_TOKENS, save_model

from defaug_utils.diffusion import inpainting as diffusion_inpainting
from defaug_utils.diffusion import jobs as diffusion_jobs
from defaug_utils.diffusion.compositing import Box, choose_box, composite, cover_cells, cut_out, paste_back
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, inpaint_batch, load_inpainter
from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob
from defaug_utils.diffusion.loading import ModelError

SETTINGS = InpaintSettings((16, 48), steps=2, padding_mask_crop=None)


@pytest.fixture(scope="module")
def inpainter(inpainting_folder: Path) -> Inpainter:
    return load_inpainter(inpainting_folder)


@pytest.fixture
def broken(inpainting_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model to spoil."""
    return shutil.copytree(inpainting_folder, tmp_path / "model")


def make_job(seed: int = 0, prompt: str = "white marks", shape: tuple[int, int] = (48, 16)) -> InpaintJob:
    generator = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    top, left = int(generator.integers(0, shape[0] - 12)), int(generator.integers(0, shape[1] - 8))
    mask[top : top + 10, left : left + 6] = True
    image_u8 = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return InpaintJob(image_u8, mask, prompt, "dark", seed)


def same(first: InpaintedImage, second: InpaintedImage) -> bool:
    return bool((first.painted_u8 == second.painted_u8).all())


@pytest.mark.parametrize("crop", [None, 0, 2])
@pytest.mark.parametrize("feather", [0, 2])
def test_outside_the_mask_every_pixel_is_the_originals_own(inpainter, crop, feather):
    settings = InpaintSettings((16, 48), steps=2, padding_mask_crop=crop, feather=feather)
    jobs = [make_job(0), make_job(1, shape=(61, 23))]
    for job, made in zip(jobs, inpaint_batch(inpainter, jobs, settings), strict=True):
        assert made.image_u8.shape == job.image_u8.shape
        assert (made.image_u8[~job.mask] == job.image_u8[~job.mask]).all()
        assert (made.image_u8[job.mask] != job.image_u8[job.mask]).any()
        assert made.is_finite


def test_an_image_knows_its_seed_and_not_its_neighbours(inpainter):
    jobs = [make_job(seed) for seed in range(3)]
    first = inpaint_batch(inpainter, jobs, SETTINGS)
    again = inpaint_batch(inpainter, jobs[::-1], SETTINGS)[::-1]
    assert all(map(same, first, again))
    (alone,) = inpaint_batch(inpainter, jobs[:1], SETTINGS)
    difference = alone.painted_u8.astype(int) - first[0].painted_u8
    assert np.abs(difference).max() <= 1, "another batch size may change the last bit, not the image"
    (other,) = inpaint_batch(inpainter, [jobs[0]._replace(seed=9)], SETTINGS)
    assert not same(alone, other)


def test_texts_are_encoded_once_and_matter(inpainting_folder):
    inpainter = load_inpainter(inpainting_folder)
    encode, calls = inpainter.pipeline.encode_prompt, []
    inpainter.pipeline.encode_prompt = lambda *texts, **options: (
        calls.append(bool(options.get("prompt"))) or encode(*texts, **options)
    )
    jobs = [make_job(0), make_job(0, "crack"), make_job(0)]
    first, other, again = inpaint_batch(inpainter, jobs, SETTINGS)
    inpaint_batch(inpainter, jobs, SETTINGS)
    assert sum(calls) == 2
    assert same(first, again) and not same(first, other)


def test_no_guidance_needs_no_negative_prompt(inpainter):
    (made,) = inpaint_batch(inpainter, [make_job()], InpaintSettings((16, 48), 2, guidance=1.0))
    assert made.is_finite


def test_a_text_to_image_model_works_and_this_is_said(tmp_path: Path):
    inpainter = load_inpainter(save_model(tmp_path / "text", unet_channels=4))
    assert "text-to-image" in inpainter.notices[0]
    job = make_job()
    (made,) = inpaint_batch(inpainter, [job], SETTINGS)
    assert (made.image_u8[~job.mask] == job.image_u8[~job.mask]).all()
    assert (made.image_u8[job.mask] != job.image_u8[job.mask]).any()


def test_the_recipe_tells_models_apart_wherever_they_lie(inpainter, broken, tmp_path: Path):
    assert load_inpainter(broken).describe() == inpainter.describe()
    other = load_inpainter(save_model(tmp_path / "text", unet_channels=4))
    assert other.describe()["fingerprint"] != inpainter.describe()["fingerprint"]
    json.dumps(inpainter.describe(), allow_nan=False)


def test_the_fast_path_paints_the_same_and_says_that_it_was_taken(inpainting_folder, inpainter):
    fast = load_inpainter(inpainting_folder, channels_last=True, compile_unet=True, slice_vae=True)
    assert fast.pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert fast.pipeline.vae.use_slicing and not inpainter.pipeline.vae.use_slicing
    jobs = [make_job(0), make_job(1)]
    calls = []
    fast.pipeline.unet._compiled_call_impl = record_calls(fast.pipeline.unet, calls)
    pairs = zip(inpaint_batch(fast, jobs, SETTINGS), inpaint_batch(inpainter, jobs, SETTINGS), strict=True)
    assert calls, "the compiled U-Net was not used"
    for quick, plain in pairs:
        assert np.abs(quick.painted_u8.astype(int) - plain.painted_u8).max() <= 1
    told, usual = fast.describe(), inpainter.describe()
    assert told["speed"] == ["channels_last", "compile_unet", "slice_vae"] and usual["speed"] == []
    assert told["fingerprint"] == usual["fingerprint"], "the weights are the same ones by the same names"


def record_calls(unet: torch.nn.Module, calls: list) -> object:
    """What the compiled U-Net would run, without the minutes that translating takes."""
    assert unet._compiled_call_impl is not None
    return lambda *inputs, **options: calls.append(1) or unet._call_impl(*inputs, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_paints_finite_pictures(inpainting_folder, dtype):
    half = load_inpainter(inpainting_folder, dtype=dtype)
    (made,) = inpaint_batch(half, [make_job()], SETTINGS)
    assert made.is_finite
    assert half.describe()["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(broken, part):
    shutil.rmtree(broken / part)
    with pytest.raises(ModelError, match=rf"the part {part} \(\w+\) is missing"):
        load_inpainter(broken)


def test_pickled_weights_are_refused_with_the_way_to_convert(broken):
    (broken / "unet" / "diffusion_pytorch_model.safetensors").rename(broken / "unet" / "model.bin")
    with pytest.raises(ModelError, match=r"unet has only model\.bin.*safe_serialization=True"):
        load_inpainter(broken)
    checkpoint = broken / "model.ckpt"
    checkpoint.write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"expected a \.safetensors file.*safe_serialization"):
        load_inpainter(checkpoint)


def test_damaged_weights_are_told(broken):
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="can't be loaded for inpainting"):
        load_inpainter(broken)


@pytest.mark.parametrize("model", ["nowhere", "models/of/nobody", "model.safetensors"])
def test_no_such_model(model):
    with pytest.raises(ModelError, match="expected a folder"):
        load_inpainter(model)


def test_a_folder_of_something_else(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_inpainter(tmp_path)


@pytest.mark.parametrize("prompt", ["", "   "])
def test_an_empty_prompt_is_refused(inpainter, prompt):
    with pytest.raises(ValueError, match="prompt is empty"):
        inpaint_batch(inpainter, [make_job(prompt=prompt)], SETTINGS)


def test_a_prompt_is_never_cut_silently(inpainter):
    longest = "a" * (MAX_TOKENS - 2)
    inpaint_batch(inpainter, [make_job(prompt=longest)], SETTINGS)
    with pytest.raises(ValueError, match=f"has {MAX_TOKENS + 1} tokens, the model's limit is {MAX_TOKENS}"):
        inpaint_batch(inpainter, [make_job(prompt=longest + "a")], SETTINGS)
    with pytest.raises(ValueError, match="tokens"):
        inpaint_batch(inpainter, [make_job()._replace(negative_prompt=longest + "a")], SETTINGS)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((48, 16), bool), "empty"),
        (np.ones((48, 16), bool), "covers everything"),
        (np.ones((16, 48), bool), "fit_mask"),
        (np.full((48, 16), 255, np.uint8), "expected bool"),
    ],
)
def test_masks_that_make_no_sense_are_refused(inpainter, mask, said):
    jobs = [make_job(), make_job()._replace(mask=mask)]
    with pytest.raises(ValueError, match=f"job 1: .*{said}"):
        inpaint_batch(inpainter, jobs, SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"guidance": 0.5}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"strength": 0}, "strength"),
        ({"strength": 1.01}, "strength"),
        ({"steps": 0}, "steps"),
        ({"steps": 3, "strength": 0.3}, "leaves no step"),
        ({"padding_mask_crop": -1}, "padding_mask_crop"),
        ({"feather": -1}, "feather"),
        ({"size": (0, 48)}, "size"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=named):
        InpaintSettings(**wrong)


def test_the_steps_that_really_run_are_told(inpainter):
    assert InpaintSettings().effective_steps == 29
    assert InpaintSettings(strength=1.0).effective_steps == 30
    settings = InpaintSettings((16, 48), steps=5, strength=0.7)
    inpaint_batch(inpainter, [make_job()], settings)
    assert inpainter.pipeline.num_timesteps == settings.effective_steps == 3


def test_a_size_the_autoencoder_cannot_take_names_one_that_it_can(inpainter):
    with pytest.raises(ValueError, match=r"15 × 48: .* needs multiples of 2, use 1[46] × 48"):
        inpaint_batch(inpainter, [make_job()], InpaintSettings((15, 48), 2))


class StandIn:
    """A pipeline that paints noise of each generator, and takes so many images at a time only."""

    vae_scale_factor = 2
    tokenizer = None

    def __init__(self, most: int, fill: float | None = None) -> None:
        self.unet = SimpleNamespace(config=SimpleNamespace(in_channels=9))
        self.most, self.fill, self.asked = most, fill, []

    def set_progress_bar_config(self, **options) -> None:
        pass

    def encode_prompt(self, **options) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)

    def __call__(self, image: torch.Tensor, generator: list, **options) -> SimpleNamespace:
        self.asked.append(len(generator))
        if len(generator) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        painted = torch.stack([torch.rand(image.shape[1:], generator=own) for own in generator])
        return SimpleNamespace(images=painted if self.fill is None else torch.full_like(painted, self.fill))


def test_out_of_memory_halves_the_batch_and_goes_on():
    jobs = [make_job(seed) for seed in range(8)]
    finished: list[int] = []
    small = Inpainter(StandIn(3), "small")
    made = inpaint_batch(small, jobs, SETTINGS, finished.append)
    assert small.pipeline.asked == [8, 4, 2, 2, 2, 2]
    assert finished == [2, 2, 2, 2]
    assert all(map(same, made, inpaint_batch(Inpainter(StandIn(8), "large"), jobs, SETTINGS)))
    inpaint_batch(small, jobs[:4], SETTINGS)
    assert small.pipeline.asked[6:] == [2, 2], "what was learned is kept"


def test_not_even_one_image_fits():
    with pytest.raises(MemoryError, match="not even one image of 16 × 48 fits"):
        inpaint_batch(Inpainter(StandIn(0), "none"), [make_job(0), make_job(1)], SETTINGS)


def test_what_is_no_number_is_found_and_does_not_reach_the_outside():
    job = make_job()
    (made,) = inpaint_batch(Inpainter(StandIn(1, float("nan")), "nan"), [job], SETTINGS)
    assert not made.is_finite
    assert (made.image_u8[~job.mask] == job.image_u8[~job.mask]).all()


@pytest.mark.parametrize("crop", [None, 2])
def test_on_a_grey_image_what_is_painted_is_the_mean_of_its_channels(inpainter, monkeypatch, crop):
    settings, drawn = replace(SETTINGS, padding_mask_crop=crop), make_job()
    job = drawn._replace(image_u8=drawn.image_u8[..., :1].repeat(3, axis=2))
    (grey,) = inpaint_batch(inpainter, [job], settings)
    for made_u8 in (grey.image_u8, grey.painted_u8):
        assert (made_u8 == made_u8[..., :1]).all()
    monkeypatch.setattr(diffusion_jobs, "is_grey", lambda image_u8: False)
    (coloured,) = inpaint_batch(inpainter, [job], settings)
    inside = coloured.image_u8[job.mask]
    assert (inside != inside[:, :1]).any(), "the model paints in colour"
    assert np.abs(grey.image_u8[job.mask].astype(float) - inside.mean(axis=1, keepdims=True)).max() <= 1


def test_one_pixel_of_colour_makes_an_image_coloured(inpainter):
    job = make_job()
    job = job._replace(image_u8=job.image_u8[..., :1].repeat(3, axis=2))
    job.image_u8[0, 0, 2] ^= 1
    (made,) = inpaint_batch(inpainter, [job], SETTINGS)
    assert (made.painted_u8 != made.painted_u8[..., :1]).any()


def test_a_unet_of_another_kind_is_refused():
    pipeline = StandIn(1)
    pipeline.unet.config.in_channels = 8
    with pytest.raises(ModelError, match="takes 8 channels"):
        Inpainter(pipeline, "depth")


def test_boxes_by_hand():
    mask = np.zeros((100, 50), bool)
    mask[40:60, 20:25] = True
    assert choose_box(mask, (50, 100), None) == Box(0, 0, 50, 100)
    assert choose_box(mask, (50, 100), 0) == Box(17, 40, 27, 60), "20 rows, and a fifth of the width"
    assert choose_box(mask, (50, 100), 5) == Box(15, 35, 30, 65)
    assert choose_box(mask, (100, 200), 5) == Box(16, 37, 29, 63), "padding counts working pixels"
    corner = np.zeros((100, 50), bool)
    corner[0, 49] = True
    assert choose_box(corner, (50, 100), 10) == Box(39, 0, 50, 22)


@pytest.mark.parametrize("seed", range(20))
def test_a_box_holds_its_mask_and_stays_inside(seed):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(5, 90, 2)
    mask = generator.random((height, width)) > 0.995
    mask[generator.integers(height), generator.integers(width)] = True
    box = choose_box(mask, (64, 64), int(generator.integers(0, 30)))
    assert 0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height
    assert mask[box.top : box.bottom, box.left : box.right].sum() == mask.sum()


def test_cutting_and_pasting_at_one_size_changes_nothing():
    job, box = make_job(shape=(48, 32)), Box(4, 6, 20, 38)
    image_u8, mask = cut_out(job.image_u8, job.mask, box, (16, 32))
    assert (image_u8 == job.image_u8[6:38, 4:20]).all() and (mask == job.mask[6:38, 4:20]).all()
    assert (paste_back(job.image_u8, image_u8, box) == job.image_u8).all()


def test_feather_fades_inside_the_mask_only():
    original, painted = np.zeros((1, 9, 3), np.uint8), np.full((1, 9, 3), 120, np.uint8)
    mask = np.zeros((1, 9), bool)
    mask[0, 2:8] = True
    assert composite(original, painted, mask)[0, :, 0].tolist() == [0, 0, 120, 120, 120, 120, 120, 120, 0]
    assert composite(original, painted, mask, 2)[0, :, 0].tolist() == [0, 0, 40, 80, 120, 120, 80, 40, 0]
    with pytest.raises(ValueError, match="and a bool mask"):
        composite(original, painted, mask.astype(np.uint8))


def test_cells_that_a_thin_line_touches_are_covered():
    mask = np.zeros((8, 8), bool)
    mask[3, 1:6] = True
    covered = cover_cells(mask, 4)
    assert covered[:4].all() and not covered[4:].any()
    assert not mask[::4, ::4].any(), "one pixel per cell would have missed it"


def test_embeddings_of_texts_met_long_ago_are_given_up(inpainting_folder, monkeypatch: pytest.MonkeyPatch):
    inpainter = load_inpainter(inpainting_folder)
    monkeypatch.setattr(diffusion_inpainting, "MAX_TEXTS", 2)
    (first,) = inpaint_batch(inpainter, [make_job(0, "a")], SETTINGS)
    together = inpaint_batch(inpainter, [make_job(0, letter) for letter in "abcd"], SETTINGS)
    assert len(together) == 4 and len(inpainter.embeddings) == 2
    (again,) = inpaint_batch(inpainter, [make_job(0, "a")], SETTINGS)
    assert same(first, again) and ("a", "dark") in inpainter.embeddings
