"""Training the classifier by a named recipe: repeatable, and resumable after every epoch."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ResNetForImageClassification

from defaug_utils.checkpoints import read_checkpoint, restore_checkpoint, save_checkpoint
from defaug_utils.classifier import build_classifier, normalise_images
from defaug_utils.files import write_csv
from defaug_utils.manifest import image_seed
from defaug_utils.recipes import Recipe, learning_rate_of, plan_epochs, split_batches
from defaug_utils.samples import Samples, hash_samples
from defaug_utils.session import pick_device

OUTPUT_FILES = ("checkpoint.safetensors", "history.csv", "scores.csv", "metrics.json")


class TrainingRun(NamedTuple):
    """A finished training.

    Attributes:
        model: the last epoch's model, in evaluation mode.
        history: one row an epoch: epoch (from 1), loss (mean over its images), seconds.
        resumed_epochs: how many of them an earlier run had finished.
        replaced: settings in which an earlier run in the folder differed, so that it was made anew.
    """

    model: nn.Module
    history: pd.DataFrame
    resumed_epochs: int
    replaced: tuple[str, ...]


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


@dataclass
class TrainingState:
    """What changes while training, and where and how it is computed."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: torch.dtype
    device: torch.device


def run_epochs(
    make_model: Callable[[], nn.Module],
    train_epoch: Callable[[TrainingState, int], float],
    run_folder: Path | str,
    recipe: Recipe,
    settings: dict,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainingRun:
    """Train any model epoch by epoch, or go on where an earlier run with the same settings stopped.

    Args:
        make_model: called once, with PyTorch's global generator seeded.
        train_epoch: trains one epoch (from 0) and returns its mean loss; must depend on nothing but the
            state and the epoch's number, see `begin_epoch`.
        run_folder: where `checkpoint.safetensors` and `history.csv` go.
        recipe: how to train.
        settings: everything that decides what the trained model is, as JSON values.
        seed: of the random weights.
        on_epoch: called after every epoch with its number (from 1) and loss.

    Returns:
        The model with its history.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
    """
    run_folder, device = Path(run_folder), pick_device()
    with _repeatable(device, seed):
        state = _make_state(make_model(), recipe, device)
        history, replaced = _resume(run_folder, settings, state)
        resumed = len(history)
        for epoch in range(resumed, recipe.epochs):
            start = time.perf_counter()
            loss = train_epoch(state, epoch)
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"{run_folder}: the loss of epoch {epoch + 1} is {loss}; the learning rate "
                    f"{recipe.learning_rate} may be too high (epoch {epoch}'s checkpoint is kept)"
                )
            seconds = round(time.perf_counter() - start, 3)
            history.append({"epoch": epoch + 1, "loss": loss, "seconds": seconds})
            _save(run_folder, settings, state, history)
            if on_epoch:
                on_epoch(epoch + 1, loss)
    return TrainingRun(state.model.eval(), pd.DataFrame(history), resumed, replaced)


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


def hash_file(path: Path | str) -> str:
    """First 16 hex digits of a file's SHA-256; empty where there is no such file (a hub id, a folder)."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if Path(path).is_file() else ""


@contextmanager
def _repeatable(device: torch.device, seed: int) -> Iterator[None]:
    """Seed PyTorch and, on the processor, allow deterministic operations only; restore both after."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(before or device.type == "cpu")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _make_state(model: nn.Module, recipe: Recipe, device: torch.device) -> TrainingState:
    model = model.to(device, memory_format=torch.channels_last)
    optimiser = make_optimiser(model, recipe)
    precision = _pick_precision(device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    return TrainingState(model, optimiser, scaler, precision, device)


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all of a model's parameters."""
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(model.parameters(), recipe.learning_rate, recipe.momentum)
    if recipe.optimiser == "adam":
        return torch.optim.Adam(model.parameters(), recipe.learning_rate)
    raise ValueError(f"optimiser {recipe.optimiser!r} is neither sgd nor adam")


def _pick_precision(device: torch.device) -> torch.dtype:
    """Type of the forward pass: half the width on a GPU, float32 on the processor."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _save(run_folder: Path, settings: dict, state: TrainingState, history: list[dict]) -> None:
    scaler = state.scaler.state_dict()
    save_checkpoint(run_folder / OUTPUT_FILES[0], state.model, state.optimiser, settings, history, scaler)
    write_csv(pd.DataFrame(history), run_folder / OUTPUT_FILES[1])


def _resume(run_folder: Path, settings: dict, state: TrainingState) -> tuple[list[dict], tuple[str, ...]]:
    """Restore an earlier run of the same settings, or clear the folder of one with others."""
    path = run_folder / OUTPUT_FILES[0]
    checkpoint = read_checkpoint(path)
    if checkpoint is None:
        differing = ("checkpoint can't be read",) if path.is_file() else ()
    else:
        found = checkpoint.settings
        differing = tuple(
            name for name in sorted({*found, *settings}) if found.get(name) != settings.get(name)
        )
        if not differing:
            restore_checkpoint(checkpoint, state.model, state.optimiser)
            state.scaler.load_state_dict(checkpoint.scaler)
            write_csv(pd.DataFrame(checkpoint.history), run_folder / OUTPUT_FILES[1])
            return list(checkpoint.history), ()
    for name in OUTPUT_FILES:
        (run_folder / name).unlink(missing_ok=True)
    return [], differing


def _train_epoch(
    state: TrainingState, samples: Samples, indices: np.ndarray, recipe: Recipe, seed: int, epoch: int
) -> float:
    """One pass over the given images; returns their mean loss."""
    generator, total = begin_epoch(state, recipe, seed, epoch), 0.0
    for batch in split_batches(indices, recipe.batch_size):
        inputs = normalise_images(samples.images_u8[batch].to(state.device), recipe.normalisation)
        if recipe.flips:
            inputs = flip_images(inputs, generator)
        labels = samples.labels[batch].to(state.device)
        loss = take_step(
            state,
            lambda inputs=inputs: state.model(inputs).logits[:, 0],
            lambda logits, labels=labels: binary_cross_entropy_with_logits(logits, labels),
        )
        total += loss * len(batch)
    return total / len(indices)


def begin_epoch(state: TrainingState, recipe: Recipe, seed: int, epoch: int) -> torch.Generator:
    """Set the epoch's learning rate and mode; returns its own source of randomness."""
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate_of(recipe, epoch)
    set_training_mode(state.model, is_batch_norm_frozen=0 < recipe.freeze_batch_norm_after <= epoch)
    return torch.Generator().manual_seed(image_seed(seed, epoch))


def take_step(
    state: TrainingState, make_logits: Callable[[], Tensor], measure_loss: Callable[[Tensor], Tensor]
) -> float:
    """One step of the optimiser; the logits are computed in the state's precision, the loss in float32."""
    state.optimiser.zero_grad()
    with torch.autocast(state.device.type, state.precision, enabled=state.precision != torch.float32):
        logits = make_logits()
    loss = measure_loss(logits.float())
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimiser)
    state.scaler.update()
    return loss.item()


def set_training_mode(model: nn.Module, is_batch_norm_frozen: bool) -> None:
    """Switch to training; frozen BatchNorm normalises by its running statistics and keeps them."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(not is_batch_norm_frozen)


def flip_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left-right and, on its own, top-bottom, each with probability ½."""
    for axis in (2, 3):
        chosen = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(chosen[:, None, None, None].to(images.device), images.flip(axis), images)
    return images


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
