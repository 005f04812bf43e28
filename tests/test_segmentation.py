"""The detector of defect pixels: its input, a training that repeats and resumes, score maps and tables."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from defaug_utils.core.files import write_csv, write_json, write_png
from defaug_utils.core.images import fit_mask, read_mask
from defaug_utils.core.manifest import ManifestError, make_manifest, write_manifest
from defaug_utils.core.origins import MixingError, Run, parse_run_name
from defaug_utils.data.datasets import choose_positives
from defaug_utils.data.samples import hash_samples, load_masked_samples
from defaug_utils.evaluation.detector import (
    DEFECT_PRIOR,
    DETECTOR_RECIPE,
    DETECTORS,
    MAP_LIST,
    METRICS_FILE,
    DetectorPlan,
    build_detector,
    compose_detector_set,
    detection_loss,
    finish_detector,
    logits_to_levels,
    measure_score_maps,
    read_score_map,
    read_score_maps,
    train_detector,
    write_score_maps,
)
from defaug_utils.evaluation.recipes import Recipe, fit_epochs, plan_epochs
from defaug_utils.protocol.mixing import Mix
from defaug_utils.report.pictures import choose_shown, show_score_maps
from defaug_utils.report.results import (
    PIXEL_NUMBERS,
    paired_differences,
    read_pixel_runs,
    summarise_results,
)
from defaug_utils.report.tables import layout_results

BACKBONE = "resnet10_quarter"
QUICK = Recipe("adam", 5e-3, batch_size=4, epochs=3, balanced=True, flips=True, decay=True)
SIZE = (40, 56)  # width and height: no multiple of 32


def write_parts(folder, train=(6, 6), test=(2, 3)) -> pd.DataFrame:
    """Noisy grey parts; positives have a bright block at a random place."""
    rng, rows = np.random.default_rng(0), []
    for split, (negatives, positives) in (("train", train), ("test", test)):
        for index in range(negatives + positives):
            row = {"image": f"{split}-{index}.png", "split": split, "label": "negative", "origin": "real"}
            image_u8 = rng.integers(90, 130, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            if index >= negatives:
                mask = np.zeros(SIZE[::-1], bool)
                top, left = rng.integers(0, 40), rng.integers(0, 28)
                mask[top : top + 14, left : left + 10] = True
                image_u8[mask] = 230
                row |= {"label": "positive", "mask": f"{split}-{index}-mask.png", "defect_type": "block"}
                write_png(folder / row["mask"], mask)
            write_png(folder / row["image"], image_u8)
            rows.append(row)
    return make_manifest(rows)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder of parts and its manifest."""
    folder = tmp_path_factory.mktemp("parts")
    return folder, write_parts(folder)


@pytest.fixture(scope="module")
def masked(parts):
    folder, manifest = parts
    return load_masked_samples(manifest, folder)


@pytest.fixture(scope="module")
def trained(masked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = train_detector(masked, folder, replace(QUICK, epochs=8), BACKBONE)
    write_score_maps(run.model, masked, folder, QUICK.normalisation)
    return folder, run


def test_masks_stand_beside_their_images(parts, masked):
    folder, manifest = parts
    assert masked.masks.shape == masked.images_u8.shape[:3] == (17, *SIZE[::-1])
    for index, row in manifest.iterrows():
        expected = read_mask(folder / row["mask"]) if row["mask"] else np.zeros(SIZE[::-1], bool)
        np.testing.assert_array_equal(masked.masks[index], expected)


def test_another_input_size_loses_no_defect(parts):
    folder, manifest = parts
    small = load_masked_samples(manifest, folder, (10, 14))
    mask = read_mask(folder / manifest["mask"].iloc[8])
    np.testing.assert_array_equal(small.masks[8], fit_mask(mask, (10, 14)))


def test_positives_without_mask_are_listed(parts):
    folder, manifest = parts
    broken = manifest.copy()
    broken.loc[[7, 15], "mask"] = ""
    with pytest.raises(
        ManifestError, match=r"2 problem.*\n.*train-7.png: .*real, train.*\n.*test-3.png"
    ) as told:
        load_masked_samples(broken, folder)
    assert "leave these positives out, or use a pool with masks" in str(told.value)


def test_empty_and_missing_masks_are_listed(tmp_path):
    manifest = write_parts(tmp_path)
    write_png(tmp_path / "train-6-mask.png", np.zeros(SIZE[::-1], bool))
    (tmp_path / "test-4-mask.png").unlink()
    with pytest.raises(
        ManifestError, match=r"(?s)2 problem.*train-6-mask.png: the mask is empty.*test-4-mask"
    ):
        load_masked_samples(manifest, tmp_path)


def test_both_classes_are_needed_but_no_validation(parts):
    folder, manifest = parts
    with pytest.raises(ManifestError, match="split train has no positive"):
        load_masked_samples(manifest[manifest["mask"].eq("") | (manifest["split"] == "test")], folder)


def test_the_hash_sees_masks(masked):
    changed = masked._replace(masks=masked.masks.clone())
    changed.masks[7, 0, 0] ^= True
    assert hash_samples(changed, "train") != hash_samples(masked, "train")
    assert hash_samples(changed, "test") == hash_samples(masked, "test")


@pytest.mark.parametrize(
    ("backbone", "size", "device"), [(BACKBONE, (33, 47), "cpu"), ("resnet50", (32, 64), "meta")]
)
def test_one_logit_a_pixel_whatever_the_size(backbone, size, device):
    with torch.inference_mode(), torch.device(device):  # on "meta" shapes are computed, and no values
        model = build_detector(backbone)
        logits = model(torch.randn(2, 3, size[1], size[0]))
    assert logits.shape == (2, size[1], size[0])
    if device == "cpu":
        assert torch.sigmoid(model.head.bias).item() == pytest.approx(DEFECT_PRIOR)


def test_loss_solved_by_hand():
    logits, masks = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    # all pixels at 1/2: cross-entropy ln 2; overlap (2 · 0.5 + 1) / (2 + 1 + 1)
    assert detection_loss(logits, masks).item() == pytest.approx(np.log(2) + 1 - 0.5)
    sure = (masks * 2 - 1) * 50
    assert detection_loss(sure, masks).item() == pytest.approx(0, abs=1e-6)
    assert detection_loss(-sure, masks) > detection_loss(logits, masks)


def test_training_finds_the_blocks(trained, parts):
    folder, run = trained
    assert run.history["loss"].iloc[-1] < 0.7 * run.history["loss"].iloc[0]
    numbers = measure_score_maps(folder, parts[0])
    assert numbers["pixel_auroc"] > 0.95
    assert numbers["pixel_ap"] > 0.7
    assert numbers["instances"] == 3
    assert json.loads((folder / METRICS_FILE).read_text()) == numbers


def test_an_interrupted_training_goes_on_exactly(masked, tmp_path):
    class Stop(Exception):
        pass

    def stop(done):
        if done.numbers["epoch"] == 2 and done.is_saved:
            raise Stop

    whole = train_detector(masked, tmp_path / "whole", QUICK, BACKBONE, seed=3)
    with pytest.raises(Stop):
        train_detector(masked, tmp_path / "parts", QUICK, BACKBONE, seed=3, on_step=stop)
    resumed = train_detector(masked, tmp_path / "parts", QUICK, BACKBONE, seed=3)
    assert (whole.resumed_epochs, resumed.resumed_epochs) == (0, 2)
    assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()
    for one, other in zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_recipe_that_turns_images_without_their_masks_is_refused(masked, tmp_path):
    with pytest.raises(ValueError, match="augment rotates images without their masks"):
        train_detector(masked, tmp_path, replace(QUICK, augment=True), BACKBONE)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_training_keeps_its_score_maps(masked, tmp_path):
    quick = replace(QUICK, epochs=1)
    run = train_detector(masked, tmp_path, quick, BACKBONE)
    write_score_maps(run.model, masked, tmp_path, QUICK.normalisation)
    assert train_detector(masked, tmp_path, quick, BACKBONE).resumed_epochs == 1
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"other settings: seed \(0, requested 1\)"):
        train_detector(masked, tmp_path, quick, BACKBONE, seed=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture
def run_folder(parts, tmp_path):
    """A run with few-shot AdaBLDM pools of two seeds; what one's ControlNet saw is hidden from the other."""
    folder, manifest = parts
    shutil.copytree(folder, tmp_path / "data")
    write_manifest(manifest, tmp_path / "data" / "manifest.csv")
    known = choose_positives(manifest, "few-shot", 0, 2)["image"].tolist()
    recipe = {"learned_from": known}
    for seed in (0, 1):
        pool = tmp_path / "adabldm" / f"few-shot-seed{seed}"
        rows = []
        for index, row in enumerate(manifest[manifest["split"] == "train"].iloc[-3:].to_dict("records")):
            mask = f"{index}-mask.png"
            for name in ("image", "mask"):
                target = pool / {"image": f"{index}.png", "mask": mask}[name]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / row[name], target)
            rows.append(row | {"image": f"{index}.png", "mask": mask, "origin": "adabldm", "recipe": "r"})
        write_manifest(make_manifest(rows), pool / "manifest.csv")
        write_json(pool / "recipe.json", {"r": recipe})
    return tmp_path


def test_a_generator_that_saw_hidden_positives_is_refused_for_detectors_too(run_folder):
    rows = compose_detector_set(run_folder, Run("few-shot", "adabldm", 2, 0), Mix(2))
    assert set(rows["split"]) == {"train", "test"} and (rows["origin"] == "adabldm").sum() == 2
    with pytest.raises(MixingError, match="learned from images that it must not know"):
        compose_detector_set(run_folder, Run("few-shot", "adabldm", 2, 1), Mix(2))


def test_a_finished_detector_is_taken_as_it_is(run_folder):
    name, plan = "few-shot-adabldm-2-seed0", DetectorPlan(BACKBONE, training_images=16, batch_size=4)
    rows = compose_detector_set(run_folder, parse_run_name(name), Mix(2))
    assert plan.fit_recipe(rows) == replace(DETECTOR_RECIPE, epochs=2, batch_size=4)
    steps, folder = [], run_folder / DETECTORS / name
    first = finish_detector(run_folder, name, rows, plan, on_step=steps.append)
    assert [(done.step, done.steps) for done in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    again = finish_detector(run_folder, name, rows, plan)
    assert (first.resumed_epochs, again.resumed_epochs, first.numbers["epochs"]) == (0, 2, 2)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    numbers = (folder / METRICS_FILE).read_bytes()
    (folder / METRICS_FILE).unlink()  # as Snakemake does with the targets of a job that it begins again
    finish_detector(run_folder, name, rows, plan)
    assert (folder / METRICS_FILE).read_bytes() == numbers


def test_score_maps_are_the_models_logits(trained, masked):
    folder, run = trained
    table = pd.read_csv(folder / MAP_LIST, keep_default_na=False)
    assert table["image"].tolist() == [f"test-{index}.png" for index in range(5)]
    whole = write_score_maps(run.model, masked, folder, QUICK.normalisation, batch_size=2)
    for row, again in zip(table.itertuples(), whole.itertuples(), strict=True):
        stored = read_score_map(folder / row.score_map)
        assert stored.shape == SIZE[::-1]
        assert stored.max() == pytest.approx(min(row.score, 16), abs=1e-3)
        assert again.score == pytest.approx(row.score, abs=1e-3)


def test_levels_keep_logits_and_cut_what_is_beyond():
    logits = np.array([[-40, -16, -0.3, 0], [1e-3, 7.77, 16, 99]], np.float32)
    levels = logits_to_levels(logits)
    assert levels.dtype == np.uint16
    assert levels[0, :2].tolist() == [0, 0] and levels[1, 2:].tolist() == [65535, 65535]
    np.testing.assert_allclose(levels / 65535 * 32 - 16, np.clip(logits, -16, 16), atol=32 / 65535)
    with pytest.raises(ValueError, match="1 of 2 scores"):
        logits_to_levels(np.array([0.0, np.inf]))


def test_missing_files_of_score_maps_are_listed(tmp_path):
    table = pd.DataFrame({"image": ["a.png"], "mask": ["m.png"], "score_map": ["score_maps/0.png"]})
    write_csv(table, tmp_path / MAP_LIST)
    with pytest.raises(ManifestError, match="2 problem"):
        measure_score_maps(tmp_path, tmp_path)


def test_tables_over_seeds(tmp_path):
    numbers = dict.fromkeys(("pixel_auroc", "pro", "pixel_ap", "iap", "iap90"), 0.5)
    for seed, value in ((0, 0.25), (1, 0.75)):
        write_json(tmp_path / f"few-shot-memseg-8-seed{seed}" / METRICS_FILE, numbers | {"pro": value})
    write_json(tmp_path / "few-shot-none-0-seed0" / METRICS_FILE, numbers)
    runs = read_pixel_runs(tmp_path)
    summary = summarise_results(runs, list(PIXEL_NUMBERS.values()))
    assert summary["arm"].tolist() == ["none", "memseg"]
    assert summary["n"].tolist() == [1, 2]
    assert summary["pro"].tolist() == [0.5, 0.5]
    assert summary["pro_std"].iloc[1] == pytest.approx(np.std([0.25, 0.75], ddof=1))
    table = layout_results(summary, PIXEL_NUMBERS)
    assert table["PRO"].tolist() == ["0.500", "0.50 ± 0.35"]
    (gain,) = paired_differences(runs, "none", "pro").to_dict("records")
    assert (gain["arm"], gain["n"], gain["difference"]) == ("memseg", 1, -0.25)  # seed 1 has no pair


def test_only_the_asked_runs_are_read_with_their_leaks(tmp_path):
    for name in ("few-shot-memseg-8-seed0", "few-shot-diag-8-seed0", "nonsense"):
        write_json(tmp_path / name / METRICS_FILE, {"pro": 0.5})
    asked = {"few-shot-diag-8-seed0": "train_positives", "few-shot-cut_paste-8-seed0": ""}
    assert read_pixel_runs(tmp_path, asked)[["arm", "leak"]].to_numpy().tolist() == [
        ["diag", "train_positives"]
    ]


def test_wrong_runs_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match="contains no run"):
        read_pixel_runs(tmp_path)
    write_json(tmp_path / "nonsense" / METRICS_FILE, {})
    (tmp_path / "few-shot-none-0-seed0").mkdir()
    (tmp_path / "few-shot-none-0-seed0" / METRICS_FILE).write_text("{")
    with pytest.raises(ValueError, match="2 problem"):
        read_pixel_runs(tmp_path)


def test_stored_maps_are_found_by_the_images_names(trained, masked):
    folder, _ = trained
    listed = pd.read_csv(folder / MAP_LIST)
    chosen = listed.iloc[[3, 0]]
    maps = read_score_maps(folder, chosen["image"])
    assert [float(one.max()) for one in maps] == pytest.approx(chosen["score"].tolist(), abs=1e-3)
    with pytest.raises(KeyError, match="elsewhere"):
        read_score_maps(folder, ["elsewhere.png"])
    with pytest.raises(FileNotFoundError, match="write the score maps first"):
        read_score_maps(folder / "none", chosen["image"])


@pytest.mark.parametrize("balanced", [True, False])
def test_few_positives_get_more_epochs_so_that_as_many_images_are_shown(balanced):
    recipe = replace(QUICK, balanced=balanced)
    for positives in (5, 45):
        labels = np.array([1] * positives + [0] * 90)
        fitted = fit_epochs(recipe, labels, 1440)
        shown = sum(map(len, plan_epochs(labels, fitted, seed=1)))
        assert abs(shown - 1440) <= len(plan_epochs(labels, fitted, seed=1)[0]) / 2
        assert replace(fitted, epochs=recipe.epochs) == recipe
    assert fit_epochs(recipe, labels, 1).epochs == 1
    assert fit_epochs(recipe, labels, 0) == recipe
    with pytest.raises(ValueError, match="training_images -1"):
        fit_epochs(recipe, labels, -1)


def make_test_rows(types: str) -> pd.DataFrame:
    positives = [
        {"image": f"{n}.png", "label": "positive", "defect_type": word} for n, word in enumerate(types)
    ]
    negatives = [{"image": f"good{n}.png", "label": "negative", "defect_type": ""} for n in range(5)]
    return pd.DataFrame([*negatives, *positives])


def test_every_type_of_defect_is_shown_before_any_twice():
    rows = make_test_rows("aaaaaaaaab")
    for seed in range(5):
        shown = choose_shown(rows, 3, seed)
        assert shown["label"].tolist() == ["positive"] * 3 + ["negative"]
        assert sorted(shown["defect_type"].iloc[:2]) == ["a", "b"]
        assert shown["image"].tolist() == rows.loc[shown.index, "image"].tolist()
    assert len({tuple(choose_shown(rows, 3, seed).index) for seed in range(5)}) > 1
    assert len(choose_shown(rows, 99, 0)) == 11


def test_maps_stand_beside_their_picture_as_probabilities():
    image_u8, mask = np.full((30, 10, 3), 90, np.uint8), np.zeros((30, 10), bool)
    mask[20:22, 4:6] = True
    logits = np.where(mask, 30.0, -30.0)
    pictures, masks = [image_u8, image_u8], [mask, np.zeros_like(mask)]
    figure = show_score_maps(pictures, masks, {"one": [logits, logits], "zero": [0 * logits] * 2})
    assert [axes.get_title() for axes in figure.axes] == ["picture", "one", "zero", "", "", ""]
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert {tile.shape[:2] for tile in shown} == {(10, 10)}
    np.testing.assert_array_equal(shown[1], 255 * mask[16:26])
    assert (shown[2] == 128).all()
    assert [len(axes.collections) for axes in figure.axes] == [1, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="2 images, but 1 of one"):
        show_score_maps(pictures, masks, {"one": [logits]})
    with pytest.raises(ValueError, match=r"image 1: .*differ in size"):
        show_score_maps(pictures, masks, {"one": [logits, logits[:5]]})
