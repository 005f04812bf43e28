"""Training the classifier by a named recipe: repeatable, and resumable after every epoch."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ResNetForImageClassification

from defaug_utils.data.samples import Samples, hash_samples
from defaug_utils.training.classifier import build_classifier, normalise_images
from defaug_utils.training.epochs import (
    TrainingRun,
    TrainingState,
    begin_epoch,
    flip_images,
    hash_file,
    run_epochs,
    take_step,
)
from defaug_utils.training.recipes import Recipe, plan_epochs, split_batches


def train_classifier(
    samples: Samples,
    run_folder: Path | str,
    recipe: Recipe,
    backbone: str,
    seed: int = 0,
    weights: str = "",
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainingRun:
    """Train on the train split, or go on where an earlier run with the same settings stopped.

    After every epoch `checkpoint.safetensors` and `history.csv` are replaced. A folder that holds a run
    with other settings (or of another training set) is started afresh. On the processor the result
    repeats exactly for the same settings, number of threads and versions.

    Args:
        samples: the training set in memory.
        run_folder: where the files of this run go.
        recipe: how to train.
        backbone: a name in `classifier.BACKBONES`.
        seed: seeds the random weights and the order of images.
        weights: as `build_classifier` takes them.
        on_epoch: called after every epoch with its number (from 1) and loss.

    Returns:
        The model with its history.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
    """
    settings = _describe_settings(samples, recipe, backbone, seed, weights)
    train = samples.indices("train")
    plan = plan_epochs(samples.labels[train].numpy(), recipe, seed)

    def train_epoch(state: TrainingState, epoch: int) -> float:
        return _train_epoch(state, samples, train[plan[epoch]], recipe, seed, epoch)

    def make_model() -> nn.Module:
        return build_classifier(backbone, weights)

    return run_epochs(make_model, train_epoch, run_folder, recipe, settings, seed, on_epoch)


def _describe_settings(samples: Samples, recipe: Recipe, backbone: str, seed: int, weights: str) -> dict:
    """Everything that decides what the trained model is."""
    height, width = samples.images_u8.shape[1:3]
    return {
        **asdict(recipe),
        "backbone": backbone,
        "weights": weights,
        "weights_content": hash_file(weights),
        "seed": seed,
        "input_size": [width, height],
        "training_set": hash_samples(samples, "train"),
    }


def _train_epoch(
    state: TrainingState, samples: Samples, indices: np.ndarray, recipe: Recipe, seed: int, epoch: int
) -> float:
    """One pass over the given images; returns their mean loss."""
    generator, total = begin_epoch(state, recipe, seed, epoch), 0.0
    for batch in split_batches(indices, recipe.batch_size):
        images_u8 = samples.images_u8[batch].to(state.device)
        if recipe.flips:  # before normalising: bytes are a quarter of what floats are to move
            images_u8 = flip_images(images_u8.permute(0, 3, 1, 2), generator).permute(0, 2, 3, 1)
        inputs = normalise_images(images_u8, recipe.normalisation)
        labels = samples.labels[batch].to(state.device)
        loss = take_step(
            state,
            lambda inputs=inputs: state.model(inputs).logits[:, 0],
            lambda logits, labels=labels: binary_cross_entropy_with_logits(logits, labels),
        )
        total += loss * len(batch)
    return total / len(indices)


@torch.inference_mode()
def score_samples(
    model: ResNetForImageClassification, samples: Samples, normalisation: str, batch_size: int = 32
) -> pd.DataFrame:
    """Score the val and test images: the probability of "positive" that the model gives.

    Args:
        model: the classifier, in evaluation mode.
        samples: the training set in memory.
        normalisation: the one that the model was trained with.
        batch_size: images at a time; changes speed only.

    Returns:
        A table with the columns image, split, label and score (float64 in [0, 1]).
    """
    device = next(model.parameters()).device
    indices = np.concatenate([samples.indices(split) for split in ("val", "test")])
    logits = [
        model(normalise_images(samples.images_u8[batch].to(device), normalisation)).logits[:, 0].cpu()
        for batch in split_batches(indices, batch_size)
    ]
    table = samples.table.loc[indices, ["image", "split", "label"]].reset_index(drop=True)
    return table.assign(score=torch.cat(logits).double().sigmoid().numpy())
