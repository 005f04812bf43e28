"""DDPM pools: bytes that don't depend on what was interrupted, a record of what taught the generator."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_model

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import make_manifest, read_manifest, write_manifest
from defaug_utils.core.origins import Run
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.core.prompts import Prompt, make_prompts
from defaug_utils.diffusion.dreambooth import train_dreambooth
from defaug_utils.diffusion.dreambooth_plan import DreamBoothSettings
from defaug_utils.diffusion.loading import ModelError
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.text2image import (
    TextJob,
    TextSettings,
    TextToImage,
    embed_tokens,
    generate_images,
    load_text2image,
    start_latents,
    tokenise_prompts,
)
from defaug_utils.diffusion.training_images import (
    BucketSettings,
    DreamBoothError,
    choose_training_rows,
    read_training_images,
)
from defaug_utils.methods.ddpm import DDPM, AdapterError, NearestNegatives, open_adapter
from defaug_utils.protocol.mixing import Mix, compose_training_set
from defaug_utils.protocol.run_folder import RunPools

COUNT, SIZE = 7, (16, 48)
SETTINGS = TextSettings(SIZE, steps=2, guidance=3.0)
PROMPTS = make_prompts(["skt background cracked", "skt background scratched"], "dark")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for number in range(12):
        split, label = ("train", "train", "train", "test")[number % 4], ("negative", "positive")[number // 6]
        row = {"image": f"images/{number}.png", "label": label, "split": split, "origin": "real"}
        write_png(folder / row["image"], generator.integers(60, 200, (48, 16, 3), dtype=np.uint8))
        rows.append(row)
    write_manifest(make_manifest(rows), folder / "manifest.csv")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "text", 4, text_layers=2, prediction="v_prediction")


@pytest.fixture(scope="module")
def model(model_folder: Path) -> TextToImage:
    return load_text2image(model_folder)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, data: Path, model_folder: Path) -> Path:
    dataset = read_manifest(data / "manifest.csv")
    buckets = BucketSettings(area=16 * 48, smallest=8, largest=96, step=4)
    rows = choose_training_rows(dataset, "few-shot", 0, few_shot_count=2)
    settings = DreamBoothSettings(epochs=2, repeats=2, learning_rate=0.1, buckets=buckets)
    images = read_training_images(rows, dataset, data, buckets)
    folder = tmp_path_factory.mktemp("lora")
    return train_dreambooth(
        load_text2image(model_folder), images, folder, settings, LoraPlan(2, 2, 2, 2)
    ).lora


def make_method(data: Path, model: TextToImage, lora: Path | None, **changed: object) -> DDPM:
    plan = {"share": 0.6, "prompts": PROMPTS, "settings": SETTINGS, "group": 3} | changed
    return DDPM(data=data, model=model, lora=lora, **plan)


def make(folder: Path, data: Path, model: TextToImage, lora: Path | None, **changed: object):
    count = changed.pop("count", COUNT)
    return make_pool(folder, make_method(data, model, lora, **changed), PoolPlan(count))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, model: TextToImage, lora: Path) -> Path:
    folder = tmp_path_factory.mktemp("pools") / "ddpm"
    make(folder, data, model, lora)
    return folder


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_rows_and_recipe_say_how_each_image_was_made(whole: Path, data: Path, lora: Path, model: TextToImage):
    pool = read_manifest(whole / "manifest.csv", check_files=True)
    assert len(pool) == COUNT and set(pool["origin"]) == {"ddpm"} and set(pool["label"]) == {"positive"}
    assert (pool["mask"] == "").all() and (pool["source_image"] == "").all()
    assert pool["prompt"].tolist() == ([prompt.text for prompt in PROMPTS] * 4)[:COUNT]
    (recipe,) = json.loads((whole / "recipe.json").read_text()).values()
    few = choose_training_rows(read_manifest(data / "manifest.csv"), "few-shot", 0, few_shot_count=2)
    assert recipe["adapter"]["training"]["trained_on"]["instances"] == few["image"].tolist()
    assert recipe["adapter"]["share"] == 0.6 and len(recipe["adapter"]["sha256"]) == 64
    assert recipe["model"]["fingerprint"] == model.describe()["fingerprint"]
    assert recipe["model"]["clip_skip"] == 2 and recipe["masks"] == "none"
    assert {"peft", "diffusers", "torch"} <= set(recipe["versions"])


def test_the_base_model_is_as_before(whole: Path, model: TextToImage):
    from defaug_utils.diffusion.loading import fingerprint

    assert whole.is_dir()
    weights = model.pipeline.unet.state_dict()
    assert not any("lora" in key for key in weights)
    assert fingerprint(model.pipeline.components) == model.describe()["fingerprint"]


def test_share_0_is_the_untuned_model_and_a_share_is_not(tmp_path: Path, whole, data, model, lora):
    for name, adapter, share in (("base", None, 0.0), ("zero", lora, 0.0)):
        make(tmp_path / name, data, model, adapter, share=share, count=3)
    images = {n: read_image(tmp_path / n / "images" / "000000.png") for n in ("base", "zero")}
    assert (images["base"] == images["zero"]).all()
    assert (images["base"] != read_image(whole / "images" / "000000.png")).any()
    with pytest.raises(ValueError, match="merge weight"):
        make(tmp_path / "wrong", data, model, lora, share=-0.1)
    assert not (tmp_path / "wrong").exists()


def test_another_share_or_prompt_is_refused(whole: Path, data, model, lora):
    for changed in ({"share": 0.5}, {"prompts": PROMPTS[:1]}, {"settings": TextSettings(SIZE, 3)}):
        with pytest.raises(ValueError, match="made with other settings"):
            make(whole, data, model, lora, **changed)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, data: Path, lora: Path):
    other = load_text2image(save_model(tmp_path / "other", 4, text_layers=3))
    with pytest.raises(AdapterError, match="was trained on the base model"):
        make(tmp_path / "pool", data, other, lora)
    with pytest.raises(AdapterError, match="run notebook 03_lora_finetune"):
        make(tmp_path / "pool", data, other, tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(AdapterError, match="not a readable safetensors"):
        make(tmp_path / "pool", data, other, tmp_path / "broken.safetensors")


def test_an_adapter_that_learned_a_test_image_is_refused(data: Path, model: TextToImage, lora: Path):
    dataset = read_manifest(data / "manifest.csv")
    assert open_adapter(lora, model, dataset).training["trained_on"]["class_images"] == 0
    with pytest.raises(DreamBoothError, match="is test: a generator may learn only from train"):
        open_adapter(lora, model, dataset.assign(split="test"))


def test_training_sets_take_these_images_without_masks(whole: Path, data: Path):
    dataset = read_manifest(data / "manifest.csv")
    pool = read_manifest(whole / "manifest.csv")
    rows = compose_training_set(
        dataset, RunPools({"ddpm": pool}), Run("few-shot", "ddpm", 4, 0), Mix(few_shot_count=2)
    )
    assert (rows["origin"] == "ddpm").sum() == 4


def test_mask_estimates_are_stored_when_asked_for_only(tmp_path: Path, data, model, lora):
    pool = make(tmp_path, data, model, lora, count=2, estimates_masks=True)
    assert set(pool["mask_source"]) == {"estimate_nearest_negative"}
    assert all(read_mask(tmp_path / mask).any() for mask in pool["mask"])
    assert set(pool["mask_nearest"]) <= {f"images/{number}.png" for number in (0, 1, 2, 4, 5)}


def test_the_estimate_finds_a_patch_on_the_nearest_negative(tmp_path: Path):
    generator, names = np.random.default_rng(0), []
    for number in range(3):
        names.append(f"{number}.png")
        noise = generator.normal(80 + 40 * number, 3, (48, 16, 1)).repeat(3, 2)
        write_png(tmp_path / names[-1], noise.clip(0, 255).astype(np.uint8))
    image_u8 = read_image(tmp_path / "1.png").copy()
    image_u8[10:20, 4:12] = 250
    mask, nearest = NearestNegatives(names, tmp_path, (16, 48)).estimate(image_u8)
    assert nearest == "1.png" and mask[12:18, 6:10].all() and not mask[30:].any()


def test_centred_noise_has_no_mean_and_images_without_it_are_as_before(model: TextToImage, whole: Path):
    generators = [[torch.Generator().manual_seed(seed) for seed in (3, 4)] for _ in range(2)]
    centred = replace(SETTINGS, centre_noise=True)
    drawn, shifted = (
        start_latents(model, some, settings)
        for some, settings in zip(generators, (SETTINGS, centred), strict=True)
    )
    assert drawn.shape == (2, 4, *(side // model.cell for side in SIZE[::-1]))
    means = shifted.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(means, torch.zeros_like(means))
    torch.testing.assert_close(drawn - shifted, drawn.mean(dim=(2, 3), keepdim=True).expand_as(drawn))
    again = torch.randn((1, *drawn.shape[1:]), generator=torch.Generator().manual_seed(4))
    assert (again[0] == drawn[1]).all(), "what diffusers draws itself"
    assert "centre_noise" not in SETTINGS.describe() and centred.describe()["centre_noise"]
    jobs = [TextJob("background", "", 3)]
    pictures = [generate_images(model, jobs, settings)[0] for settings in (SETTINGS, centred)]
    assert (pictures[0] != pictures[1]).any()


def test_images_are_grey_if_all_real_negatives_are(tmp_path: Path, whole, data, model, lora):
    assert "stay_grey" not in json.loads((whole / "recipe.json").read_text()).popitem()[1]
    copied = shutil.copytree(data, tmp_path / "data")
    negatives = make_method(copied, model, lora).sources["image"]
    for name in negatives:
        write_png(copied / name, read_image(copied / name)[..., :1].repeat(3, axis=2))
    pool = make(tmp_path / "grey", copied, model, lora, count=3)
    made = [read_image(tmp_path / "grey" / name) for name in pool["image"]]
    assert all((image_u8 == image_u8[..., :1]).all() for image_u8 in made)
    (recipe,) = json.loads((tmp_path / "grey/recipe.json").read_text()).values()
    assert recipe["stay_grey"] is True
    write_png(copied / negatives[0], read_image(data / negatives[0]))
    assert not make_method(copied, model, lora).stays_grey


def test_wrong_wishes_are_refused_before_anything_is_written(tmp_path: Path, data, model, lora):
    for wrong, said in (
        ({"settings": TextSettings((15, 48), 2)}, "needs multiples of 4, use 16 × 48"),
        ({"prompts": [Prompt("a" * 70)]}, "tokens"),
        ({"prompts": [Prompt("")]}, "empty"),
    ):
        with pytest.raises(ValueError, match=said):
            make(tmp_path / "pool", data, model, lora, **wrong)
    assert not (tmp_path / "pool").exists()


def test_the_text_encoders_layers(model: TextToImage):
    tokens, encoder = tokenise_prompts(model, ["crack"]), model.pipeline.text_encoder
    with torch.no_grad():
        last, skipped = embed_tokens(encoder, tokens, 1), embed_tokens(encoder, tokens, 2)
        plain = model.pipeline.encode_prompt("crack", "cpu", 1, do_classifier_free_guidance=False)[0]
        shorter = deepcopy(encoder)
        stack = getattr(shorter, "text_model", shorter).encoder
        stack.layers = stack.layers[:-1]
        torch.testing.assert_close(last, plain, rtol=0, atol=0)
        torch.testing.assert_close(skipped, shorter(tokens).last_hidden_state, rtol=0, atol=0)
    assert not torch.allclose(last, skipped)


def test_models_that_do_not_do(tmp_path: Path, model_folder: Path):
    with pytest.raises(ModelError, match="takes 9 channels"):
        load_text2image(save_model(tmp_path / "inpainting"), clip_skip=1)
    with pytest.raises(ModelError, match="clip_skip 3 must be 1 … 2"):
        load_text2image(model_folder, clip_skip=3)
    with pytest.raises(ModelError, match="it predicts 'sample'"):
        load_text2image(save_model(tmp_path / "sample", 4, prediction="sample"), clip_skip=1)
    with pytest.raises(ModelError, match="expected a folder"):
        load_text2image("nowhere")


def test_too_little_memory_halves_the_batch(model: TextToImage, monkeypatch):
    from defaug_utils.diffusion import text2image

    parts, real = [], text2image._draw

    def draw(given: TextToImage, jobs: list, settings: TextSettings) -> list:
        parts.append(len(jobs))
        if len(jobs) > 2:
            raise torch.OutOfMemoryError
        return real(given, jobs, settings)

    monkeypatch.setattr(text2image, "_draw", draw)
    monkeypatch.setattr(model, "batch_limit", None)
    jobs = [TextJob("crack", "", seed) for seed in range(5)]
    assert len(generate_images(model, jobs, SETTINGS)) == 5
    assert parts == [5, 2, 2, 1]


def test_values_that_are_no_numbers_are_told(model_folder: Path):
    broken = load_text2image(model_folder)
    torch.nn.init.constant_(broken.pipeline.unet.conv_out.bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"seeds \[3, 4\]"):
        generate_images(broken, [TextJob("crack", "", 3), TextJob("crack", "", 4)], SETTINGS)
