"""The adapter of an inpainting U-Net: it learns, resumes exactly, and reads what the pipeline shows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import prepare_grid
from safetensors import safe_open
from tiny_families import save_family
from tiny_models import save_model

from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import ManifestError
from defaug_utils.core.pools import PoolPlan, make_pool, read_recipe, remake
from defaug_utils.core.prompts import make_prompts
from defaug_utils.core.sources import read_dataset
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, inpaint_batch, load_inpainter
from defaug_utils.diffusion.inpainting_lora import (
    InpaintingLoraRun,
    InpaintingLoraSettings,
    MaskedDefect,
    cache_examples,
    merge_inpainting_lora,
    read_masked_defects,
    train_inpainting_lora,
)
from defaug_utils.diffusion.jobs import InpaintJob
from defaug_utils.diffusion.loading import ModelError
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.lora_files import load_lora
from defaug_utils.masks.patches import read_defects
from defaug_utils.masks.trimaps import TurnedMasks
from defaug_utils.methods.diag import TunedDIAG
from defaug_utils.methods.painting import CheckLimits
from defaug_utils.training.loop import StepDone, StepPlan

SIZE, TEMPLATE = (32, 48), "a {defect_type}"
LORA = LoraPlan(linear_rank=4, linear_alpha=4, conv_rank=2, conv_alpha=2)
SETTINGS = InpaintingLoraSettings(SIZE, batch_size=2, learning_rate=0.01)
PAINT = InpaintSettings(SIZE, steps=3, guidance=1, padding_mask_crop=None)


@pytest.fixture(scope="module")
def defects() -> list[MaskedDefect]:
    generator = np.random.default_rng(0)
    images_u8 = generator.integers(100, 140, (2, 48, 32, 3), dtype=np.uint8)
    masks = np.zeros((2, 48, 32), bool)
    masks[0, 8:20, 4:12] = masks[1, 30:34, 6:30] = True
    images_u8[masks] = 255
    return [
        MaskedDefect(*pair, f"a hole {n}", f"{n}.png")
        for n, pair in enumerate(zip(images_u8, masks, strict=True))
    ]


def train(
    folder: Path, model_folder: Path, defects: list, steps: int, **changes
) -> tuple[InpaintingLoraRun, Inpainter, list]:
    """Train with a fresh model; also return it and the losses of the steps."""
    inpainter, losses = load_inpainter(model_folder), []

    def keep(done: StepDone) -> None:
        losses.append((done.step, done.loss))

    settings = replace(SETTINGS, **changes)
    run = train_inpainting_lora(inpainter, defects, folder, settings, LORA, StepPlan(steps, 3), keep)
    return run, inpainter, losses


def paint(inpainter: Inpainter, defect: MaskedDefect) -> np.ndarray:
    job = InpaintJob(defect.image_u8, defect.mask, defect.prompt, "", 5)
    return inpaint_batch(inpainter, [job], PAINT)[0].painted_u8


def test_training_learns_and_share_0_is_the_model_as_it_was(inpainting_folder, defects, tmp_path: Path):
    run, inpainter, _ = train(tmp_path, inpainting_folder, defects, 60)
    assert run.history["loss"].tail(5).mean() < 0.8 * run.history["loss"].head(5).mean()
    before = paint(load_inpainter(inpainting_folder), defects[0])
    merge_inpainting_lora(inpainter, 0)
    assert (paint(inpainter, defects[0]) == before).all()
    merge_inpainting_lora(inpainter, 1)
    assert (paint(inpainter, defects[0]) != before).any()


def test_a_resumed_training_has_the_losses_of_an_uninterrupted_one(
    inpainting_folder, defects, tmp_path: Path
):
    whole, _, losses = train(tmp_path / "whole", inpainting_folder, defects, 7)
    _, _, first = train(tmp_path / "parts", inpainting_folder, defects, 3)
    second, _, rest = train(tmp_path / "parts", inpainting_folder, defects, 7)
    assert second.resumed_steps == 3 and first + rest == losses
    assert _read(whole.lora).keys() == _read(second.lora).keys() != set()
    assert all(torch.equal(value, _read(second.lora)[key]) for key, value in _read(whole.lora).items())
    finished, _, nothing = train(tmp_path / "parts", inpainting_folder, defects, 7)
    assert finished.resumed_steps == 7 and not nothing


def _read(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping


def test_the_file_is_kohyas_and_gives_the_same_pictures_on_a_fresh_model(
    inpainting_folder, defects, tmp_path: Path
):
    run, inpainter, _ = train(tmp_path, inpainting_folder, defects, 3)
    assert {key.partition("_")[0] for key in _read(run.lora)} == {"lora"}
    fresh = load_inpainter(inpainting_folder)
    load_lora(run.lora, fresh.denoiser, fresh.pipeline.text_encoder)
    for each in (inpainter, fresh):
        merge_inpainting_lora(each)
    assert (paint(fresh, defects[1]) == paint(inpainter, defects[1])).all()


@pytest.mark.parametrize("crop", [None, 4])
def test_the_network_is_trained_on_what_the_pipeline_shows_it(inpainting_folder, defects, monkeypatch, crop):
    """Mask and latents of the masked image are those of diffusers' pipeline, but for its draw."""
    inpainter = load_inpainter(inpainting_folder)
    settings = replace(SETTINGS, padding_mask_crop=crop, flips=False)
    (example,) = cache_examples(inpainter, defects[:1], settings)
    seen, forward = [], inpainter.denoiser.forward
    monkeypatch.setattr(
        inpainter.denoiser, "forward", lambda x, *a, **k: seen.append(x) or forward(x, *a, **k)
    )
    distribution = type(inpainter.pipeline.vae.encode(torch.zeros(1, 3, 48, 32)).latent_dist)
    monkeypatch.setattr(distribution, "sample", lambda self, generator=None: self.mode())
    job = InpaintJob(*defects[0][:3], "", 5)
    inpaint_batch(inpainter, [job], replace(PAINT, padding_mask_crop=crop))
    assert torch.equal(seen[0][0, 4:5], example.cells)
    assert torch.allclose(seen[0][0, 5:], example.masked, atol=1e-4)


def test_flips_show_each_defect_from_four_sides(inpainting_folder, defects):
    inpainter = load_inpainter(inpainting_folder)
    examples = cache_examples(inpainter, defects, SETTINGS)
    assert len(examples) == 4 * len(defects)
    cells = [example.cells[0] for example in examples[:4]]
    assert torch.equal(cells[1], cells[0].flip(1)) and torch.equal(cells[2], cells[0].flip(0))
    assert len(cache_examples(inpainter, defects, replace(SETTINGS, flips=False))) == len(defects)


def test_other_settings_in_a_folder_are_refused(inpainting_folder, defects, tmp_path: Path):
    train(tmp_path, inpainting_folder, defects, 3)
    with pytest.raises(ValueError, match="learning_rate"):
        train(tmp_path, inpainting_folder, defects, 3, learning_rate=0.02)


def test_models_that_cannot_be_tuned_are_refused(defects, tmp_path: Path):
    text2image = load_inpainter(save_model(tmp_path / "text", unet_channels=4))
    with pytest.raises(ModelError, match=r"4 channels.*can't be tuned: expected an inpainting U-Net with 9"):
        train_inpainting_lora(text2image, defects, tmp_path / "a", SETTINGS)
    xl = load_inpainter(save_family(tmp_path / "xl", "Stable Diffusion XL"))
    with pytest.raises(ModelError, match="one text encoder"):
        train_inpainting_lora(xl, defects, tmp_path / "b", SETTINGS)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("learning_rate", 0), ("seed", -1)])
def test_wrong_settings_are_refused(name: str, value: int):
    with pytest.raises(ValueError, match=f"{name} {value} must"):
        InpaintingLoraSettings(SIZE, **{name: value})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_grid(tmp_path_factory.mktemp("grid"), SIZE)


def test_positives_without_masks_are_told_what_to_draw_and_where(data: Path):
    known = read_dataset(data).assign(mask="")
    with pytest.raises(ManifestError, match=r"none of 4 training positives has a mask: draw .*chapter 10"):
        read_masked_defects(known, data, TEMPLATE)


def make_method(data: Path, inpainter: Inpainter, learned_from: list[str]) -> TunedDIAG:
    masks = TurnedMasks(read_defects(read_dataset(data), data, SIZE), template=TEMPLATE)
    return TunedDIAG(
        data=data,
        inpainter=inpainter,
        settings=PAINT,
        prompts=make_prompts(["a bent", "a glue"]),
        masks=masks,
        limits=CheckLimits(contrast=0, completeness=0),
        group=2,
        learned_from=learned_from,
    )


def test_a_pool_names_what_it_was_learned_from_and_is_made_again(
    data: Path, inpainting_folder, tmp_path: Path
):
    known = read_masked_defects(read_dataset(data), data, TEMPLATE)
    _, inpainter, _ = train(tmp_path / "lora", inpainting_folder, known, 3)
    merge_inpainting_lora(inpainter)
    method = make_method(data, inpainter, [one.name for one in known])
    pool = make_pool(tmp_path / "pool", method, PoolPlan(4, seed=1))
    assert set(pool["origin"]) == {"diag_tuned"} and set(pool["prompt"]) <= {"a bent", "a glue"}
    assert read_recipe(tmp_path / "pool")["learned_from"] == [one.name for one in known]
    image = pool["image"].iloc[-1]
    assert (remake(tmp_path / "pool", image, method).image_u8 == read_image(tmp_path / "pool" / image)).all()


def test_a_model_tuned_on_a_test_image_makes_no_pool(data: Path, inpainting_folder, tmp_path: Path):
    dataset: pd.DataFrame = read_dataset(data)
    tested = dataset.loc[dataset["split"] == "test", "image"].iloc[0]
    method = make_method(data, load_inpainter(inpainting_folder), [tested])
    with pytest.raises(ManifestError, match=f"only be tuned on training images.*\n.*{tested} is test"):
        make_pool(tmp_path / "pool", method, PoolPlan(2))
