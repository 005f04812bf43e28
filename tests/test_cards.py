"""Image folders and adapters with their cards, read back as others read them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drawing import Drawing
from huggingface_hub import DatasetCard, ModelCard
from layouts import write_ksdd2
from safetensors.torch import save_file

from defaug_utils.core.cards import HUB_LICENCES, name_licence
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.licences import NOT_STATED
from defaug_utils.core.manifest import make_manifest, read_manifest
from defaug_utils.core.pools import GeneratedImage, PoolPlan, make_pool, read_recipe
from defaug_utils.data.datasets import draw_validation, load_dataset
from defaug_utils.data.export import ExportError, export_training_set
from defaug_utils.data.preparation import prepare_dataset
from defaug_utils.diffusion.adapter_card import WEIGHTS, export_adapter
from defaug_utils.diffusion.lora import LoraError, LoraPlan, attach_lora
from defaug_utils.diffusion.lora_files import load_lora, save_lora
from defaug_utils.protocol.run_folder import read_data, read_rebased

SIZE = (8, 24)
NC = "CC BY-NC-SA 4.0"
HOSTILE = "---\nlicense: mit\n---\n<script>alert(1)</script> | **$x$** `\"' :{}"
TRAINING = {
    "base": "abc123",
    "dreambooth": {
        **{"instance_prompt": "skt <b>background</b>", "class_prompt": "background"},
        **{"epochs": 49, "repeats": 10, "learning_rate": 1e-05},
    },
    "lora": {"linear_rank": 32, "conv_rank": 4},
    "trained_on": {"instances": ["images/1.png", "images/2.png"], "class_images": 8},
}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC BY-NC-SA 4.0", {"license": "cc-by-nc-sa-4.0"}),
        ("MIT", {"license": "mit"}),
        ("cc-by-4.0", {"license": "cc-by-4.0"}),
        (NOT_STATED, {"license": "unknown"}),
        ("Ours: not to be given on!", {"license": "other", "license_name": "ours-not-to-be-given-on"}),
        ("許可なし", {"license": "other", "license_name": "other"}),
    ],
)
def test_a_licence_in_the_hubs_words(licence, expected):
    assert name_licence(licence) == expected


def test_the_hubs_words_stay_as_they_are():
    assert all(name_licence(word) == {"license": word} for word in HUB_LICENCES)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with its data set and two pools: one with masks, the other without."""
    write_ksdd2(tmp_path / "set")
    dataset = draw_validation(load_dataset(tmp_path / "set"), 0.3, 0)
    run = tmp_path / "run"
    prepare_dataset(dataset, tmp_path / "set", run / "data", SIZE, licence=NC)
    for origin, has_masks in (("diag", True), ("ddpm", False)):

        def draw(indices, seeds, has_masks=has_masks):
            generators = map(np.random.default_rng, seeds)
            images = [generator.integers(0, 255, (24, 8, 3), dtype=np.uint8) for generator in generators]
            mask = np.zeros((24, 8), bool)
            mask[3:7, 2:5] = True
            rows = [{"prompt": HOSTILE, "check_passed": index % 2 == 0} for index in indices]
            return [
                GeneratedImage(i, mask if has_masks else None, r) for i, r in zip(images, rows, strict=True)
            ]

        recipe = {"model": {"pipeline": "Pipe", "fingerprint": f"print of {origin}"}}
        make_pool(run / origin, Drawing(draw, origin, recipe, data=run / "data"), PoolPlan(4, 7))
    return run


@pytest.fixture
def training_set(run) -> pd.DataFrame:
    pools = [read_rebased(run / origin, run) for origin in ("diag", "ddpm")]
    rows = pd.concat([read_data(run), *pools], ignore_index=True)
    rows["accepted"] = rows["accepted"].mask(rows["image"] == "diag/images/000000.png", True)
    rows["accepted"] = rows["accepted"].mask(rows["image"] == "diag/images/000001.png", False)
    return rows


def read_split(folder: Path) -> list[dict]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_an_image_folder_has_every_image_with_its_mask_and_what_is_known_of_it(run, training_set, tmp_path):
    done = export_training_set(training_set, run, tmp_path / "out", "imagefolder", skip_unmasked=True)
    assert (done.images, done.left_out) == (len(training_set), 0), "positives without a mask stay"
    by_name = training_set.set_index("image")
    seen = []
    for split, folder in (("train", "train"), ("val", "validation"), ("test", "test")):
        for line in read_split(tmp_path / "out" / folder):
            row = by_name.loc[line["exported_from"]]
            seen.append(line["exported_from"])
            assert row["split"] == split
            image_u8 = read_image(tmp_path / "out" / folder / line["file_name"])
            np.testing.assert_array_equal(image_u8, read_image(run / line["exported_from"]))
            if row["label"] == "positive" and not row["mask"]:
                assert line["mask_file_name"] is None
            else:
                mask = read_mask(tmp_path / "out" / folder / line["mask_file_name"])
                wanted = read_mask(run / row["mask"]) if row["mask"] else np.zeros((24, 8), bool)
                np.testing.assert_array_equal(mask, wanted)
            assert (line["label"], line["origin"], line["prompt"]) == tuple(
                row[["label", "origin", "prompt"]]
            )
            assert line["seed"] == ("" if pd.isna(row["seed"]) else str(row["seed"]))
    assert sorted(seen) == sorted(training_set["image"])


def test_all_values_of_the_metadata_are_text_and_all_splits_have_the_same_columns(
    run, training_set, tmp_path
):
    export_training_set(training_set, run, tmp_path / "out", "imagefolder")
    lines = [line for path in (tmp_path / "out").glob("*/metadata.jsonl") for line in read_split(path.parent)]
    assert len({tuple(line) for line in lines}) == 1
    for line in lines:
        assert all(isinstance(v, str) for k, v in line.items() if k != "mask_file_name")
    accepted = {line["exported_from"]: line["accepted"] for line in lines}
    assert accepted["diag/images/000000.png"] == "true" and accepted["diag/images/000001.png"] == "false"
    assert accepted["diag/images/000002.png"] == ""


def test_no_image_or_mask_is_there_that_the_metadata_do_not_name(run, training_set, tmp_path):
    export_training_set(training_set, run, tmp_path / "out", "imagefolder")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    named = set()
    for path in (tmp_path / "out").glob("*/metadata.jsonl"):
        for line in read_split(path.parent):
            named |= {f"{path.parent.name}/{line[k]}" for k in ("file_name", "mask_file_name") if line[k]}
    assert found == named


def test_a_pool_alone_is_exported_with_its_recipe_and_licence(run, tmp_path):
    pool = read_manifest(run / "ddpm" / "manifest.csv")
    done = export_training_set(pool, run / "ddpm", tmp_path / "out", "imagefolder")
    assert (done.images, done.positives, done.instances) == (4, 4, 0)
    lines = read_split(tmp_path / "out" / "train")
    assert not any("mask_file_name" in line for line in lines), "none has a mask: no column"
    recipes = json.loads((tmp_path / "out" / "recipes.json").read_text())
    assert recipes == {pool["recipe"][0]: read_recipe(run / "ddpm")}
    assert recipes[lines[0]["recipe"]]["data_licence"] == NC
    assert DatasetCard.load(tmp_path / "out" / "README.md").data.license == "cc-by-nc-sa-4.0"


def test_the_data_sets_card_is_read_back_and_shows_text_as_text(run, training_set, tmp_path):
    export_training_set(training_set, run, tmp_path / "out", "imagefolder")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0" and card.data.size_categories == "n<1K"
    assert card.data.pretty_name == "run" and "synthetic" in card.data.tags
    assert "<script>" not in card.text and "**$x$**" not in card.text
    assert "| train | positive | diag | 4 |" in card.text and "| validation | negative | real | " in card.text
    assert f"{len(training_set)} images" in card.text
    assert "4 by DIAG;" in card.text and "fingerprint `print of diag`" in card.text
    assert "1 accepted and 1 rejected by a person; 2 failed their checks; 0 without a mask" in card.text
    assert "4 without a mask" in card.text
    for heading in ("## How the generated images were made", "## Limits"):
        assert heading in card.text


def test_real_images_alone_are_not_called_synthetic(run, tmp_path):
    export_training_set(read_data(run), run, tmp_path / "out", "imagefolder")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert "synthetic" not in card.data.tags and "all images are real" in card.text
    assert json.loads((tmp_path / "out" / "recipes.json").read_text()) == {}


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("", {"license": "unknown"}),
        ("<i>ours</i>: don't copy", {"license": "other", "license_name": "i-ours-i-don-t-copy"}),
    ],
)
def test_the_card_tells_other_licences(run, tmp_path, licence, words):
    (run / "data" / "licence.txt").write_text(licence)
    export_training_set(read_data(run), run, tmp_path / "out", "imagefolder")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert words.items() <= card.data.to_dict().items()
    assert "<i>" not in card.text


@pytest.mark.parametrize("export_format", ["mvtec", "coco", "yolo", "imagefolder"])
def test_every_export_tells_the_licence(run, tmp_path, export_format):
    export_training_set(read_data(run), run, tmp_path / "out", export_format)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["data_licence"] == NC
    for path in (tmp_path / "out").glob("annotations/*.json"):
        content = json.loads(path.read_text())
        assert content["licenses"] == [{"id": 1, "name": NC, "url": ""}]
        assert all(image["license"] == 1 for image in content["images"])


def test_an_export_whose_licence_or_recipe_is_damaged_is_not_begun_or_not_left(run, training_set, tmp_path):
    (run / "diag" / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match=r"diag.recipe\.json can't be read"):
        export_training_set(training_set, run, tmp_path / "out", "imagefolder")
    (run / "data" / "licence.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"licence\.txt is not a licence"):
        export_training_set(training_set, run, tmp_path / "out", "coco")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "set"]


def test_a_pool_without_its_recipe_is_exported_without_one(run, tmp_path):
    (run / "diag" / "recipe.json").unlink()
    pool = read_manifest(run / "diag" / "manifest.csv")
    export_training_set(pool, run / "diag", tmp_path / "out", "imagefolder")
    assert json.loads((tmp_path / "out" / "recipes.json").read_text()) == {}
    assert DatasetCard.load(tmp_path / "out" / "README.md").data.license == "unknown"


def test_an_empty_training_set_makes_no_image_folder(run, tmp_path):
    with pytest.raises(ExportError, match="no image is left"):
        export_training_set(make_manifest([]), run, tmp_path / "out", "imagefolder")


@pytest.fixture
def adapter(tmp_path) -> Path:
    """An adapter as `train_dreambooth` writes it."""
    from tests.tiny_models import make_parts

    parts = make_parts(4)
    attach_lora(parts["unet"], parts["text_encoder"], LoraPlan(2, 2, 2, 1))
    path = tmp_path / "lora.safetensors"
    save_lora(path, parts["unet"], parts["text_encoder"], {"training": json.dumps(TRAINING)})
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "licence.txt").write_text(NC)
    return folder


def test_an_adapter_with_its_card(adapter, data, tmp_path):
    folder = export_adapter(adapter, tmp_path / "hub", data, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", WEIGHTS]
    assert (folder / WEIGHTS).read_bytes() == adapter.read_bytes()
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")
    assert card.data.license == "other"
    for word in ("CC BY-NC-SA 4", "2 images", "fingerprint `abc123`", "49 epochs", "1e-05", "## Limits"):
        assert word in card.text, word
    assert "## Intended use" in card.text and "<b>" not in card.text


def test_the_copied_weights_are_loaded_again(adapter, data, tmp_path):
    from tests.tiny_models import make_parts

    parts = make_parts(4)
    folder = export_adapter(adapter, tmp_path / "hub", data)
    assert load_lora(folder / WEIGHTS, parts["unet"], parts["text_encoder"]).unet.linear > 0


def test_a_model_on_this_machine_is_told_by_its_last_part_and_is_none_of_the_hubs(adapter, data, tmp_path):
    (tmp_path / "secret" / "my_model").mkdir(parents=True)
    folder = export_adapter(adapter, tmp_path / "hub", data, str(tmp_path / "secret" / "my_model"))
    card = ModelCard.load(folder / "README.md")
    assert "base_model" not in card.data.to_dict()
    assert "secret" not in card.text and "my&#95;model" in card.text


def test_a_folder_with_a_hub_ids_form_is_a_folder(adapter, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/workshop").mkdir(parents=True)
    card = ModelCard.load(export_adapter(adapter, "hub", data, "models/workshop") / "README.md")
    assert "base_model" not in card.data.to_dict() and "models/workshop" not in card.text


def test_an_adapter_from_elsewhere_says_nothing_of_its_training(data, tmp_path):
    save_file({"unet.a.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    card = ModelCard.load(
        export_adapter(tmp_path / "other.safetensors", tmp_path / "hub", data) / "README.md"
    )
    assert "doesn't say how it was trained" in card.text and "It was not named." in card.text


@pytest.mark.parametrize(
    "training", ["{", "[1]", '"x"', "3", '{"base": 1}', json.dumps(TRAINING | {"lora": {}})]
)
def test_an_unreadable_training_is_told(data, tmp_path, training):
    save_file({"a.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors", {"training": training})
    with pytest.raises(LoraError, match="what it says of its training can't be read"):
        export_adapter(tmp_path / "a.safetensors", tmp_path / "hub", data)
    assert not (tmp_path / "hub").exists()


def test_what_is_no_adapter_is_refused(adapter, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        export_adapter(tmp_path / "missing.safetensors", tmp_path / "hub", data)
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(LoraError, match="contains no adapter"):
        export_adapter(tmp_path / "model.safetensors", tmp_path / "hub", data)
    (tmp_path / "torn.safetensors").write_bytes(adapter.read_bytes()[:100])
    with pytest.raises(LoraError, match="is not a complete safetensors file"):
        export_adapter(tmp_path / "torn.safetensors", tmp_path / "hub", data)
    shutil.copy(adapter, tmp_path / "lora.bin")
    with pytest.raises(LoraError, match="safetensors files are loaded"):
        export_adapter(tmp_path / "lora.bin", tmp_path / "hub", data)
    assert not (tmp_path / "hub").exists()


def test_a_folder_that_holds_something_is_left_alone(adapter, data, tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "thesis.txt").write_text("mine")
    with pytest.raises(LoraError, match="is not empty: choose another folder or empty it"):
        export_adapter(adapter, tmp_path / "hub", data)
    with pytest.raises(LoraError, match="is not empty"):
        export_adapter(adapter, tmp_path / "hub" / "thesis.txt", data)
    assert (tmp_path / "hub" / "thesis.txt").read_text() == "mine"
