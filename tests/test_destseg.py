"""DeSTSeg: its networks' shapes, its losses solved by hand, and a training that learns and resumes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import ManifestError, make_manifest
from defaug_utils.data.samples import Samples, load_masked_samples
from defaug_utils.evaluation.destseg import (
    FOCUS,
    HEAD_RECIPE,
    STUDENT,
    DeSTSeg,
    StudentTeacher,
    cosine_loss,
    find_clean,
    multiply_features,
    plan_student,
    segmentation_loss,
    shrink_masks,
    train_destseg,
    train_student,
)
from defaug_utils.evaluation.detector import (
    DetectorPlan,
    build_detector,
    measure_score_maps,
    write_score_maps,
)
from defaug_utils.evaluation.recipes import Start
from defaug_utils.training.backbones import build_classifier, hash_weights

BACKBONE = "resnet10_quarter"
WEIGHTS = "models/backbones/resnet10_quarter.safetensors"
SIZE = (48, 64)
QUICK = replace(HEAD_RECIPE, batch_size=6, epochs=2)


def write_parts(folder, generated: int = 6) -> pd.DataFrame:
    """Noisy parts; real positives and generated ones, with their sources, have a bright block."""
    rng, rows = np.random.default_rng(0), []
    names = [("train", "good", 8), ("train", "real", 2), ("test", "good", 3), ("test", "real", 4)]
    for split, kind, count in [*names, ("train", "adabldm", generated)]:
        for index in range(count):
            row = {"image": f"data/{split}-{kind}-{index}.png", "split": split, "label": "negative"}
            row |= {"origin": "real"}
            image_u8 = rng.integers(90, 130, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            if kind != "good":
                mask = np.zeros(SIZE[::-1], bool)
                top, left = rng.integers(4, 44), rng.integers(4, 28)
                mask[top : top + 14, left : left + 14] = True
                image_u8[mask] = 230
                row |= {"label": "positive", "mask": f"data/{split}-{kind}-{index}-mask.png"}
                write_png(folder / row["mask"], mask)
            if kind == "adabldm":
                row |= {"origin": kind, "recipe": "r", "source_image": f"train-good-{index % 8}.png"}
            write_png(folder / row["image"], image_u8)
            rows.append(row)
    return make_manifest(rows)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return folder, write_parts(folder)


@pytest.fixture(scope="module")
def masked(parts) -> Samples:
    return load_masked_samples(parts[1], parts[0])


@pytest.mark.parametrize(
    ("backbone", "device"), [(BACKBONE, "cpu"), ("resnet18", "meta"), ("resnet50", "meta")]
)
def test_the_student_has_the_teachers_shapes_and_the_head_a_logit_a_pixel(backbone: str, device: str):
    with torch.inference_mode(), torch.device(device):
        model = build_detector(backbone, kind="destseg")
        images = torch.randn(2, 3, 70, 96)
        taught, learned = model.pair.teach(images), model.pair(images)
        assert [one.shape for one in taught] == [one.shape for one in learned]
        assert [tuple(one.shape[2:]) for one in taught] == [(18, 24), (9, 12), (5, 6)]
        assert model.segment(images).shape == (2, 18, 24)
        assert model(images).shape == (2, 70, 96)


def test_the_losses_are_those_solved_by_hand():
    one = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    other = torch.tensor([4.0, 3.0]).view(1, 2, 1, 1)
    (product,) = multiply_features([one], [other])
    assert product.flatten().tolist() == pytest.approx([12 / 25, 12 / 25])
    assert cosine_loss([one, one], [other, 5 * one]).item() == pytest.approx(1 - 24 / 25, abs=1e-6)
    logits, masks = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    by_hand = 0.5**FOCUS * np.log(2) + 0.5
    assert segmentation_loss(logits, masks).item() == pytest.approx(by_hand)
    sure = (2 * masks - 1) * 40
    assert segmentation_loss(sure, masks).item() == pytest.approx(0, abs=1e-6)


def test_a_hairline_is_not_lost_at_a_quarter_of_the_size():
    masks = torch.zeros(1, 16, 24)
    masks[0, 5, :] = 1
    assert shrink_masks(masks, (4, 6)).tolist() == [[[0] * 6, [1] * 6, [0] * 6, [0] * 6]]


def test_an_images_score_is_the_mean_of_its_highest_pixels():
    logits = torch.full((2, 20, 20), -50.0)
    logits[0, 0, :50] = logits[0, 1, :] = logits[1, :5] = 50
    assert DeSTSeg.score_images(logits).tolist() == pytest.approx([0.4, 1.0])
    assert DeSTSeg.score_images(torch.zeros(1, 2, 2)).tolist() == [0.5], "fewer pixels than T"


def test_the_clean_image_of_a_generated_one_is_its_source(masked: Samples):
    clean = find_clean(masked)
    for place, row in masked.table.iterrows():
        if row["split"] == "test" or (row["label"], row["origin"]) == ("positive", "real"):
            assert clean[place] == -1
        elif row["label"] == "negative":
            assert clean[place] == place
        else:
            assert masked.table["image"][clean[place]] == f"data/{row['source_image']}"


def test_generated_images_without_a_good_one_behind_them_are_listed(masked: Samples, tmp_path):
    table = masked.table.copy()
    generated = table.index[table["origin"] == "adabldm"]
    table.loc[generated[0], "source_image"] = ""
    table.loc[generated[1], "source_image"] = "test-good-0.png"
    with pytest.raises(ManifestError, match=r"(?s)2 problem.*-0.png: its source \(not given\).*test-good-0"):
        train_destseg(masked._replace(table=table), tmp_path, QUICK, BACKBONE)
    assert not list(tmp_path.iterdir())


def test_the_teacher_and_in_the_second_stage_the_student_stay_as_they_are(masked: Samples, tmp_path):
    before = hash_weights(build_classifier(BACKBONE, WEIGHTS).resnet)
    trained = train_destseg(masked, tmp_path, QUICK, BACKBONE, weights=WEIGHTS)
    pair = trained.model.pair
    assert hash_weights(pair.teacher) == before
    start = Start(BACKBONE, WEIGHTS, 0, "destseg-student")
    student = train_student(masked, tmp_path / "alone", plan_student(QUICK, masked.table), start)
    assert hash_weights(pair) == hash_weights(student.model)


def test_what_a_finished_training_keeps_is_enough_to_read_it(masked: Samples, tmp_path):
    trained = train_destseg(masked, tmp_path, QUICK, BACKBONE, seed=5)
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors"))
    assert kept == ["checkpoint.safetensors"], "it contains the student"
    assert all(key.startswith("model.") for key in load_file(tmp_path / kept[0]))
    assert len(pd.read_csv(tmp_path / STUDENT / "history.csv")) == plan_student(QUICK, masked.table).epochs
    steps = []
    again = train_destseg(masked, tmp_path, QUICK, BACKBONE, seed=5, on_step=steps.append)
    assert steps == [] and again.resumed_epochs == QUICK.epochs
    assert hash_weights(again.model) == hash_weights(trained.model)
    with pytest.raises(ValueError, match=r"other settings: seed \(5, requested 6\)"):
        train_destseg(masked, tmp_path, QUICK, BACKBONE, seed=6)


def test_the_student_learns_the_good_image(masked: Samples, tmp_path):
    start = Start(BACKBONE, WEIGHTS, 0, "destseg-student")
    recipe = replace(plan_student(QUICK, masked.table), epochs=12)
    trained = train_student(masked, tmp_path, recipe, start)
    losses = trained.history["loss"]
    assert losses.iloc[-1] < 0.5 * losses.iloc[0]


def test_without_generated_images_the_student_sees_good_ones_only(parts, masked: Samples, tmp_path):
    folder, manifest = parts
    real = load_masked_samples(manifest[manifest["origin"] == "real"], folder)
    assert not plan_student(QUICK, real.table).balanced and plan_student(QUICK, masked.table).balanced
    trained = train_destseg(real, tmp_path, QUICK, BACKBONE)
    assert np.isfinite(trained.history["loss"]).all()


def test_the_student_sees_a_quarter_of_the_heads_images(masked: Samples):
    recipe = replace(QUICK, epochs=30)  # 8 positives and as many negatives: 480 images
    student = plan_student(recipe, masked.table)  # 6 generated ones and as many negatives
    assert (student.epochs, student.batch_size) == (10, recipe.batch_size)


def test_it_finds_the_blocks(parts, masked: Samples, tmp_path):
    trained = train_destseg(masked, tmp_path, replace(QUICK, epochs=14), BACKBONE, weights=WEIGHTS)
    table = write_score_maps(trained.model, masked, tmp_path, QUICK.normalisation)
    numbers = measure_score_maps(tmp_path, parts[0])
    assert numbers["pixel_auroc"] > 0.9
    assert numbers["pixel_ap"] > 0.5  # guessing: the share of defect pixels, 0.036
    assert table["score"].between(0, 1).all()


def test_an_interrupted_training_goes_on_exactly_in_either_stage(masked: Samples, tmp_path):
    class Stop(Exception):
        pass

    recipe = replace(QUICK, epochs=4)
    whole = train_destseg(masked, tmp_path / "whole", recipe, BACKBONE, seed=3)
    other = train_destseg(masked, tmp_path / "other", replace(recipe, epochs=1), BACKBONE, seed=4)
    assert hash_weights(other.model) != hash_weights(whole.model)
    for saves in (1, plan_student(recipe, masked.table).epochs + 2):
        saved = []

        def stop(done, saved=saved, saves=saves):
            saved += [done.step] * done.is_saved
            if len(saved) == saves:
                raise Stop

        folder = tmp_path / f"stopped-{saves}"
        with pytest.raises(Stop):
            train_destseg(masked, folder, recipe, BACKBONE, seed=3, on_step=stop)
        resumed = train_destseg(masked, folder, recipe, BACKBONE, seed=3)
        assert hash_weights(resumed.model) == hash_weights(whole.model)
        assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()


def test_an_unknown_detector_is_refused():
    with pytest.raises(ValueError, match="detector 'segnet' is not one of unet, destseg"):
        DetectorPlan(BACKBONE, kind="segnet")
    with pytest.raises(ValueError, match="detector 'segnet' is not one of unet, destseg"):
        build_detector(BACKBONE, kind="segnet")


def test_a_plan_has_the_recipe_of_its_detector(masked: Samples):
    plan = DetectorPlan(BACKBONE, training_images=160, kind="destseg")
    assert plan.fit_recipe(masked.table) == replace(HEAD_RECIPE, epochs=10)
    assert plan.label == "DeSTSeg on resnet10_quarter"


def test_its_pair_never_trains_batch_norm_of_the_teacher():
    pair = StudentTeacher(build_classifier(BACKBONE).resnet).train()
    assert pair.encoder.training and not any(part.training for part in pair.teacher.modules())
    model = DeSTSeg(pair).train()
    assert model.head.training and not any(part.training for part in model.pair.modules())
