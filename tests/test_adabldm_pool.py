"""AdaBLDM pools: masks exact, the rest the original's, the same bytes whatever was interrupted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from defaug_utils.core.files import write_png
from defaug_utils.core.images import find_foreground, read_image, read_mask
from defaug_utils.core.manifest import ManifestError, make_manifest, read_manifest, write_manifest
from defaug_utils.core.pools import (
    PoolPlan,
    find_failed,
    find_unrestored,
    make_pool,
    read_recipe,
    remake,
)
from defaug_utils.core.prompts import Prompt, make_prompts
from defaug_utils.diffusion import autoencoder
from defaug_utils.diffusion.autoencoder import AdaptationSettings
from defaug_utils.diffusion.controlnet import TrimapModel, make_controlnet
from defaug_utils.diffusion.jobs import InpaintJob
from defaug_utils.diffusion.text2image import load_text2image
from defaug_utils.diffusion.trimap_models import TrimapModels
from defaug_utils.evaluation.pool_quality import check_pool
from defaug_utils.masks.patches import cut_defect
from defaug_utils.masks.sources import open_masks
from defaug_utils.masks.trimaps import TurnedMasks
from defaug_utils.methods import adabldm
from defaug_utils.methods.adabldm import AdaBLDM, blend_batch
from defaug_utils.methods.blending import BlendSettings
from defaug_utils.methods.painting import CheckLimits

STAGES = {"latent_editing": (2, 3), "image_editing": (2, 3)}
SETTINGS = BlendSettings((16, 32), 3, **STAGES)
WISH = {
    "prompts": make_prompts(["a hole", "crack"]),
    "masks": open_masks("procedural"),
    "settings": SETTINGS,
    "adaptation": AdaptationSettings(steps=2),
    "limits": CheckLimits(contrast=0, completeness=0),
    "group": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good parts for training, brighter than their background, and one for test."""
    folder, generator, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for number, split in enumerate(("train", "train", "test")):
        row = {"image": f"images/{number}.png", "label": "negative", "split": split, "origin": "real"}
        image_u8 = generator.integers(0, 40, (48, 16, 3), dtype=np.uint8)
        image_u8[8:40] += 180
        write_png(folder / row["image"], image_u8)
        rows.append(row)
    write_manifest(make_manifest(rows), folder / "manifest.csv")
    return folder


@pytest.fixture(scope="module")
def trimap_model(text_model_folder: Path) -> TrimapModel:
    model = load_text2image(text_model_folder, clip_skip=1)
    return TrimapModel(model, make_controlnet(model))


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make(folder: Path, data: Path, model: TrimapModel, count: int = 5, **changed: object) -> pd.DataFrame:
    return make_pool(folder, AdaBLDM(data=data, model=model, **WISH | changed), PoolPlan(count, 3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, trimap_model: TrimapModel) -> Path:
    """A pool made in one undisturbed run; the model's weights are the same before and after."""
    folder = tmp_path_factory.mktemp("pools") / "adabldm"
    vae = trimap_model.model.pipeline.vae
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    make(folder, data, trimap_model)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    return folder


def test_rows_say_how_each_image_was_made(whole: Path, data: Path):
    pool = read_manifest(whole / "manifest.csv", check_files=True)
    assert len(pool) == 5 and set(pool["origin"]) == {"adabldm"} and set(pool["label"]) == {"positive"}
    assert set(pool["source_image"]) <= {"images/0.png", "images/1.png"}
    assert pool["prompt"].tolist() == ["a hole", "crack", "a hole", "crack", "a hole"]
    assert (
        (pool["check_outside"] == 0).all() and pool["check_passed"].all() and (pool["latent_cells"] > 0).all()
    )
    assert (pool["adaptation_steps"] == 2).all() and pool["adaptation_problem"].isna().all()
    assert (pool["adaptation_after"] < pool["adaptation_before"]).all()
    for row in pool.to_dict("records"):
        mask, source = read_mask(whole / row["mask"]), read_image(data / row["source_image"])
        finished = read_image(whole / row["image"])
        assert (finished[~mask] == source[~mask]).all() and (finished[mask] != source[mask]).any()


def test_an_image_can_be_the_whole_of_what_the_decoder_gives(whole: Path, data: Path, trimap_model, tmp_path):
    pool = make(tmp_path, data, trimap_model, 2, settings=replace(SETTINGS, paste_back=False))
    assert find_unrestored(pool).all() and not find_unrestored(read_manifest(whole / "manifest.csv")).any()
    assert not find_failed(pool).any() and (pool["check_reason"].fillna("") == "").all()
    for row in pool.to_dict("records"):
        mask, source = read_mask(tmp_path / row["mask"]), read_image(data / row["source_image"])
        finished, restored = read_image(tmp_path / row["image"]), read_image(whole / row["image"])
        assert (finished[mask] == restored[mask]).all(), "the same defect"
        difference = np.abs(finished.astype(int) - source)[~mask].max()
        assert row["check_outside"] == difference > 0, "what changed is told"
    check_pool(tmp_path, pool, data)
    with pytest.raises(ManifestError, match=r"2 problem.*\n.*pixels changed outside its mask"):
        check_pool(tmp_path, pool.drop(columns="paste_back"), data)
    assert read_recipe(tmp_path)["settings"]["paste_back"] is False
    assert "paste_back" not in SETTINGS.describe(), "pools from before it stay valid"
    assert replace(SETTINGS, latent_editing=None).describe()["latent_editing"] is None
    with pytest.raises(ValueError, match=r"settings\.paste_back \(False, requested None\)"):
        make(tmp_path, data, trimap_model, 4)


def test_the_recipe_holds_everything_else(whole: Path):
    (recipe,) = json.loads((whole / "recipe.json").read_text()).values()
    assert recipe["settings"] | {"steps": 3, "guidance": 9.0, "latent_editing": [2, 3]} == recipe["settings"]
    assert recipe["model"]["controlnet"]["trained_on"] == "unknown", "a fresh one, never trained"
    assert recipe["adaptation"]["steps"] == 2 and recipe["foreground"] == "whole"
    assert recipe["model"]["fingerprint"] and recipe["model"]["controlnet"]["fingerprint"]


def test_another_controlnet_makes_nothing_again(whole: Path, data: Path, trimap_model: TrimapModel):
    other = TrimapModel(trimap_model.model, make_controlnet(trimap_model.model, seed=1))
    with pytest.raises(ValueError, match=r"model\.controlnet\.fingerprint .* differ from the pool's recipe"):
        remake(whole, "images/000000.png", AdaBLDM(data=data, model=other, **WISH))


def test_defects_lie_on_the_object_where_one_is_told_from_its_background(tmp_path: Path, data, trimap_model):
    seen = []

    class BrightFinder:
        def __call__(self, image_u8: np.ndarray) -> np.ndarray:
            seen.append(image_u8.shape[:2])
            return find_foreground(image_u8, "bright")

        def describe(self) -> dict:
            return {"method": "bright"}

    pool = make(tmp_path, data, trimap_model, find_object=BrightFinder(), adaptation=None)
    assert read_recipe(tmp_path)["foreground"] == {"method": "bright"}
    for row in pool.to_dict("records"):
        rows = np.flatnonzero(read_mask(tmp_path / row["mask"]).any(axis=1))
        assert rows.min() >= 8 and rows.max() < 40
    assert set(seen) == {(48, 16), (32, 16)}, "masks at the image's size, trimaps at the working size"
    assert "adaptation_steps" not in pool


def test_a_defect_larger_than_the_object_is_told(tmp_path: Path, data: Path, trimap_model):
    def find_dot(image_u8: np.ndarray) -> np.ndarray:
        dot = np.zeros(image_u8.shape[:2], bool)
        dot[3, 3] = True
        return dot

    with pytest.raises(
        ValueError, match=r"images/\d.png: none of 50 masks .procedural. fits into its object"
    ):
        AdaBLDM(data=data, model=trimap_model, **WISH, find_object=find_dot).plan_image(0, 0)


def test_a_controlnet_that_saw_test_images_is_refused(tmp_path: Path, data: Path, trimap_model: TrimapModel):
    trained_on = {"defects": ["images/2.png", "images/9.png"], "goods": ["images/0.png"]}
    seeing = TrimapModel(trimap_model.model, trimap_model.controlnet, {"trained_on": trained_on, "steps": 3})
    with pytest.raises(ManifestError, match=r"images/2.png is test, .*\n.*images/9.png is unknown"):
        make(tmp_path / "pool", data, seeing)
    assert not (tmp_path / "pool").exists()
    trained_on["defects"] = ["images/1.png"]
    make(tmp_path / "pool", data, seeing, count=1)
    assert read_recipe(tmp_path / "pool")["learned_from"] == ["images/1.png"]


@pytest.mark.parametrize(
    ("factor", "told"), [(2.0, "the loss rose from"), (float("nan"), "the loss is not finite after 1 steps")]
)
def test_a_diverged_adaptation_is_told_in_the_row_and_the_own_image_taken(
    data: Path, trimap_model, monkeypatch, factor: float, told: str
):
    """Both cases are forced: which one a wild learning rate ends in is for the CPU to say."""
    calls, measure = [], autoencoder.adaptation_loss

    def force(*given: object) -> torch.Tensor:
        calls.append(given)
        return measure(*given) * factor ** (len(calls) - 1)

    monkeypatch.setattr(autoencoder, "adaptation_loss", force)
    image_u8 = read_image(data / "images/0.png")
    mask = np.zeros((48, 16), bool)
    mask[20:30, 4:12] = True
    job = InpaintJob(image_u8, mask, "crack", "", 5)
    how = AdaptationSettings(steps=3, learning_rate=1e-9)
    (diverged,), (own,) = (blend_batch(trimap_model, [job], SETTINGS, chosen) for chosen in (how, None))
    assert diverged.further["adaptation_problem"].startswith(told)
    assert (diverged.painted_u8 == own.painted_u8).all() and not own.further


def test_values_that_are_no_numbers_are_told_by_the_checks(tmp_path: Path, data, trimap_model, monkeypatch):
    def break_latents(images: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.full((len(images), 4, 16, 8), float("nan"))

    monkeypatch.setattr(adabldm, "blend_latents", break_latents)
    pool = make(tmp_path, data, trimap_model)
    assert not pool["check_passed"].any() and pool["check_reason"].str.startswith("not a number").all()
    assert pool["adaptation_problem"].str.contains("is not finite").all()
    assert pool["adaptation_before"].isna().all()


def test_the_same_image_alone_and_among_others(data: Path, trimap_model):
    image_u8, mask = read_image(data / "images/0.png"), np.zeros((48, 16), bool)
    mask[20:30, 4:12] = True
    jobs = [InpaintJob(image_u8, mask, prompt, "", seed) for prompt, seed in (("crack", 5), ("a hole", 6))]
    how = AdaptationSettings(steps=2)
    both = blend_batch(trimap_model, jobs, SETTINGS, how)
    alone = [blend_batch(trimap_model, [job], SETTINGS, how)[0] for job in jobs]
    for one, other in zip(both, alone, strict=True):
        assert np.abs(one.painted_u8.astype(int) - other.painted_u8).max() <= 1


def test_a_second_pool_of_the_same_seed_is_only_decoded(tmp_path, data, trimap_model, monkeypatch):
    store: adabldm.LatentStore = {}
    folders = {name: tmp_path / name for name in ("adapted", "plain", "fresh")}
    make(folders["fresh"], data, trimap_model, adaptation=None)
    adapted = make(folders["adapted"], data, trimap_model, store=store)
    monkeypatch.setattr(adabldm, "blend_latents", None)  # not to be called again
    pool = make(folders["plain"], data, trimap_model, adaptation=None, store=store)
    assert set(pool["origin"]) == {"adabldm_plain"} and "adaptation_before" not in pool
    assert read_all(folders["plain"]) == read_all(folders["fresh"])
    same = ["source_image", "mask_name", "prompt", "seed"]
    assert pool[same].equals(adapted[same])
    assert (folders["plain"] / "images/000000.png").read_bytes() != (
        folders["adapted"] / "images/000000.png"
    ).read_bytes()


def test_turned_masks_bring_their_prompt_and_are_made_again(tmp_path, data, trimap_model):
    stripe, spot = np.zeros((2, 48, 16), bool)
    stripe[4:6, 2:9] = spot[10:14, 5:9] = True
    image_u8 = np.zeros((48, 16, 3), np.uint8)
    parts = ((stripe, "crack"), (spot, "hole"))
    defects = [cut_defect(image_u8, mask, "", kind, f"{kind}.png") for mask, kind in parts]
    masks = TurnedMasks(defects, template="a {defect_type}")
    method = AdaBLDM(
        data=data,
        model=trimap_model,
        **WISH | {"masks": masks, "prompts": make_prompts(["a hole", "a crack"])},
    )
    pool = make_pool(tmp_path / "pool", method, PoolPlan(6, 3))
    assert set(pool["mask_name"]) == {"crack.png", "hole.png"}
    assert pool["prompt"].tolist() == [f"a {name.removesuffix('.png')}" for name in pool["mask_name"]]
    again = remake(tmp_path / "pool", pool["image"].iloc[5], method)
    assert (again.image_u8 == read_image(tmp_path / "pool" / pool["image"].iloc[5])).all()


def test_other_jobs_have_another_name_in_a_store():
    image_u8, mask = np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=bool)
    job = InpaintJob(image_u8, mask, "crack", "", 3)
    assert adabldm.name_jobs([job]) == adabldm.name_jobs([job._replace(mask=mask.copy())])
    others = [{"seed": 4}, {"prompt": "hole"}, {"mask": ~mask}, {"image_u8": image_u8 + 1}]
    changed = [[job, job], *([job._replace(**other)] for other in others)]
    assert adabldm.name_jobs([job]) not in map(adabldm.name_jobs, changed)


def test_every_image_is_painted_by_the_controlnet_of_its_prompt(
    tmp_path, data, trimap_model, text_model_folder
):
    other = make_controlnet(trimap_model.model, seed=5)
    with torch.no_grad():
        for weight in other.controlnet_mid_block.parameters():
            weight.fill_(3.0)  # a new ControlNet changes nothing
    second = TrimapModel(trimap_model.model, other, {"trained_on": {"defects": ["images/1.png"]}})
    both = TrimapModels({"a hole": trimap_model, "crack": second})
    assert both.training == {"trained_on": {"defects": ["images/1.png"]}}
    how = {"masks": open_masks("procedural"), "group": 1, "adaptation": None}
    one, two, mixed = (
        make(tmp_path / name, data, model, 4, **how)
        for name, model in (("one", trimap_model), ("two", second), ("mixed", both))
    )
    assert set(mixed["prompt"]) == {"a hole", "crack"}
    for row, alone, apart in zip(mixed.itertuples(), one.itertuples(), two.itertuples(), strict=True):
        painted, first, last = (
            (tmp_path / name / each.image).read_bytes()
            for name, each in (("mixed", row), ("one", alone), ("two", apart))
        )
        assert first != last
        assert painted == (first if row.prompt == "a hole" else last)
    recipe = read_recipe(tmp_path / "mixed")
    assert set(recipe["model"]["controlnet"]) == {"a hole", "crack"}
    assert recipe["learned_from"] == ["images/1.png"]
    jobs = [InpaintJob(np.zeros((32, 16, 3), np.uint8), np.ones((32, 16), bool), "a dent", "", 0)]
    with pytest.raises(ValueError, match=r"(?s)prompts without a ControlNet.*'a dent'"):
        both.make_denoiser([np.zeros((32, 16), np.uint8)], [job.prompt for job in jobs], [""], 2.0)


def test_several_jobs_at_once_are_the_same_as_alone_under_several_controlnets(trimap_model):
    both = TrimapModels({"a hole": trimap_model, "crack": trimap_model})
    trimaps = [np.full((32, 16), level, np.uint8) for level in (127, 255, 0)]
    prompts, nothing = ["crack", "a hole", "crack"], ["", "", ""]
    denoise = both.make_denoiser(trimaps, prompts, nothing, 2.0)
    alone = trimap_model.make_denoiser(trimaps, prompts, nothing, 2.0)
    channels, cell = trimap_model.model.pipeline.unet.config.in_channels, trimap_model.model.cell
    latents = torch.randn(3, channels, 32 // cell, 16 // cell, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        both_ways = (make(latents, torch.tensor(500)) for make in (denoise, alone))
        torch.testing.assert_close(*both_ways, atol=1e-5, rtol=1e-4)


def test_wrong_wishes_are_refused(data: Path, trimap_model):
    for wrong, said in (
        ({"settings": BlendSettings((18, 32), 3, **STAGES)}, "multiples of 4"),
        ({"prompts": [Prompt("a" * 70)]}, "tokens"),
        ({"max_attempts": 0}, "max_attempts"),
    ):
        with pytest.raises(ValueError, match=said):
            AdaBLDM(data=data, model=trimap_model, **WISH | wrong)


def test_another_adaptation_in_the_same_folder_is_refused(whole: Path, data: Path, trimap_model):
    with pytest.raises(ValueError, match=r"other settings: adaptation .*; origin \(adabldm, requested"):
        make(whole, data, trimap_model, adaptation=None)
