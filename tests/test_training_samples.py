"""Adapters and images of a training's steps: kept while it trains, still there when it goes on."""

from pathlib import Path

import pytest
from test_ddpm import PROMPTS, SETTINGS, data, model_folder  # noqa: F401 - fixtures

from defaug_utils.core.manifest import read_manifest
from defaug_utils.diffusion.dreambooth import keep_sample, read_samples, train_dreambooth
from defaug_utils.diffusion.dreambooth_plan import DreamBoothSettings
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.text2image import TextJob, generate_images, load_text2image
from defaug_utils.diffusion.training_images import BucketSettings, choose_training_rows, read_training_images
from defaug_utils.methods.ddpm import merge_adapter

BUCKETS = BucketSettings(area=16 * 48, smallest=8, largest=96, step=4)
TRAINING = DreamBoothSettings(
    epochs=4,
    repeats=2,
    batch_size=4,
    learning_rate=0.05,
    buckets=BUCKETS,
    save_every=1,
    gradient_checkpointing=False,
)
JOBS = [TextJob(PROMPTS[0].text, "", seed) for seed in (0, 1)]


class StoppedError(Exception):
    """Stands for a kill."""


def train(folder: Path, data: Path, model_folder: Path, stop_at: int = 0) -> None:  # noqa: F811
    rows = choose_training_rows(read_manifest(data / "manifest.csv"), "few-shot", 0, few_shot_count=2)
    images, model = (
        read_training_images(rows, read_manifest(data / "manifest.csv"), data, BUCKETS),
        load_text2image(model_folder),
    )

    def keep(step: int) -> None:
        if step == stop_at:
            raise StoppedError
        assert len(keep_sample(folder, step, model, JOBS, SETTINGS)) == len(JOBS)

    train_dreambooth(model, images, folder, TRAINING, LoraPlan(2, 2, 2, 2), on_sample=keep, sample_times=2)


def test_kept_steps_are_the_same_after_a_stop(tmp_path: Path, data: Path, model_folder: Path):  # noqa: F811
    train(tmp_path / "whole", data, model_folder)
    with pytest.raises(StoppedError):
        train(tmp_path / "stopped", data, model_folder, stop_at=4)
    assert list(read_samples(tmp_path / "stopped")) == [2]
    train(tmp_path / "stopped", data, model_folder)
    whole = read_samples(tmp_path / "whole")
    assert list(whole) == [2, 4] and all(len(sample.images_u8) == 2 for sample in whole.values())
    assert (whole[2].images_u8[0] != whole[4].images_u8[0]).any()


def test_a_kept_adapter_is_the_model_of_its_step(tmp_path: Path, data: Path, model_folder: Path):  # noqa: F811
    train(tmp_path, data, model_folder)
    model, kept = load_text2image(model_folder), read_samples(tmp_path)
    assert list(kept) == [2, 4]
    with merge_adapter(model, kept[4].adapter, 1.0):
        merged = generate_images(model, JOBS, SETTINGS)
    with merge_adapter(model, tmp_path / "lora.safetensors", 1.0):
        final = generate_images(model, JOBS, SETTINGS)
    drawn = kept[4].images_u8[0].astype(int)
    assert (merged[0] == final[0]).all() and abs(merged[0] - drawn).max() <= 2


def test_nothing_kept_is_no_error(tmp_path: Path):
    assert read_samples(tmp_path) == {}
