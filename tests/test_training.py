"""Samples in memory, recipes, the plan of epochs, and a training that repeats and resumes bit for bit."""

import errno
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from defaug_utils.core.files import lock_file, write_png
from defaug_utils.core.manifest import ManifestError, make_manifest
from defaug_utils.data.samples import Samples, count_samples, hash_samples, load_samples, select_samples
from defaug_utils.evaluation import classifier, recipes
from defaug_utils.evaluation.classifier import (
    count_training,
    score_samples,
    stayed_at_chance,
    train_classifier,
)
from defaug_utils.evaluation.recipes import (
    RECIPES,
    Recipe,
    choose_recipe,
    flip_images,
    freeze_batch_norm,
    learning_rate_of,
    plan_batches,
    plan_epochs,
    split_batches,
    warmup_share,
)
from defaug_utils.training import loop
from defaug_utils.training.backbones import build_classifier, normalise_images, torchvision_key
from defaug_utils.training.loop import StepDone

BACKBONE = "resnet10_quarter"
QUICK = Recipe("sgd", 0.01, batch_size=4, epochs=3, balanced=True, momentum=0.9, flips=True, decay=True)
SPLIT_COUNTS = {"train": (9, 3), "val": (3, 0), "test": (4, 2)}  # negatives, positives


def make_rows() -> list[dict]:
    rows = []
    for split, (negatives, positives) in SPLIT_COUNTS.items():
        for index in range(negatives + positives):
            label = "positive" if index >= negatives else "negative"
            rows.append({"image": f"{split} {index}.png", "label": label, "split": split, "origin": "real"})
    return rows


def draw_image(index: int, label: str, size: tuple[int, int] = (24, 40)) -> np.ndarray:
    image_u8 = np.random.default_rng(index).integers(90, 130, (size[1], size[0], 3), dtype=np.uint8)
    if label == "positive":
        image_u8[10:25, 5:15] = 250
    return image_u8


@pytest.fixture
def manifest_folder(tmp_path):
    """A manifest's rows and the folder of their images."""
    rows = make_rows()
    for index, row in enumerate(rows):
        write_png(tmp_path / row["image"], draw_image(index, row["label"]))
    return make_manifest(rows), tmp_path


@pytest.fixture(scope="module")
def samples():
    rows = make_rows()
    images = [draw_image(index, row["label"]) for index, row in enumerate(rows)]
    labels = torch.tensor([float(row["label"] == "positive") for row in rows])
    return Samples(torch.from_numpy(np.stack(images)), labels, make_manifest(rows))


def test_every_image_is_in_memory_once(manifest_folder):
    manifest, folder = manifest_folder
    found = load_samples(manifest, folder)
    assert found.images_u8.shape == (21, 40, 24, 3)
    assert found.images_u8.dtype == torch.uint8
    for index, row in manifest.iterrows():
        np.testing.assert_array_equal(found.images_u8[index], draw_image(index, row["label"]))
        assert found.labels[index] == (row["label"] == "positive")
    assert found.indices("val").tolist() == [12, 13, 14]


def test_generated_images_take_the_size_of_the_real_ones(manifest_folder):
    _, folder = manifest_folder
    write_png(folder / "generated.png", np.full((80, 48, 3), 77, np.uint8))
    row = {"image": "generated.png", "label": "positive", "split": "train", "origin": "memseg"}
    found = load_samples(make_manifest([row, *make_rows()]), folder)
    assert found.images_u8.shape == (22, 40, 24, 3)
    assert (found.images_u8[0] == 77).all()


def test_input_size_is_width_and_height(manifest_folder):
    assert load_samples(*manifest_folder, (16, 32)).images_u8.shape == (21, 32, 16, 3)


def test_real_images_of_two_sizes_need_a_size(manifest_folder):
    manifest, folder = manifest_folder
    write_png(folder / "test 1.png", draw_image(0, "negative", (30, 50)))
    with pytest.raises(ManifestError, match=r"2 sizes, such as 24 × 40 .*, 30 × 50 \(test 1.png\)"):
        load_samples(manifest, folder)
    assert load_samples(manifest, folder, (24, 40)).images_u8.shape == (21, 40, 24, 3)


def test_every_unreadable_image_is_listed(manifest_folder):
    manifest, folder = manifest_folder
    (folder / "train 2.png").unlink()
    content = (folder / "val 1.png").read_bytes()
    (folder / "val 1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ManifestError, match="2 problem") as error:
        load_samples(manifest, folder)
    assert "train 2.png" in str(error.value)
    assert "val 1.png" in str(error.value)


@pytest.mark.parametrize(
    ("split", "label"),
    [("train", "positive"), ("train", "negative"), ("val", "negative"), ("test", "positive")],
)
def test_a_class_without_sample_is_refused(manifest_folder, split, label):
    manifest, folder = manifest_folder
    manifest.loc[manifest["image"] == "train 9.png", "split"] = "val"  # a positive
    kept = manifest[(manifest["split"] != split) | (manifest["label"] != label)]
    with pytest.raises(ManifestError, match=f"split {split} has no {label} image"):
        load_samples(kept, folder)


def test_selected_samples_are_those_that_would_have_been_decoded(manifest_folder):
    manifest, folder = manifest_folder
    fewer = manifest[manifest["image"] != "train 9.png"]
    selected = select_samples(load_samples(manifest, folder), fewer["image"])
    decoded = load_samples(fewer, folder)
    pd.testing.assert_frame_equal(selected.table, decoded.table)
    assert torch.equal(selected.images_u8, decoded.images_u8) and torch.equal(selected.labels, decoded.labels)
    assert hash_samples(selected, "train") == hash_samples(decoded, "train")
    held = load_samples(manifest, folder)._replace(masks=torch.arange(21)[:, None, None] % 2 == 0)
    assert select_samples(held, ["train 1.png", "test 1.png"]).masks.shape == (2, 1, 1)
    with pytest.raises(ManifestError, match=r"(?s)2 problem.*a\.png is not among them.*b\.png"):
        select_samples(held, ["train 1.png", "b.png", "a.png"])


def test_a_training_set_without_a_validation_part(manifest_folder):
    manifest, folder = manifest_folder
    found = load_samples(manifest[manifest["split"] != "val"], folder)
    assert len(found.images_u8) == len(manifest) - 3 and not len(found.indices("val"))


def test_counts_by_split_and_label():
    counts = count_samples(make_manifest(make_rows()))
    assert counts.to_numpy().tolist() == [list(SPLIT_COUNTS[split]) for split in ("train", "val", "test")]


def test_training_images_are_counted_by_kind(samples):
    table = samples.table.assign(origin=["memseg" if n == 11 else "real" for n in range(21)])
    counted = count_training(samples._replace(table=table))
    assert counted == {"n_train": 12, "n_train_positive": 3, "n_train_generated": 1}


def test_the_hash_sees_pixels_labels_and_order_of_its_split_only(samples):
    found = hash_samples(samples, "train")
    images_u8 = samples.images_u8.clone()
    images_u8[-1] += 1
    assert hash_samples(samples._replace(images_u8=images_u8), "train") == found
    images_u8[0, 3, 3, 1] += 1
    assert hash_samples(samples._replace(images_u8=images_u8), "train") != found
    assert hash_samples(samples._replace(labels=1 - samples.labels), "train") != found


def test_recipes_are_the_papers():
    assert RECIPES["in_and_out"] == Recipe("sgd", 0.01, 5, 50, balanced=True)
    assert RECIPES["diag"] == Recipe("adam", 1e-4, 32, 30, balanced=False)
    assert RECIPES["diag_paper"] == replace(RECIPES["diag"], epochs=50)


def test_overrides_replace_only_what_is_given():
    assert choose_recipe("diag", epochs=0, learning_rate=0.0, flips=False) == RECIPES["diag"]
    found = choose_recipe("in_and_out", epochs=7, momentum=0.9)
    assert found == replace(RECIPES["in_and_out"], epochs=7, momentum=0.9)


def test_decay_is_half_a_cosine():
    decaying = replace(QUICK, learning_rate=0.4, epochs=4, decay=True)
    found = [learning_rate_of(decaying, epoch) for epoch in range(4)]
    assert found == pytest.approx([0.4, 0.2 * (1 + 0.5**0.5), 0.2, 0.2 * (1 - 0.5**0.5)])
    constant = replace(decaying, decay=False)
    assert [learning_rate_of(constant, epoch) for epoch in range(4)] == [0.4] * 4


def test_warm_up_rises_in_a_line_and_stays():
    rising = replace(QUICK, warmup=0.5)
    found = [warmup_share(rising, step, 8) for step in range(8)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert [warmup_share(QUICK, step, 8) for step in range(8)] == [1.0] * 8


def test_wrong_recipes():
    with pytest.raises(ValueError, match="in_and_out, "):
        choose_recipe("in_an_out")
    with pytest.raises(ValueError, match="must be positive"):
        choose_recipe("diag", epochs=-1)
    with pytest.raises(ValueError, match="3 problem") as error:
        choose_recipe("diag", learning_rate=-1.0, warmup=1.0, largest_gradient=-1.0)
    assert "warmup 1.0 must be a share" in str(error.value)
    assert "largest_gradient -1.0 must be 0 or more" in str(error.value)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))
def test_a_balanced_epoch_has_all_positives_and_as_many_of_the_least_used_negatives(
    positives, negatives, seed
):
    labels = np.array([1] * positives + [0] * negatives)
    recipe = replace(QUICK, epochs=6)
    uses = np.zeros(negatives, int)
    for epoch in plan_epochs(labels, recipe, seed):
        assert sorted(epoch[epoch < positives]) == list(range(positives))
        drawn = epoch[epoch >= positives] - positives
        assert len(drawn) == positives
        np.add.at(uses, drawn, 1)
        assert uses.max() - uses.min() <= 1 + (positives > negatives)


def test_an_unbalanced_epoch_has_everything_once():
    plan = plan_epochs(np.array([0] * 30 + [1] * 3), replace(QUICK, balanced=False), 0)
    assert [sorted(epoch) for epoch in plan] == [list(range(33))] * 3
    assert plan[0].tolist() != plan[1].tolist()


def test_more_epochs_do_not_change_the_first_ones():
    labels = np.array([0] * 30 + [1] * 5)
    short, long = (plan_epochs(labels, replace(QUICK, epochs=epochs), 4) for epochs in (3, 9))
    assert [epoch.tolist() for epoch in short] == [epoch.tolist() for epoch in long[:3]]
    assert short[0].tolist() != plan_epochs(labels, QUICK, 5)[0].tolist()


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(10, 5, [5, 5]), (11, 5, [5, 6]), (12, 5, [5, 5, 2]), (1, 5, [1]), (3, 1, [1, 1, 1])],
)
def test_no_batch_of_one_at_the_end(count, size, lengths):
    batches = split_batches(np.arange(count), size)
    assert [len(batch) for batch in batches] == lengths
    assert torch.cat(batches).tolist() == list(range(count))


def test_mirrored_bytes_normalise_to_the_same_as_mirrored_floats():
    generator = torch.Generator().manual_seed(0)
    images_u8 = torch.randint(256, (16, 6, 4, 3), dtype=torch.uint8, generator=generator)
    flips = torch.rand((2, 16), generator=generator) < 0.5
    mirrored_u8 = flip_images(images_u8.permute(0, 3, 1, 2), flips)
    late = flip_images(normalise_images(images_u8), flips)
    early = normalise_images(mirrored_u8.permute(0, 2, 3, 1))
    assert torch.equal(early, late)
    assert early.is_contiguous(memory_format=torch.channels_last)


def test_flips_mirror_each_image_on_its_own():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    flips = torch.tensor([[False, True, False, True], [False, False, True, True]])
    wanted = torch.cat([image, image.flip(2), image.flip(3), image.flip((2, 3))])
    assert torch.equal(flip_images(image.repeat(4, 1, 1, 1), flips), wanted)


def test_batches_follow_the_plan_and_flip_half_of_the_images():
    labels = np.array([0] * 30 + [1] * 30)
    recipe = replace(QUICK, batch_size=7, epochs=4)
    batches = plan_batches(labels, recipe, 2)
    for epoch, shown in enumerate(plan_epochs(labels, recipe, 2)):
        of_epoch = [batch for batch in batches if batch.epoch == epoch]
        assert torch.cat([batch.images for batch in of_epoch]).tolist() == shown.tolist()
    flips = torch.cat([batch.flips for batch in batches], dim=1)
    assert flips.shape == (2, 240) and (flips.float().mean(1) - 0.5).abs().max() < 0.15
    assert not torch.equal(flips[0], flips[1])
    assert not any(batch.flips.any() for batch in plan_batches(labels, replace(recipe, flips=False), 2))


def test_jitter_is_drawn_by_seed_and_epoch_and_leaves_the_flips():
    labels, recipe = np.array([0] * 30 + [1] * 30), replace(QUICK, batch_size=7, augment=True)
    short, again = (plan_batches(labels, recipe, 2) for _ in range(2))
    long = plan_batches(labels, replace(recipe, epochs=5), 2)
    plain = plan_batches(labels, replace(recipe, augment=False), 2)
    assert [batch.jitter for batch in plain] == [None] * len(short)
    for batch, *others in zip(short, again, long, strict=False):
        assert all(torch.equal(batch.jitter, other.jitter) for other in others)
        assert batch.jitter.shape == (3, len(batch.images))
    for batch, other in zip(short, plain, strict=True):
        assert torch.equal(batch.flips, other.flips)
    first, second = (next(one.jitter for one in short if one.epoch == epoch) for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_frozen_batch_norm_keeps_its_statistics():
    model = build_classifier(BACKBONE)
    norm = model.resnet.embedder.embedder.normalization
    for is_frozen in (True, False):
        before = norm.running_mean.clone()
        model.train()
        if is_frozen:
            freeze_batch_norm(model)
        model(torch.randn(2, 3, 32, 32))
        assert torch.equal(norm.running_mean, before) == is_frozen
        assert model.training


def tensors(folder) -> dict:
    return load_file(folder / "checkpoint.safetensors")


def assert_same_training(one, other):
    """The same bits in the model, and the same losses."""
    assert tensors(one).keys() == tensors(other).keys()
    for key, value in tensors(one).items():
        assert torch.equal(value, tensors(other)[key]), key
    histories = [pd.read_csv(folder / "history.csv")[["epoch", "loss"]] for folder in (one, other)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def test_training_repeats_exactly_and_follows_the_seed(samples, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name))
        train_classifier(samples, tmp_path / name, QUICK, BACKBONE, seed)
    assert_same_training(tmp_path / "a", tmp_path / "b")
    first, third = tensors(tmp_path / "a"), tensors(tmp_path / "c")
    assert not torch.equal(first["model.classifier.1.weight"], third["model.classifier.1.weight"])


class KillError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    "recipe",
    [
        QUICK,
        replace(QUICK, optimiser="adam", learning_rate=1e-3, balanced=False, freeze_batch_norm_after=1),
        replace(QUICK, augment=True, warmup=0.9, largest_gradient=0.5),
    ],
    ids=["sgd", "adam", "augmented"],
)
def test_interrupted_and_resumed_equals_uninterrupted(samples, tmp_path, recipe):
    whole = train_classifier(samples, tmp_path / "whole", recipe, BACKBONE)
    assert whole.resumed_epochs == 0

    def kill(done: StepDone) -> None:
        if done.numbers["epoch"] == 2 and done.is_saved:
            raise KillError

    with pytest.raises(KillError):
        train_classifier(samples, tmp_path / "parts", recipe, BACKBONE, on_step=kill)
    assert len(pd.read_csv(tmp_path / "parts" / "history.csv")) == 2
    states = [
        any(key.startswith("optimiser.") for key in tensors(tmp_path / name)) for name in ("parts", "whole")
    ]
    assert states == [True, False], "only a training that goes on needs them"
    resumed = train_classifier(samples, tmp_path / "parts", recipe, BACKBONE)
    assert resumed.resumed_epochs == 2
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    scores = [score_samples(run.model, samples, recipe.normalisation) for run in (whole, resumed)]
    pd.testing.assert_frame_equal(*scores, check_exact=True)


def test_a_finished_run_returns_at_once(samples, tmp_path):
    first = train_classifier(samples, tmp_path, QUICK, BACKBONE)
    steps = []
    again = train_classifier(samples, tmp_path, QUICK, BACKBONE, on_step=steps.append)
    assert steps == []
    assert again.resumed_epochs == QUICK.epochs
    assert not again.model.training
    pd.testing.assert_frame_equal(first.history, again.history, check_exact=True)
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])


def test_a_folder_in_which_another_process_trains_is_refused(samples, tmp_path):
    with lock_file(tmp_path / "checkpoint.safetensors"):
        with pytest.raises(TimeoutError, match=r"checkpoint\.safetensors is in use by another process"):
            train_classifier(samples, tmp_path, QUICK, BACKBONE)
        assert not (tmp_path / "history.csv").exists()
    assert train_classifier(samples, tmp_path, QUICK, BACKBONE).resumed_epochs == 0
    with lock_file(tmp_path / "checkpoint.safetensors"):  # a finished training is only read
        assert train_classifier(samples, tmp_path, QUICK, BACKBONE).resumed_epochs == QUICK.epochs


def test_a_classifier_is_trained_by_one_process(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "open_accelerator", lambda *_: SimpleNamespace(num_processes=2))
    with pytest.raises(
        ValueError, match="2 processes can't train one classifier or detector, whose BatchNorm"
    ):
        train_classifier(samples, tmp_path, QUICK, BACKBONE)


def test_a_classifiers_step_is_not_divided_if_memory_runs_out(samples, tmp_path, monkeypatch):
    def fail(*_) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(classifier, "binary_cross_entropy_with_logits", fail)
    with pytest.raises(MemoryError, match=r"does not fit in the memory of .*: choose a smaller batch"):
        train_classifier(samples, tmp_path, QUICK, BACKBONE)


def test_a_folder_of_other_settings_is_refused_and_survives(samples, tmp_path):
    train_classifier(samples, tmp_path, QUICK, BACKBONE)
    (tmp_path / "metrics.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = replace(QUICK, learning_rate=0.02)
    with pytest.raises(ValueError, match=r"learning_rate \(0.01, requested 0.02\); seed \(0, requested 1\)"):
        train_classifier(samples, tmp_path, other, BACKBONE, seed=1)
    images_u8 = samples.images_u8.clone()
    images_u8[0] = 0
    with pytest.raises(ValueError, match="other settings: training_set"):
        train_classifier(samples._replace(images_u8=images_u8), tmp_path, QUICK, BACKBONE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_settings_name_a_later_field_only_where_it_is_set(samples, tmp_path):
    """Otherwise every training from before the field existed would be refused."""
    train_classifier(samples, tmp_path, QUICK, BACKBONE)
    with safe_open(tmp_path / loop.CHECKPOINT, "pt") as kept:
        found = json.loads(kept.metadata()["settings"])
    assert not {"augment", "warmup", "largest_gradient"} & found.keys()
    other = replace(QUICK, augment=True, warmup=0.5, largest_gradient=1.0)
    with pytest.raises(ValueError, match=r"augment \(None, requested True\); largest_gradient .*; warmup"):
        train_classifier(samples, tmp_path, other, BACKBONE)


def test_other_weights_under_the_same_name_are_refused(samples, tmp_path):
    path, quick = tmp_path / "start.safetensors", replace(QUICK, epochs=1)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_classifier(BACKBONE)
        save_file({torchvision_key(key): value for key, value in model.state_dict().items()}, path)
        if not seed:
            train_classifier(samples, tmp_path / "run", quick, BACKBONE, weights=str(path))
    with pytest.raises(ValueError, match="other settings: weights_content"):
        train_classifier(samples, tmp_path / "run", quick, BACKBONE, weights=str(path))


def test_a_torn_checkpoint_is_told(samples, tmp_path):
    train_classifier(samples, tmp_path, QUICK, BACKBONE)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"can't be read .*delete it"):
        train_classifier(samples, tmp_path, QUICK, BACKBONE)


def test_a_full_disk_keeps_the_former_epoch(samples, tmp_path, monkeypatch):
    train_classifier(samples, tmp_path / "whole", QUICK, BACKBONE)
    write, calls = loop.save_file, []

    def fill_up(*args) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    monkeypatch.setattr(loop, "save_file", fill_up)
    with pytest.raises(OSError, match="disk is full"):
        train_classifier(samples, tmp_path / "parts", QUICK, BACKBONE)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "parts").glob("*.safetensors")] == ["checkpoint.safetensors"]
    assert train_classifier(samples, tmp_path / "parts", QUICK, BACKBONE).resumed_epochs == 2
    assert_same_training(tmp_path / "whole", tmp_path / "parts")


def test_a_loss_that_is_not_finite_ends_the_run_with_its_epoch(samples, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss of step \d+ \(epoch \d\) is .*learning rate 1e\+30"):
        train_classifier(samples, tmp_path, replace(QUICK, learning_rate=1e30), BACKBONE)


def test_training_leaves_global_state_alone(samples, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_classifier(samples, tmp_path, replace(QUICK, epochs=1), BACKBONE)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_unknown_optimiser(samples, tmp_path):
    with pytest.raises(ValueError, match="neither sgd nor adam"):
        train_classifier(samples, tmp_path, replace(QUICK, optimiser="lion"), BACKBONE)


def test_it_learns_bright_marks(samples, tmp_path):
    run = train_classifier(samples, tmp_path, replace(QUICK, epochs=25), BACKBONE)
    assert run.history["loss"].iloc[-1] < 0.5 * run.history["loss"].iloc[0]
    assert run.numbers["at_chance"] is False
    scores = score_samples(run.model, samples, "imagenet")
    means = scores[scores["split"] == "test"].groupby("label")["score"].mean()
    assert means["positive"] > means["negative"] + 0.3


def test_steps_warm_up_and_their_gradients_are_scaled_down(samples, tmp_path):
    recipe, steps = replace(QUICK, momentum=0.0, warmup=0.5, decay=False, largest_gradient=1e-3), []
    trained = train_classifier(samples, tmp_path, recipe, BACKBONE, 3, on_step=steps.append)
    rates = [done.numbers["learning_rate"] for done in steps]
    assert rates == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.01, 0.01])
    assert min(done.numbers["gradient_norm"] for done in steps) > 1e-3  # something was scaled down
    torch.manual_seed(3)
    before = dict(build_classifier(BACKBONE).named_parameters())
    moved = [(value.detach() - before[name]).norm() for name, value in trained.model.named_parameters()]
    assert 0 < torch.stack(moved).norm() <= 1.01 * 1e-3 * sum(rates)


def test_augmented_training_sees_other_images(samples, tmp_path):
    losses = [
        train_classifier(samples, tmp_path / str(on), replace(QUICK, augment=on), BACKBONE).history["loss"]
        for on in (False, True)
    ]
    assert not np.allclose(*losses)


def make_training_scores(positive: list[float], negative: list[float]) -> pd.DataFrame:
    labels = ["positive"] * len(positive) + ["negative"] * len(negative)
    return pd.DataFrame({"label": labels, "score": positive + negative})


SEPARATE = make_training_scores([0.8, 0.9, 0.7], [0.1, 0.2, 0.3, 0.15, 0.25])


def test_a_loss_of_guessing_is_chance():
    def judge(losses: list[float], is_balanced: bool = True) -> bool:
        return stayed_at_chance(pd.DataFrame({"loss": losses}), SEPARATE, is_balanced)

    assert judge([0.9, 0.7, 0.69, 0.693, 0.69, 0.694, 0.691])
    assert judge([0.4] * 20 + [0.69] * 5)  # what it once knew is lost
    assert not judge([0.7, 0.69, 0.6, 0.5, 0.4])
    assert not judge([0.5, 0.4, 0.4, 0.4, 0.9])  # one unlucky epoch
    guessing = -(3 / 8 * np.log(3 / 8) + 5 / 8 * np.log(5 / 8))  # 0.66: three of eight are positive
    assert judge([0.96 * guessing], is_balanced=False) and not judge([0.94 * guessing], is_balanced=False)


def test_training_scores_that_do_not_rank_are_chance():
    history = pd.DataFrame({"loss": [0.1] * 5})
    assert not stayed_at_chance(history, SEPARATE, True)
    for positive in ([0.2, 0.2, 0.2], [0.0, 0.01, 0.02], [np.nan] * 3):  # as high, lower, no number
        assert stayed_at_chance(history, make_training_scores(positive, [0.1, 0.2, 0.3, 0.15, 0.25]), True)
    assert stayed_at_chance(history, make_training_scores([0.5] * 3, [0.5] * 5), True)
    one = make_training_scores([0.9], np.linspace(0.1, 0.5, 20).tolist())
    assert not stayed_at_chance(history, one, True)


def test_what_can_not_be_told_is_refused():
    with pytest.raises(ValueError, match="2 problem") as error:
        stayed_at_chance(pd.DataFrame({"loss": []}), make_training_scores([], [0.1]), True)
    assert "no epoch" in str(error.value) and "0 of 1 training scores" in str(error.value)


def test_a_training_that_learns_nothing_says_so(samples, tmp_path):
    alike = samples._replace(images_u8=torch.full_like(samples.images_u8, 100))
    still = train_classifier(alike, tmp_path, QUICK, BACKBONE)
    assert still.numbers["at_chance"] is True
    assert "at_chance" not in still._replace(at_chance=None).numbers


def test_scores_of_val_and_test_in_full_precision(samples):
    torch.manual_seed(0)
    model = build_classifier(BACKBONE)
    scores = score_samples(model, samples, "imagenet")
    assert scores.columns.tolist() == ["image", "split", "label", "score"]
    assert scores["split"].tolist() == ["val"] * 3 + ["test"] * 6
    assert scores["score"].dtype == np.float64
    assert scores["score"].between(0, 1).all()
    other = score_samples(model, samples, "imagenet", batch_size=2)
    np.testing.assert_allclose(other["score"], scores["score"], atol=1e-6)
    with torch.no_grad():
        model.classifier[1].bias.fill_(20)  # a float32 probability would be 1 for every image
    assert (score_samples(model, samples, "imagenet")["score"].nunique()) == 9


def test_batch_norm_layers_are_all_switched():
    model = build_classifier(BACKBONE).train()
    freeze_batch_norm(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(module.training for module in norms)
