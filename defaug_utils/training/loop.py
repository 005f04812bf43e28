"""One training loop for every network: checked at every step, and resumed exactly."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from defaug_utils.core.files import lock_file, write_atomically, write_csv
from defaug_utils.core.guards import as_json, check_demands, hold_threads, refuse_other_settings

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECKPOINT, HISTORY = "checkpoint.safetensors", "history.csv"
PRECISIONS = ("no", "bf16", "fp16")  # accelerate's names
ROWS = ("step", "checkpoint", "epoch")


@dataclass(frozen=True)
class StepPlan:
    """How long to train, and how often to save."""

    steps: int  #: in total; a finished training can be extended, unless it `is_final`
    save_every: int = 500  #: steps between checkpoints
    precision: str = "no"  #: of the forward pass, one of `PRECISIONS`; "no" is float32
    row: str = "checkpoint"  #: of the history: a "step", or the mean since a "checkpoint" (called "epoch")
    is_final: bool = False  #: the last checkpoint leaves out the optimiser, half of it or more

    def __post_init__(self) -> None:
        demands = {
            f"steps {self.steps} must be 1 or more": self.steps >= 1,
            f"save_every {self.save_every} must be 1 or more": self.save_every >= 1,
            f"precision {self.precision} is not one of {', '.join(PRECISIONS)}": self.precision in PRECISIONS,
            f"row {self.row!r} is not one of {', '.join(ROWS)}": self.row in ROWS,
        }
        check_demands("training plan", demands)


class StepLoss(NamedTuple):
    """The result of one step."""

    loss: Tensor  #: of this process's part of the batch; its gradient is used
    numbers: Mapping[str, float | None] = {}  #: for the history; without a `loss`: mean over all processes
    weight: float = 1.0  #: of the loss in a mean over steps, such as the number of images


class StepDone(NamedTuple):
    """A finished step, passed to `on_step`."""

    step: int  #: from 1
    steps: int  #: in all
    numbers: dict  #: its loss and everything else that the step reports
    is_saved: bool  #: whether a checkpoint was just written

    @property
    def loss(self) -> float:
        """Mean loss of the batch."""
        return self.numbers["loss"]


OnStep = Callable[[StepDone], None]


def add_losses(parts: Sequence[StepLoss]) -> StepLoss:
    """The result of a step from those of its parts; whole numbers, such as the epoch, are the same in all."""
    first, *others = parts
    numbers = {
        name: value
        if value is None or isinstance(value, int)
        else sum((other.numbers[name] for other in others), value)
        for name, value in first.numbers.items()
    }
    return first._replace(loss=sum((other.loss for other in others), first.loss), numbers=numbers)


@dataclass
class Training:
    """What is trained, and how a step is computed.

    `compute_loss` takes the module (as wrapped by accelerate), a step's number, from 0, and the part of its
    images to use, a slice: all of them, or, if memory runs out and there are `divisible` ones, fewer at once.
    The losses of a step's parts are added. It must depend on nothing else, so that a resumed training draws
    the same random numbers as an uninterrupted one.
    """

    module: nn.Module
    optimiser: Optimizer  #: over the trained parameters
    compute_loss: Callable[[nn.Module, int, slice], Tensor | StepLoss]
    accelerator: "Accelerator"  #: from `open_accelerator`
    rate_of: Callable[[int], float] | None = None  #: learning rate of a step from 0; None: the optimiser's
    largest_gradient: float | None = None  #: norm to clip gradients to (infinity: only measured)
    kept: nn.Module | None = None  #: part of the model that a checkpoint stores; None: the whole module
    divisible: int = 1  #: images of a step that may also be computed one by one; 1 if only all at once


class StepRun(NamedTuple):
    """A finished training: its history, and the number of steps from earlier calls."""

    history: pd.DataFrame
    resumed_steps: int


def open_accelerator(precision: str, device: str, skips_weights: bool = False) -> "Accelerator":
    """Accelerate's accelerator, for all processes that `accelerate launch` started, or for this one.

    `skips_weights`: some trained weights have no part in the loss, which several processes have to know.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    options = DistributedDataParallelKwargs(find_unused_parameters=skips_weights)
    return Accelerator(mixed_precision=precision, cpu=device == "cpu", kwargs_handlers=[options])


def share_batches(batch_size: int, what: str, accelerator: "Accelerator") -> Callable[[int], range]:
    """This process's positions in a step's batch, counted over all steps, as a function of the step (from 0).

    Raises a ValueError if the processes can't share the images (or `what` they are) of a step equally.
    """
    processes = accelerator.num_processes
    if batch_size % processes:
        divisors = [str(n) for n in range(1, batch_size + 1) if batch_size % n == 0]
        raise ValueError(
            f"{processes} processes can't share the {batch_size} {what} of a step (batch_size) "
            f"equally: use one of {', '.join(divisors)} processes"
        )
    share = batch_size // processes
    first = accelerator.process_index * share
    return lambda step: range(step * batch_size + first, step * batch_size + first + share)


class Checkpoint(NamedTuple):
    """The content of a checkpoint file."""

    tensors: dict[str, Tensor]  #: `model.<key>` and, to go on, `optimiser.<parameter index>.<name>`
    settings: dict  #: everything that the training depends on, as JSON values
    history: list[dict]  #: its rows, in order
    scaler: dict  #: state of the mixed-precision loss scaler, empty if there is none


def check_training(
    folder: Path | str, settings: Mapping, error: type[Exception] = ValueError
) -> Checkpoint | None:
    """The checkpoint of a folder, or None; refused if it has other settings or can't be read."""
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
        checkpoint = Checkpoint(tensors, *(json.loads(metadata[key]) for key in Checkpoint._fields[1:]))
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as problem:
        raise error(f"{path} can't be read (damaged?): delete it to start again") from problem
    refuse_other_settings(folder, checkpoint.settings, settings, "a training", error)
    return checkpoint


@hold_threads()
def run_steps(
    training: Training, plan: StepPlan, folder: Path | str, settings: Mapping, on_step: OnStep | None = None
) -> StepRun:
    """Train until all steps are done, resuming from the folder's checkpoint.

    Args:
        folder: for `checkpoint.safetensors` and `history.csv`.
        settings: everything else that the training depends on, as JSON values.
        on_step: called after each step (and its checkpoint), for example to show progress or draw samples.

    Raises:
        ValueError: the folder contains a training with other settings, or with more steps.
        FloatingPointError: a loss or gradient is not finite; the last checkpoint is kept.
        MemoryError: a step does not fit in memory, however few of its images are computed at once.
        TimeoutError: another process is training in the folder. A finished training can be read by several.
    """
    loop = _Loop(training, plan, Path(folder), as_json(settings))
    if loop.resume() == plan.steps:
        loop.write_history()
        return StepRun(pd.DataFrame(loop.history), plan.steps)
    is_main = training.accelerator.is_main_process
    with lock_file(Path(folder) / CHECKPOINT, 0) if is_main else nullcontext():
        return _run_steps(loop, on_step)


def _run_steps(loop: "_Loop", on_step: OnStep | None) -> StepRun:
    training, plan = loop.training, loop.plan
    resumed, since = loop.resume(), time.perf_counter()
    loop.write_history()
    module, optimiser = training.accelerator.prepare(training.module, training.optimiser)
    for step in range(resumed, plan.steps):
        numbers = loop.take_step(module, optimiser, step)
        is_saved = (step + 1) % plan.save_every == 0 or step + 1 == plan.steps
        if is_saved:
            now = time.perf_counter()
            loop.save(step + 1, round(now - since, 3))
            since = now
        if on_step:
            on_step(StepDone(step + 1, plan.steps, numbers, is_saved))
    training.accelerator.unwrap_model(module, keep_fp32_wrapper=False)
    return StepRun(pd.DataFrame(loop.history), resumed)


@dataclass
class _Loop:
    """A training in progress: its history, and the steps since the last checkpoint."""

    training: Training
    plan: StepPlan
    folder: Path
    settings: dict
    history: list[dict] = field(default_factory=list)
    pending: list[tuple[dict, float]] = field(default_factory=list)
    parts: int = 1  #: that a step is computed in, as many as memory demands

    @property
    def kept(self) -> nn.Module:
        return self.training.module if self.training.kept is None else self.training.kept

    def resume(self) -> int:
        """Restore the folder's checkpoint, if there is one, and return the number of finished steps."""
        checkpoint = check_training(self.folder, self.settings)
        if checkpoint is None:
            return 0
        self.history = list(checkpoint.history)
        done = self._count_steps()
        if done > self.plan.steps:
            raise ValueError(
                f"{self.folder} contains a training of {done} steps, {self.plan.steps} are requested: "
                "request at least as many, or choose another folder"
            )
        accelerator = self.training.accelerator
        _restore(checkpoint, self.kept, self.training.optimiser)
        if accelerator.scaler and checkpoint.scaler:
            accelerator.scaler.load_state_dict(checkpoint.scaler)
        return done

    def write_history(self) -> None:
        """Write the history for readers; a checkpoint contains it, too."""
        if self.history and self.training.accelerator.is_main_process:
            write_csv(pd.DataFrame(self.history), self.folder / HISTORY)

    def _count_steps(self) -> int:
        last = self.history[-1] if self.history else {"epoch": 0, "step": 0}
        return last["epoch"] * self.plan.save_every if self.plan.row == "epoch" else last["step"]

    def take_step(self, module: nn.Module, optimiser: Optimizer, step: int) -> dict:
        """Take one step of the optimiser; return what it reports."""
        training, accelerator = self.training, self.training.accelerator
        module.train()
        computed = self._compute_gradient(module, optimiser, step)
        numbers = dict(computed.numbers)
        if "loss" not in numbers:
            numbers["loss"] = accelerator.reduce(computed.loss, "mean").item()
        if training.rate_of:
            numbers["learning_rate"] = training.rate_of(step)
            for group in optimiser.param_groups:
                group["lr"] = numbers["learning_rate"]
        if training.largest_gradient is not None:
            norm = accelerator.clip_grad_norm_(list(self.kept.parameters()), training.largest_gradient)
            numbers["gradient_norm"] = float(norm)
        self._check_finite(numbers, optimiser, step + 1)
        optimiser.step()
        self.pending.append((numbers, computed.weight))
        return numbers

    def _compute_gradient(self, module: nn.Module, optimiser: Optimizer, step: int) -> StepLoss:
        """The loss of a step, whose gradient the parameters then hold; in parts if memory runs out."""
        while True:
            optimiser.zero_grad()
            try:
                parts = [slice(first, None, self.parts) for first in range(self.parts)]
                return add_losses([self._compute_part(module, step, part) for part in parts])
            except torch.OutOfMemoryError as error:
                is_alone = self.training.accelerator.num_processes == 1
                if self.parts >= self.training.divisible or not is_alone:
                    raise MemoryError(
                        f"{self.folder}: a training step does not fit in the memory of "
                        f"{self.training.accelerator.device}: choose a smaller batch, smaller images or, if "
                        "there is one, half precision"
                    ) from error
            self.parts = min(2 * self.parts, self.training.divisible)
            torch.cuda.empty_cache()  # only here, after the failed part has been released

    def _compute_part(self, module: nn.Module, step: int, part: slice) -> StepLoss:
        accelerator = self.training.accelerator
        with accelerator.autocast():
            computed = self.training.compute_loss(module, step, part)
        computed = computed if isinstance(computed, StepLoss) else StepLoss(computed)
        accelerator.backward(computed.loss)
        return computed._replace(loss=computed.loss.detach())

    def _check_finite(self, numbers: dict, optimiser: Optimizer, step: int) -> None:
        """Stop at a non-finite value; fp16's loss scaling skips single ones on its own."""
        names = ["loss"] if self.plan.precision == "fp16" else ["loss", "gradient_norm"]
        broken = [name for name in names if not math.isfinite(numbers.get(name, 0.0))]
        if not broken:
            return
        epoch = f" (epoch {numbers['epoch']})" if "epoch" in numbers else ""
        found = ", ".join(str(numbers[name]) for name in broken)
        done = self._count_steps()
        kept = f"step {done}'s checkpoint is kept" if done else "there is no checkpoint yet"
        raise FloatingPointError(
            f"{self.folder}: {' and '.join(broken)} of step {step}{epoch} is not finite ({found}): the "
            f"learning rate {optimiser.param_groups[0]['lr']:.3g} may be too high, fp16 too narrow (bf16 is "
            f"wider), or the model contains non-finite values; {kept}"
        )

    def save(self, done: int, seconds: float) -> None:
        """Write the history and a checkpoint; a kill or a full disk leaves the previous one."""
        self.history += self._make_rows(done, seconds)
        self.pending = []
        accelerator = self.training.accelerator
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            tensors = {f"model.{key}": value for key, value in self.kept.state_dict().items()}
            goes_on = done < self.plan.steps or not self.plan.is_final
            states = self.training.optimiser.state_dict()["state"] if goes_on else {}
            for index, state in states.items():
                tensors |= {
                    f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in state.items()
                }
            tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
            metadata = {"settings": self.settings, "history": self.history, "scaler": scaler}
            with write_atomically(self.folder / CHECKPOINT) as temporary:
                save_file(tensors, temporary, {key: json.dumps(value) for key, value in metadata.items()})
        self.write_history()
        accelerator.wait_for_everyone()

    def _make_rows(self, done: int, seconds: float) -> list[dict]:
        if self.plan.row == "step":
            first = done - len(self.pending) + 1
            return [{"step": first + place} | numbers for place, (numbers, _) in enumerate(self.pending)]
        weights = [weight for _, weight in self.pending]
        loss = sum(numbers["loss"] * weight for numbers, weight in self.pending) / sum(weights)
        count = {"step": done} if self.plan.row == "checkpoint" else {"epoch": done // self.plan.save_every}
        return [{**count, "loss": loss, "seconds": seconds}]


def _restore(checkpoint: Checkpoint, model: nn.Module, optimiser: Optimizer) -> None:
    """Restore the saved state of a model and its optimiser, in place."""
    prefix = "model."
    model.load_state_dict(
        {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.tensors.items():
        if not key.startswith(prefix):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
