"""Families of diffusion models: each inpaints through DIAG, and others are refused before a download."""

import json
import shutil
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from tiny_families import MODELS, save_family
from tiny_models import save_model

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.core.prompts import make_prompts
from defaug_utils.diffusion import families, loading
from defaug_utils.diffusion.families import FAMILIES, decode_shifted, find_family, name_arguments
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, load_inpainter
from defaug_utils.diffusion.loading import ModelError
from defaug_utils.diffusion.text2image import load_text2image
from defaug_utils.masks.sources import open_masks
from defaug_utils.methods.diag import DIAG
from defaug_utils.methods.painting import CheckLimits

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
BY_LABEL = {family.label: family for family in FAMILIES}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory):
    """Gives the folder of a family's tiny model, made when it is first asked for; not to be changed."""
    folders: dict[str, Path] = {}

    def find(label: str) -> Path:
        if label not in folders:
            folders[label] = save_family(tmp_path_factory.mktemp("model"), label)
        return folders[label]

    return find


@pytest.fixture
def copy_of(model_of, tmp_path: Path):
    """Gives a copy of a family's model to spoil."""
    return lambda label: Path(shutil.copytree(model_of(label), tmp_path / "copy"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One negative of 48 × 64 pixels."""
    folder = tmp_path_factory.mktemp("data")
    image_u8 = np.random.default_rng(0).integers(60, 200, (64, 48, 3), dtype=np.uint8)
    write_png(folder / "images/0.png", image_u8)
    row = {"image": "images/0.png", "label": "negative", "split": "train", "origin": "real"}
    write_manifest(make_manifest([row]), folder / "manifest.csv")
    return folder


def make_diag(data: Path, inpainter: Inpainter, **changed: object) -> DIAG:
    given = {
        "prompts": make_prompts(["white marks"], "dark"),
        "masks": open_masks("procedural"),
        "settings": InpaintSettings((64, 64), steps=2),
        "limits": CheckLimits(contrast=0, completeness=0),
    }
    return DIAG(data=data, inpainter=inpainter, **given | changed)


@pytest.mark.parametrize("label", MODELS)
def test_diag_paints_with_every_family_in_half_precision(label, model_of, data, tmp_path):
    inpainter = load_inpainter(model_of(label), dtype=torch.bfloat16)
    assert type(inpainter.pipeline).__name__ == BY_LABEL[label].inpainting
    pool = make_pool(tmp_path / "pool", make_diag(data, inpainter), PoolPlan(1, 0))
    assert pool["check_outside"].tolist() == [0] and pool["check_reason"].fillna("").tolist() == [""]
    finished = read_image(tmp_path / "pool" / pool["image"][0])
    mask, source = read_mask(tmp_path / "pool" / pool["mask"][0]), read_image(data / "images/0.png")
    assert (finished[~mask] == source[~mask]).all() and (finished[mask] != source[mask]).any()
    (recipe,) = json.loads((tmp_path / "pool" / "recipe.json").read_text()).values()
    assert recipe["model"]["pipeline"] == BY_LABEL[label].inpainting
    assert recipe["model"]["dtype"] == "bfloat16"


def test_every_family_is_tested_and_in_the_book():
    assert {"Stable Diffusion 1.5 or 2", *MODELS} == set(BY_LABEL)  # the first by test_inpaint.py
    page = (Path(__file__).parents[1] / "book" / "gpu.md").read_text(encoding="utf-8")
    assert not [label for label in BY_LABEL if f"| {label} " not in page]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.label)
def test_the_table_agrees_with_diffusers(family):
    known = signature(getattr(diffusers, family.inpainting).__call__).parameters
    assert {family.guidance, "strength", "generator", "callback_on_step_end"} <= set(known)
    assert not family.takes_negative or "negative_prompt" in known
    assert find_family(family.inpainting) is family
    assert not family.text_to_image or find_family(family.text_to_image) is family


def test_no_class_belongs_to_two_families():
    classes = [name for family in FAMILIES for name in family.classes]
    assert len(classes) == len(set(classes))


def test_each_family_gets_guidance_and_negative_prompt_in_its_own_way():
    def ask(label: str, guidance: float) -> dict:
        return name_arguments(BY_LABEL[label], ["crack"], ["dark"], guidance)

    assert ask("Stable Diffusion 3", 7) == {
        "prompt": ["crack"],
        "negative_prompt": ["dark"],
        "guidance_scale": 7,
    }
    assert ask("FLUX.1 Fill", 30) == {"prompt": ["crack"], "guidance_scale": 30}
    assert ask("Z-Image", 6)["guidance_scale"] == 5, "its 0 is no guidance"
    assert ask("Z-Image", 1) == {"prompt": ["crack"], "guidance_scale": 0}
    assert ask("Qwen-Image", 4) == {"prompt": ["crack"], "negative_prompt": ["dark"], "true_cfg_scale": 4}
    assert ask("Qwen-Image", 1) == {"prompt": ["crack"], "true_cfg_scale": 1}


def test_what_a_user_must_know_of_a_family_is_told(model_of, data):
    fill = load_inpainter(model_of("FLUX.1 Fill"))
    assert "guidance 30 and strength 1" in fill.notices[0] and "ignores negative prompt" in fill.notices[1]
    with pytest.raises(ValueError, match=r"size 72 × 64: .* needs multiples of 16, use 64 × 64"):
        make_diag(data, fill, settings=InpaintSettings((72, 64)))


def test_a_text_is_never_cut_by_a_familys_own_limit(model_of, data):
    inpainter = load_inpainter(model_of("Z-Image"))
    assert inpainter.longest_text == 512 - families.CHAT_TOKENS
    template = inpainter.pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], tokenize=False
    )
    assert len(inpainter.pipeline.tokenizer(template).input_ids) <= families.CHAT_TOKENS
    make_diag(data, inpainter, prompts=make_prompts(["a" * inpainter.longest_text]))
    with pytest.raises(ValueError, match="has 481 tokens, the model's limit is 480"):
        make_diag(data, inpainter, prompts=make_prompts(["a" * 481]))


def test_stable_diffusion_3_is_decoded_with_the_autoencoders_shift():
    config = SimpleNamespace(scaling_factor=2.0, shift_factor=0.5)
    vae = SimpleNamespace(config=config, dtype=torch.float64, decode=lambda latents, return_dict: [latents])
    processor = SimpleNamespace(postprocess=lambda decoded, output_type: decoded)
    pipeline = SimpleNamespace(vae=vae, image_processor=processor)
    assert decode_shifted(pipeline, torch.tensor([3.0])).tolist() == [2.0]


@pytest.fixture
def no_download(monkeypatch):
    """Whatever would download weights fails."""

    def fetch(*args: object, **options: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", fetch)


@pytest.mark.parametrize("found", ["KandinskyPipeline", "Flux2Pipeline", "QwenImageEditPlusPipeline", ""])
def test_a_model_that_cannot_inpaint_is_refused_before_its_weights_are_fetched(
    found, no_download, monkeypatch, tmp_path
):
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": found, "vae": [None, None]}))
    asked = []
    monkeypatch.setattr(loading, "hf_hub_download", lambda *names: asked.append(names) or str(index))
    said = rf"{found or 'model without a class'}, which this package can't inpaint with: .*FLUX.1 Fill"
    for model in ("somebody/model", tmp_path):
        with pytest.raises(ModelError, match=said):
            load_inpainter(model)
    assert asked == [("somebody/model", "model_index.json")]


def test_a_hub_id_is_loaded_by_its_familys_class(monkeypatch, model_of):
    folder, load = model_of("FLUX.1"), diffusers.FluxInpaintPipeline.from_pretrained
    monkeypatch.setattr(loading, "hf_hub_download", lambda model, name: str(folder / name))
    monkeypatch.setattr(
        diffusers.FluxInpaintPipeline, "from_pretrained", lambda model, **options: load(folder, **options)
    )
    assert load_inpainter("black-forest-labs/FLUX.1-dev").family is BY_LABEL["FLUX.1"]


ANSWER = SimpleNamespace(headers={}, request=None)  # of the hub, as its errors keep it


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.GatedRepoError("403", response=ANSWER), r"accept its licence at https://huggingface\.co/o/m"),
        (errors.RepositoryNotFoundError("404", response=ANSWER), "not on the hub, or private"),
        (errors.LocalEntryNotFoundError("offline"), "no connection to the hub and no cached copy"),
        (errors.RemoteEntryNotFoundError("404", response=ANSWER), "has no model_index.json on the hub"),
        (errors.HfHubHTTPError("503 busy", response=ANSWER), "can't be downloaded from the hub: 503 busy"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_hub_answers_is_told_with_what_to_do(error, said, no_download, monkeypatch):
    def fetch(*names: str) -> None:
        raise error

    monkeypatch.setattr(loading, "hf_hub_download", fetch)
    with pytest.raises(ModelError, match=f"^o/m .*{said}"):
        load_inpainter("o/m")


def test_a_part_of_another_model_is_named(copy_of, model_of):
    folder = copy_of("FLUX.1")
    shutil.rmtree(folder / "transformer")
    shutil.copytree(model_of("Z-Image") / "transformer", folder / "transformer")
    said = "the part transformer is a ZImageTransformer2DModel, expected a FluxTransformer2DModel"
    with pytest.raises(ModelError, match=said):
        load_inpainter(folder)


def test_weights_of_another_family_never_leave_random_ones(copy_of, model_of):
    folder = copy_of("FLUX.1")
    shutil.copy(model_of("Z-Image") / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(
        ModelError, match=r"missing or belong to another model: \d+ problem(.|\n)*transformer lacks"
    ):
        load_inpainter(folder)


def test_a_fill_model_with_another_models_network_is_told(copy_of, model_of):
    folder = copy_of("FLUX.1 Fill")
    shutil.rmtree(folder / "transformer")
    shutil.copytree(model_of("FLUX.1") / "transformer", folder / "transformer")
    with pytest.raises(ModelError, match=r"takes 64 channels, expected 384 \(FLUX.1 Fill\)"):
        load_inpainter(folder)


def test_one_file_of_another_familys_weights_is_refused(no_download, tmp_path):
    path = tmp_path / "flux.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"not a complete model of Stable Diffusion 1\.5 .*folder"):
        load_inpainter(path)
    path.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="not readable"):
        load_inpainter(path)


def test_fine_tuning_and_text_to_image_refuse_a_family_that_they_do_not_know(model_of, no_download):
    with pytest.raises(ModelError, match=r"FLUX.1 model, which can't be used for .* Diffusion 1.5 or 2"):
        load_text2image(model_of("FLUX.1"))


def test_stable_diffusions_recipe_is_told_as_before(tmp_path):
    inpainter = load_inpainter(save_model(tmp_path))
    assert inpainter.family is families.STABLE_DIFFUSION and inpainter.longest_text is None
    assert (inpainter.side_step, inpainter.notices) == (inpainter.cell, [])
