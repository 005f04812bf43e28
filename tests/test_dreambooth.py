"""DreamBooth: exact restarts, nothing from test, every odd input told."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import save_model

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, read_manifest, write_manifest
from defaug_utils.core.origins import MixingError
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.core.prompts import Prompt
from defaug_utils.data.datasets import choose_positives
from defaug_utils.diffusion import dreambooth, text2image
from defaug_utils.diffusion.dreambooth import DreamBoothRun, train_dreambooth
from defaug_utils.diffusion.dreambooth_plan import (
    DreamBoothError,
    DreamBoothSettings,
    plan_steps,
    settle_settings,
    weigh_noise_levels,
)
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.text2image import TextSettings, TextToImage, load_text2image
from defaug_utils.diffusion.training_images import (
    BucketSettings,
    TrainingImages,
    cache_latents,
    choose_training_rows,
    read_training_images,
)
from defaug_utils.methods.ddpm import DDPM
from defaug_utils.training import loop
from defaug_utils.training.loop import StepDone

BUCKETS = BucketSettings(area=16 * 48, smallest=8, largest=96, step=4)
PLAN = LoraPlan(linear_rank=2, linear_alpha=1, conv_rank=1)
SETTINGS = DreamBoothSettings(
    epochs=3, repeats=2, batch_size=4, learning_rate=1e-2, save_every=2, seed=5, buckets=BUCKETS,
    gradient_checkpointing=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for number in range(16):
        split, label = ("train", "train", "train", "test")[number % 4], ("negative", "positive")[number % 2]
        row = {"image": f"images/{number}.png", "label": label, "split": split, "origin": "real"}
        write_png(folder / row["image"], generator.integers(60, 200, (48, 16, 3), dtype=np.uint8))
        rows.append(row)
    write_manifest(make_manifest(rows), folder / "manifest.csv")
    return folder


def load(text_model_folder: Path) -> TextToImage:
    return load_text2image(text_model_folder, clip_skip=1)


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory: pytest.TempPathFactory, text_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("pools") / "regularisation"
    settings = TextSettings((16, 48), steps=2, guidance=1.0)
    untuned = DDPM(
        model=load(text_model_folder),
        prompts=[Prompt("background")],
        settings=settings,
        data=None,
        label="negative",
    )
    pool = make_pool(folder, untuned, PoolPlan(3))
    assert (pool["label"] == "negative").all() and (pool["mask"] == "").all()
    return folder


def read_images(data: Path, class_folder: Path | None, count: int = 3) -> TrainingImages:
    dataset = read_manifest(data / "manifest.csv")
    rows = choose_training_rows(dataset, "few-shot", seed=0, few_shot_count=count)
    return read_training_images(rows, dataset, data, BUCKETS, class_folder)


@pytest.fixture(scope="module")
def images(data: Path, class_folder: Path) -> TrainingImages:
    return read_images(data, class_folder)


def train(folder: Path, text_model_folder: Path, images: TrainingImages, **changed: object) -> DreamBoothRun:
    options = {
        name: changed.pop(name) for name in ("on_step", "on_sample", "sample_times") if name in changed
    }
    settings = DreamBoothSettings(**{**vars(SETTINGS), **changed})
    return train_dreambooth(load(text_model_folder), images, folder, settings, PLAN, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text_model_folder: Path, images: TrainingImages) -> tuple:
    """An undisturbed run and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train(folder, text_model_folder, images)


def test_more_processes_than_images_in_a_step_are_refused(text_model_folder, images, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "open_accelerator", lambda *_: SimpleNamespace(num_processes=5))
    with pytest.raises(DreamBoothError, match=r"5 processes share the 4 images of a step .*: use at most 4"):
        train(tmp_path, text_model_folder, images)


def test_history_and_files(whole):
    folder, run = whole
    steps = 3 * math.ceil(2 * 3 * 2 / 4)
    losses = ["loss", "loss_instance", "loss_class"]
    assert run.history.columns.tolist() == ["step", "epoch", *losses, "learning_rate", "gradient_norm"]
    assert run.history["step"].tolist() == list(range(1, steps + 1))
    assert np.isfinite(run.history[["loss", "gradient_norm"]]).all(axis=None)
    assert all(key.startswith("model.") for key in load_file(whole[0] / "checkpoint.safetensors"))
    assert run.resumed_steps == 0 and run.lora.is_file() and run.buckets["images"].tolist() == [6]
    stored = pd.read_csv(folder / "history.csv")
    pd.testing.assert_frame_equal(stored, run.history, rtol=1e-12)
    rates = run.history["learning_rate"]
    assert rates[0] == rates[3] == rates[6] == 1e-2, "three cosines"
    assert rates[2] < rates[1] < rates[0]


def test_the_adapter_learns(tmp_path: Path, text_model_folder: Path, data: Path):
    """Beside a run that hardly moves: both draw the same noise at every step."""
    means, one = {}, read_images(data, None, 1)
    for rate in (1e-9, 5e-2):
        changed = {"epochs": 12, "batch_size": 2, "gamma": 0.0, "learning_rate": rate, "restarts": 1}
        run = train(tmp_path / str(rate), text_model_folder, one, save_every=99, **changed)
        means[rate] = run.history["loss"][-6:].mean()
    assert means[5e-2] < 0.99 * means[1e-9]


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("stopped_at", [1, 5])
def test_a_stopped_run_goes_on_with_the_same_losses(tmp_path, text_model_folder, images, whole, stopped_at):
    def stop(done: StepDone) -> None:
        if done.step == stopped_at:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path, text_model_folder, images, on_step=stop)
    run = train(tmp_path, text_model_folder, images)
    assert run.resumed_steps == stopped_at // 2 * 2
    pd.testing.assert_frame_equal(run.history, whole[1].history, check_exact=True)
    assert run.lora.read_bytes() == whole[1].lora.read_bytes()


def test_stopped_while_writing_a_checkpoint(tmp_path, text_model_folder, images, whole, monkeypatch):
    calls = []

    def write_half(tensors: dict, path: Path, metadata: dict) -> None:
        calls.append(path)
        real(tensors, path, metadata)
        if len(calls) == 3:
            path.write_bytes(path.read_bytes()[:200])
            raise Stopped

    real = loop.save_file
    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_file", write_half)
        with pytest.raises(Stopped):
            train(tmp_path, text_model_folder, images)
    run = train(tmp_path, text_model_folder, images)
    assert run.resumed_steps == 4, "the checkpoint before the one that broke"
    pd.testing.assert_frame_equal(run.history, whole[1].history, check_exact=True)


def test_offset_noise_is_the_same_noise_shifted_by_channel(tmp_path, text_model_folder, images, monkeypatch):
    seen: dict[float, list[tuple]] = {0.0: [], 0.5: []}
    choose_target = text2image.choose_target
    for offset, drawn in seen.items():

        def choose(schedule, clean, noise, times, drawn=drawn):
            drawn.append((clean, noise, times))
            return choose_target(schedule, clean, noise, times)

        with monkeypatch.context() as patched:
            patched.setattr(text2image, "choose_target", choose)
            train(tmp_path / str(offset), text_model_folder, images, noise_offset=offset, epochs=1)
    shifts = []
    for (clean, plain, times), (same, shifted, again) in zip(*seen.values(), strict=True):
        assert torch.equal(clean, same) and torch.equal(times, again)
        shift = shifted - plain
        torch.testing.assert_close(shift, shift[..., :1, :1].expand(shift.shape))
        shifts.append(shift[..., 0, 0].flatten())
    assert 0.4 < torch.cat(shifts).std() < 0.6


def test_pictures_between_steps_change_nothing(tmp_path, text_model_folder, images, whole):
    seen = []

    def sample(finished: int) -> None:
        seen.append(finished)
        torch.randn(3)

    run = train(tmp_path, text_model_folder, images, on_sample=sample, sample_times=3)
    assert seen == [3, 6, 9]
    pd.testing.assert_frame_equal(run.history, whole[1].history, check_exact=True)


def test_activations_computed_twice_train_the_same(tmp_path, text_model_folder, images, whole):
    """Twice, and ready for images in between."""
    changed = {"gradient_checkpointing": True, "on_sample": lambda _: None, "sample_times": 2}
    run = train(tmp_path, text_model_folder, images, **changed)
    pd.testing.assert_frame_equal(run.history, whole[1].history, rtol=1e-4)


def test_a_finished_run_is_taken_as_it_is(tmp_path: Path, whole, text_model_folder, images):
    folder, first = whole
    before = shutil.copy(first.lora, tmp_path / "before.safetensors")
    again = train(folder, text_model_folder, images)
    assert again.resumed_steps == len(again.history) == len(first.history)
    assert again.history.equals(first.history)
    assert again.lora.read_bytes() == before.read_bytes()


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"learning_rate": 1e-3}, r"dreambooth\.learning_rate"), ({"seed": 6}, r"dreambooth\.seed")],
)
def test_a_checkpoint_of_other_settings_is_refused(whole, text_model_folder, images, changed, named):
    with pytest.raises(DreamBoothError, match=named):
        train(whole[0], text_model_folder, images, **changed)


def test_a_checkpoint_of_another_rank_base_or_images_is_refused(
    whole, text_model_folder, images, data, tmp_path: Path
):
    with pytest.raises(DreamBoothError, match=r"lora\.\w*rank"):
        train_dreambooth(load(text_model_folder), images, whole[0], SETTINGS, LoraPlan(3))
    with pytest.raises(DreamBoothError, match=r"trained_on\.class_images"):
        train(whole[0], text_model_folder, read_images(data, None))
    other = save_model(tmp_path / "other", unet_channels=4, text_layers=2)
    with pytest.raises(DreamBoothError, match=r"other settings: base \("):
        train(whole[0], other, images)


def test_a_damaged_checkpoint_is_told(tmp_path: Path, text_model_folder, images):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(DreamBoothError, match="can't be read"):
        train(tmp_path, text_model_folder, images)


def test_a_loss_that_is_no_number_names_its_step(tmp_path: Path, text_model_folder, images):
    model = load(text_model_folder)

    def poison(done: StepDone) -> None:
        if done.step == 3:
            with torch.no_grad():
                model.pipeline.unet.conv_out.bias.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match=r"loss and gradient_norm of step 4 \(epoch 2\)"):
        train_dreambooth(model, images, tmp_path, SETTINGS, PLAN, on_step=poison)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as kept:
        assert json.loads(kept.metadata()["history"])[-1]["step"] == 2


def test_one_image_and_a_split_identifier_are_told(tmp_path: Path, text_model_folder, data):
    run = train(tmp_path, text_model_folder, read_images(data, None, 1), epochs=1)
    told = "\n".join(run.notices)
    assert "one instance image" in told and "Prior preservation is off" in told
    assert "splits the identifier 'skt' into 3 pieces (s, k, t</w>)" in told
    assert run.history["loss_class"].isna().all()


def test_no_image_test_images_and_generated_ones_are_refused(data: Path):
    dataset = read_manifest(data / "manifest.csv")
    with pytest.raises(DreamBoothError, match="no instance image"):
        read_training_images(dataset.iloc[:0], dataset, data, BUCKETS)
    with pytest.raises(DreamBoothError, match=r"images/3\.png is test: a generator may learn only"):
        read_training_images(dataset.iloc[:4], dataset, data, BUCKETS)
    with pytest.raises(DreamBoothError, match=r"images/0\.png is memseg: a generator may learn only"):
        read_training_images(dataset.iloc[:1], dataset.assign(origin="memseg"), data, BUCKETS)
    with pytest.raises(DreamBoothError, match="unknown to the data set"):
        read_training_images(dataset.iloc[:1], dataset.iloc[1:], data, BUCKETS)


def test_unreadable_images_are_all_listed(tmp_path: Path, data: Path):
    dataset = read_manifest(data / "manifest.csv")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"none")
    with pytest.raises(DreamBoothError, match=r"2 problem(.|\n)*0\.png(.|\n)*1\.png"):
        read_training_images(dataset.iloc[:2], dataset, tmp_path, BUCKETS)


def test_the_images_of_the_scenarios(data: Path):
    dataset = read_manifest(data / "manifest.csv")
    few = choose_training_rows(dataset, "few-shot", 3, few_shot_count=2)
    assert few["image"].tolist() == choose_positives(dataset, "few-shot", 3, 2)["image"].tolist()
    zero = choose_training_rows(dataset, "zero-shot", 3, negative_count=4)
    assert len(zero) == 4 and set(zero["label"]) == {"negative"} and set(zero["split"]) == {"train"}
    assert len(choose_training_rows(dataset, "full-shot", 0)) == 4
    with pytest.raises(DreamBoothError, match="negative_count is 50, expected 1 … 8"):
        choose_training_rows(dataset, "zero-shot", 0)
    with pytest.raises(MixingError, match="not one of"):
        choose_training_rows(dataset, "no-shot", 0)


def test_buckets_that_the_model_cannot_take(tmp_path: Path, text_model_folder, images):
    with pytest.raises(DreamBoothError, match="bucket step 3 is not a multiple of 4"):
        train(tmp_path, text_model_folder, images, buckets=BucketSettings(768, 9, 96, 3))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"instance_prompt": "a background"}, "lacks the identifier 'skt'"),
        ({"instance_prompt": "sktbackground"}, "lacks the identifier"),
        ({"identifier": " "}, "identifier is empty"),
        ({"class_prompt": "skt background"}, "class prompt .* must not contain"),
        ({"class_prompt": ""}, "class prompt is empty"),
        ({"epochs": 0, "batch_size": 0}, "(?s)epochs 0 .*batch_size 0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"gamma": float("nan")}, "gamma"),
        ({"noise_offset": -0.1}, "noise_offset -0.1 must be 0 or more"),
        ({"epochs": 49, "schedule_epochs": 25}, r"schedule_epochs 25 must be 0, or at least epochs \(49\)"),
        ({"class_images": "captions"}, "class_images 'captions' is not one of prior, captioned"),
        ({"class_images": "captioned", "prior_weight": 0.5}, "prior_weight 0.5 must be 1"),
        ({"optimiser": "lion", "precision": "fp8"}, "(?s)optimiser 'lion'.*precision 'fp8'"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict, said: str):
    with pytest.raises(DreamBoothError, match=said):
        DreamBoothSettings(**wrong)


def test_the_papers_settings():
    paper = DreamBoothSettings()
    assert (paper.repeats, paper.batch_size, paper.learning_rate, paper.restarts) == (10, 12, 1e-5, 3)
    assert (paper.gamma, paper.prior_weight, paper.seed, paper.optimiser) == (5, 1, 1234, "adamw8bit")
    settled, told = settle_settings(paper, "cpu")
    assert (settled.optimiser, settled.precision) == ("adamw", "no") and len(told) == 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights(prediction: str):
    snr = torch.tensor([0.1, 1.0, 5.0, 20.0, 400.0], dtype=torch.float64)
    weights = weigh_noise_levels(snr / (1 + snr), 5.0, prediction)
    expected = {
        "epsilon": [1, 1, 1, 0.25, 5 / 400],
        "v_prediction": [0.1 / 1.1, 1 / 2, 5 / 6, 5 / 21, 5 / 401],
    }[prediction]
    assert weights.tolist() == pytest.approx(expected)
    assert (weigh_noise_levels(snr / (1 + snr), 0, prediction) == 1).all()


def test_weighted_errors_are_the_same_for_noise_and_velocity():
    """Both weights stand for min(SNR, γ) on the error of the predicted image."""
    alphas = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    error_of_image = 0.3
    snr = alphas / (1 - alphas)
    noise = weigh_noise_levels(alphas, 5, "epsilon") * snr * error_of_image
    velocity = weigh_noise_levels(alphas, 5, "v_prediction") * (snr + 1) * error_of_image
    torch.testing.assert_close(noise, snr.clamp(max=5) * error_of_image)
    torch.testing.assert_close(velocity, noise)


def test_no_noise_at_all_and_nothing_but_noise_have_weights():
    for prediction in ("epsilon", "v_prediction"):
        assert weigh_noise_levels(torch.tensor([0.0, 0.999999]), 5, prediction).isfinite().all()


def test_the_plan_shows_each_image_as_often_as_asked():
    settings = DreamBoothSettings(epochs=4, repeats=5, batch_size=3, seed=1)
    upright, square = (16, 48), (32, 32)
    instances, classes = [upright, square, upright], [upright] * 4
    steps = plan_steps(instances, classes, settings)
    buckets = [*instances, *classes]
    for epoch in range(1, 5):
        shown = [image for step in steps if step.epoch == epoch for image in step.images]
        assert [shown.count(image) for image in range(3)] == [5, 5, 5] and len(shown) == 30
    used = [sum(step.images.count(image) for step in steps) for image in range(3, 7)]
    assert used == [15, 15, 15, 15], "regularisation images take turns over the epochs"
    assert all(len({buckets[image] for image in step.images}) == 1 for step in steps)
    assert max(len(step.images) for step in steps) == 3
    assert steps == plan_steps(instances, classes, settings)
    assert steps[:10] != steps[10:20]


def test_a_step_in_parts_has_the_losses_of_the_whole_step(
    tmp_path, text_model_folder, images, whole, monkeypatch
):
    measure = dreambooth._measure_errors

    def fit_two(trainer, denoiser, positions, number) -> tuple:
        if len(positions) > 2:
            raise torch.OutOfMemoryError
        return measure(trainer, denoiser, positions, number)

    monkeypatch.setattr(dreambooth, "_measure_errors", fit_two)
    history = train(tmp_path, text_model_folder, images).history
    for name in ("epoch", "loss", "loss_instance", "loss_class"):
        expected = whole[1].history[name].fillna(-1)
        assert history[name].fillna(-1).tolist() == pytest.approx(expected.tolist(), rel=1e-3)


@pytest.mark.parametrize(("instances", "epochs", "seen"), [(50, 5, 1045), (5, 49, 8379), (246, 25, 9300)])
def test_captioned_class_images_give_the_published_numbers_of_steps(instances: int, epochs: int, seen: int):
    settings = DreamBoothSettings(epochs=epochs, class_images="captioned", schedule_epochs=50)
    steps = plan_steps([(192, 512)] * instances, [(192, 512)] * 200, settings)
    assert len(steps) == seen
    shown = [image for step in steps if step.epoch == epochs for image in step.images]
    assert all(shown.count(image) == 10 for image in range(instances + 200))


def test_the_rate_follows_a_schedule_that_is_longer_than_the_training():
    whole = DreamBoothSettings(epochs=50, restarts=3)
    part = replace(whole, epochs=5, schedule_epochs=50)
    rates = [dreambooth._rate_schedule(one, one.epochs * 209) for one in (whole, part)]
    assert [rates[0](step) for step in range(0, 1045, 100)] == [
        rates[1](step) for step in range(0, 1045, 100)
    ]
    assert rates[1](1044) > 0.75e-5, "the first of three cosines has hardly begun"
    squeezed = dreambooth._rate_schedule(replace(part, schedule_epochs=0), 1045)
    assert squeezed(1044) < 1e-9


def test_later_settings_are_recorded_only_where_they_are_set():
    """Otherwise every fine-tuning from before they existed would be refused."""
    assert not {"schedule_epochs", "class_images"} & DreamBoothSettings().describe().keys()
    changed = DreamBoothSettings(epochs=5, schedule_epochs=50, class_images="captioned").describe()
    assert (changed["schedule_epochs"], changed["class_images"]) == (50, "captioned")


def test_latents_are_drawn_around_what_the_autoencoder_gives(text_model_folder, images):
    model = load(text_model_folder)
    cached = cache_latents(model, images)
    assert len(cached) == 6
    mean, deviation = cached[0]
    assert mean.shape == deviation.shape == (4, 24, 8)
    assert (deviation > 0).all()
