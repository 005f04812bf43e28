"""Training step by step through accelerate: repeatable, and resumed exactly where it stopped."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from torch import Tensor, nn
from torch.optim import Optimizer

from defaug_utils.core.files import write_csv
from defaug_utils.training.checkpoints import read_checkpoint, restore_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECKPOINT, HISTORY = "checkpoint.safetensors", "history.csv"
PRECISIONS = ("no", "bf16", "fp16")  # accelerate's words


@dataclass(frozen=True)
class StepPlan:
    """How long, and how often the state is kept.

    Attributes:
        steps: in all; a finished run may be made longer.
        save_every: steps between checkpoints.
        precision: of the forward pass: "no" (float32), "bf16" or "fp16".
    """

    steps: int
    save_every: int = 500
    precision: str = "no"

    def __post_init__(self) -> None:
        """Refuse values that make no sense, all in one message."""
        demands = {
            f"steps {self.steps} must be 1 or more": self.steps >= 1,
            f"save_every {self.save_every} must be 1 or more": self.save_every >= 1,
            f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}": self.precision in PRECISIONS,
        }
        broken = [message for message, is_met in demands.items() if not is_met]
        if broken:
            raise ValueError("training plan: " + "; ".join(broken))


class StepRun(NamedTuple):
    """A finished training: its history (step, loss, seconds a checkpoint) and the steps done earlier."""

    history: pd.DataFrame
    resumed_steps: int


def open_accelerator(precision: str, device: str) -> "Accelerator":
    """accelerate's, for all GPUs that this process was started with, or for a model on the processor."""
    from accelerate import Accelerator

    return Accelerator(mixed_precision=precision, cpu=device == "cpu")


def train_steps(
    trained: nn.Module,
    optimiser: Optimizer,
    compute_loss: Callable[[nn.Module, int], Tensor],
    folder: Path | str,
    plan: StepPlan,
    settings: dict,
    accelerator: "Accelerator",
    on_step: Callable[[int, float], None] | None = None,
    on_save: Callable[[int], None] | None = None,
) -> StepRun:
    """Train until all steps are done, going on from the folder's checkpoint.

    Args:
        trained: what is trained, and all that the checkpoint holds of the model.
        optimiser: over its parameters.
        compute_loss: takes the module (as accelerate wraps it) and a step's number from 0; must depend on
            nothing else, so that a resumed run draws what an uninterrupted one does.
        folder: where `checkpoint.safetensors` and `history.csv` go.
        plan: steps, checkpoints and precision.
        settings: everything else that the training depends on, as JSON values.
        accelerator: from `open_accelerator`.
        on_step: called with the number of finished steps and the loss.
        on_save: called with the number of finished steps after each checkpoint, such as to draw samples.

    Raises:
        ValueError: the folder holds a training with other settings, or one that went further.
        FloatingPointError: a loss is no number; the last checkpoint is kept.
    """
    folder, bare = Path(folder), trained
    settings = settings | {"precision": plan.precision, "processes": accelerator.num_processes}
    settings = json.loads(json.dumps(settings))  # as it reads back: a tuple is a list
    history = _resume(folder, settings, plan, trained, optimiser, accelerator)
    resumed = history[-1]["step"] if history else 0
    trained, optimiser = accelerator.prepare(trained, optimiser)
    losses, start = [], time.perf_counter()
    for step in range(resumed, plan.steps):
        losses.append(_take_step(trained, optimiser, compute_loss, step, accelerator, folder, history))
        if on_step:
            on_step(step + 1, losses[-1])
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            seconds, start = round(time.perf_counter() - start, 3), time.perf_counter()
            history.append({"step": step + 1, "loss": sum(losses) / len(losses), "seconds": seconds})
            losses = []
            _save(folder, bare, optimiser, settings, history, accelerator)
            if on_save:
                on_save(step + 1)
    accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
    return StepRun(_tabulate(history), resumed)


def _take_step(
    trained: nn.Module,
    optimiser: Optimizer,
    compute_loss: Callable[[nn.Module, int], Tensor],
    step: int,
    accelerator: "Accelerator",
    folder: Path,
    history: list[dict],
) -> float:
    trained.train()
    with accelerator.autocast():
        loss = compute_loss(trained, step)
    mean = accelerator.reduce(loss.detach(), "mean").item()
    if not math.isfinite(mean):
        kept = f"step {history[-1]['step']}'s checkpoint is kept" if history else "there is no checkpoint yet"
        raise FloatingPointError(
            f"{folder}: the loss of step {step + 1} is {mean}; the learning rate may be too high, or fp16 "
            f"too narrow (bf16 is wider) ({kept})"
        )
    optimiser.zero_grad()
    accelerator.backward(loss)
    optimiser.step()
    return mean


def _save(
    folder: Path,
    bare: nn.Module,
    optimiser: Optimizer,
    settings: dict,
    history: list[dict],
    accelerator: "Accelerator",
) -> None:
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
        save_checkpoint(folder / CHECKPOINT, bare, optimiser, settings, history, scaler)
        write_csv(_tabulate(history), folder / HISTORY)
    accelerator.wait_for_everyone()


def _tabulate(history: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(history, columns=["step", "loss", "seconds"])


def _resume(
    folder: Path,
    settings: dict,
    plan: StepPlan,
    trained: nn.Module,
    optimiser: Optimizer,
    accelerator: "Accelerator",
) -> list[dict]:
    """Restore the folder's checkpoint, if there is one, and return its history."""
    path = folder / CHECKPOINT
    checkpoint = read_checkpoint(path)
    if checkpoint is None:
        if path.is_file():
            raise ValueError(f"{path} can't be read: delete it to begin again")
        return []
    found, history = checkpoint.settings, list(checkpoint.history)
    differing = sorted(name for name in {*found, *settings} if found.get(name) != settings.get(name))
    if differing:
        raise ValueError(
            f"{folder} holds a training with other settings ({', '.join(differing)} differ): delete the "
            "folder to train again, or choose another one"
        )
    if history[-1]["step"] > plan.steps:
        raise ValueError(
            f"{folder} holds a training of {history[-1]['step']} steps, {plan.steps} are asked for: ask for "
            "as many or more, or choose another folder"
        )
    restore_checkpoint(checkpoint, trained, optimiser)
    if accelerator.scaler and checkpoint.scaler:
        accelerator.scaler.load_state_dict(checkpoint.scaler)
    if accelerator.is_main_process:
        write_csv(_tabulate(history), folder / HISTORY)
    return history
