"""What the autoencoder loses of the original's grain, given back to what was painted."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_families import MODELS, save_family
from tiny_models import make_parts

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.core.pools import PoolPlan, make_pool, read_recipe
from defaug_utils.core.prompts import make_prompts
from defaug_utils.diffusion import inpainting
from defaug_utils.diffusion.autoencoder import autoencode
from defaug_utils.diffusion.compositing import add_detail
from defaug_utils.diffusion.controlnet import TrimapModel, make_controlnet
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, inpaint_batch, load_inpainter
from defaug_utils.diffusion.jobs import InpaintJob
from defaug_utils.diffusion.text2image import load_text2image
from defaug_utils.masks.sources import open_masks
from defaug_utils.methods.adabldm import blend_batch
from defaug_utils.methods.blending import BlendSettings
from defaug_utils.methods.diag import DIAG
from defaug_utils.methods.painting import CheckLimits

SETTINGS = InpaintSettings((16, 48), steps=2, padding_mask_crop=None, keep_detail=1.0)


class PaintsNothing:
    """A pipeline that gives back what its autoencoder leaves of the picture, and adds `shift` in [0, 1]."""

    vae_scale_factor = 2
    tokenizer = None

    def __init__(self, shift: float = 0.0) -> None:
        self.unet = SimpleNamespace(config=SimpleNamespace(in_channels=9))
        self.vae, self.shift = make_parts(9)["vae"].eval(), shift

    def set_progress_bar_config(self, **options) -> None:
        pass

    def encode_prompt(self, **options) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)

    def __call__(self, image: torch.Tensor, **options) -> SimpleNamespace:
        return SimpleNamespace(images=autoencode(self.vae, 2 * image - 1) / 2 + 0.5 + self.shift)


def make_job(shape: tuple[int, int] = (48, 16), is_grey: bool = False) -> InpaintJob:
    image_u8 = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = np.zeros(shape, bool)
    mask[10:24, 4:12] = True
    if is_grey:
        image_u8 = image_u8[..., :1].repeat(3, axis=2)
    return InpaintJob(image_u8, mask, "white marks", "", 3)


@pytest.fixture(scope="module")
def inpainter(inpainting_folder: Path) -> Inpainter:
    return load_inpainter(inpainting_folder)


def test_detail_by_hand():
    image, returned, painted = (np.full((1, 1, 3), value, np.uint8) for value in (100, 90, 200))
    assert add_detail(image, painted, returned, 1.0)[0, 0, 0] == 210
    assert add_detail(image, painted, returned, 0.5)[0, 0, 0] == 205
    assert add_detail(returned, painted, image, 1.0)[0, 0, 0] == 190
    assert add_detail(image, painted + np.uint8(50), returned, 1.0)[0, 0, 0] == 255, "within 0 … 255"


@pytest.mark.parametrize("is_grey", [False, True])
@pytest.mark.parametrize("crop", [None, 2])
@pytest.mark.parametrize("shape", [(48, 16), (61, 23)])
def test_where_nothing_is_painted_the_original_comes_back_bit_for_bit(shape, crop, is_grey):
    job, settings = make_job(shape, is_grey), replace(SETTINGS, padding_mask_crop=crop)
    inpainter = Inpainter(PaintsNothing(), "nothing")
    (kept,) = inpaint_batch(inpainter, [job], settings)
    assert (kept.image_u8 == job.image_u8).all() and (kept.painted_u8 == job.image_u8).all()
    (lossy,) = inpaint_batch(inpainter, [job], replace(settings, keep_detail=0.0))
    loss = job.image_u8[job.mask].astype(float) - lossy.image_u8[job.mask]
    assert np.abs(loss).mean() > 10, "a random autoencoder loses most"
    (half,) = inpaint_batch(inpainter, [job], replace(settings, keep_detail=0.5))
    left = job.image_u8[job.mask].astype(float) - half.image_u8[job.mask]
    assert np.abs(left - loss / 2).max() <= 0.5


def test_what_is_painted_stays_on_top():
    flat = make_job()._replace(image_u8=np.full((48, 16, 3), 100, np.uint8))
    (made,) = inpaint_batch(Inpainter(PaintsNothing(), "nothing"), [flat], SETTINGS)
    (brighter,) = inpaint_batch(Inpainter(PaintsNothing(0.1), "brighter"), [flat], SETTINGS)
    gain = brighter.image_u8[flat.mask].astype(float) - made.image_u8[flat.mask]
    assert np.abs(gain - 25.5).max() <= 1.5


def test_switched_off_nothing_is_encoded_again(inpainter, monkeypatch):
    job = make_job()
    (kept,) = inpaint_batch(inpainter, [job], SETTINGS)
    monkeypatch.setattr(inpainting, "autoencode", None)  # not to be called
    (plain,) = inpaint_batch(inpainter, [job], replace(SETTINGS, keep_detail=0.0))
    assert (plain.image_u8 != kept.image_u8).any()


@pytest.mark.parametrize("crop", [None, 2])
@pytest.mark.parametrize("feather", [0, 2])
def test_outside_the_mask_nothing_changes(inpainter, crop, feather):
    settings = replace(SETTINGS, padding_mask_crop=crop, feather=feather)
    for job in (make_job(), make_job((61, 23))):
        (made,) = inpaint_batch(inpainter, [job], settings)
        assert (made.image_u8[~job.mask] == job.image_u8[~job.mask]).all()
        assert (made.image_u8[job.mask] != job.image_u8[job.mask]).any()


def test_on_a_grey_image_the_result_is_grey(inpainter):
    (made,) = inpaint_batch(inpainter, [make_job(is_grey=True)], SETTINGS)
    assert (made.image_u8 == made.image_u8[..., :1]).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("settings", [InpaintSettings, BlendSettings])
def test_a_share_out_of_range_is_refused(settings, wrong):
    with pytest.raises(ValueError, match=r"keep_detail .* must be in 0 … 1"):
        settings(keep_detail=wrong)


def test_a_recipe_names_it_only_where_it_is_set(inpainter, tmp_path: Path):
    row = {"image": "images/0.png", "label": "negative", "split": "train", "origin": "real"}
    write_png(tmp_path / "data/images/0.png", make_job().image_u8)
    write_manifest(make_manifest([row]), tmp_path / "data/manifest.csv")
    method = DIAG(
        data=tmp_path / "data",
        inpainter=inpainter,
        settings=SETTINGS,
        prompts=make_prompts(["white marks"]),
        masks=open_masks("procedural"),
        limits=CheckLimits(contrast=0, completeness=0),
    )
    pool = make_pool(tmp_path / "pool", method, PoolPlan(2))
    assert (pool["check_outside"] == 0).all()
    assert read_recipe(tmp_path / "pool")["settings"]["keep_detail"] == 1.0
    plain = replace(method, settings=replace(SETTINGS, keep_detail=0.0))
    assert "keep_detail" not in plain.describe()["settings"], "pools from before it stay valid"
    with pytest.raises(ValueError, match=r"settings\.keep_detail \(1\.0, requested None\)"):
        make_pool(tmp_path / "pool", plain, PoolPlan(4))


def test_adabldm_takes_it_as_well(text_model_folder: Path):
    model = load_text2image(text_model_folder, clip_skip=1)
    trimap_model, job = TrimapModel(model, make_controlnet(model)), make_job()
    settings = BlendSettings((16, 48), 2, latent_editing=None, image_editing=None)
    (plain,) = blend_batch(trimap_model, [job], settings, None)
    (kept,) = blend_batch(trimap_model, [job], replace(settings, keep_detail=1.0), None)
    pixels = torch.from_numpy(job.image_u8.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    returned = (autoencode(model.pipeline.vae, pixels)[0].permute(1, 2, 0).numpy() + 1) * 127.5
    expected = np.clip(plain.image_u8 + (job.image_u8 - returned), 0, 255)
    assert np.abs(kept.image_u8 - expected)[job.mask].max() <= 1.1
    assert (kept.image_u8[~job.mask] == job.image_u8[~job.mask]).all()
    assert "keep_detail" not in settings.describe()
    assert replace(settings, keep_detail=0.5).describe()["keep_detail"] == 0.5


@pytest.mark.parametrize("label", MODELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["half", "single"])
def test_every_familys_autoencoder_gives_pictures_back_and_stays_as_it_was(label, dtype, tmp_path: Path):
    inpainter = load_inpainter(save_family(tmp_path, label), dtype=dtype)
    vae, images = inpainter.pipeline.vae, torch.rand(2, 3, 64, 64) * 2 - 1
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    returned = autoencode(vae, images)
    assert returned.shape == images.shape and returned.dtype == torch.float32
    assert returned.isfinite().all() and returned.abs().max() <= 1
    assert vae.dtype == dtype
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_an_autoencoder_that_overflows_in_half_precision_computes_in_single(monkeypatch):
    vae = make_parts(9)["vae"].eval()
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    used, encode = [], vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: used.append(pixels.dtype) or encode(pixels))
    exact = autoencode(vae, images)
    half = autoencode(vae.half(), images)
    assert used == [torch.float32, torch.float32] and vae.dtype == torch.float16
    assert (half - exact).abs().max() < 0.02
    vae.register_to_config(force_upcast=False)
    autoencode(vae, images)
    assert used[-1] == torch.float16
