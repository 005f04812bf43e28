"""Training any model epoch by epoch: repeatable, and resumable after every epoch."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from defaug_utils.core.files import write_csv
from defaug_utils.core.manifest import image_seed
from defaug_utils.training.checkpoints import read_checkpoint, restore_checkpoint, save_checkpoint
from defaug_utils.training.memory import pick_device
from defaug_utils.training.recipes import Recipe, learning_rate_of

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


def hash_file(path: Path | str) -> str:
    """First 16 hex digits of a file's SHA-256; empty where there is no such file (a hub id, a folder)."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if Path(path).is_file() else ""
