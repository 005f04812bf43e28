"""DreamBooth: a LoRA adapter taught what a word means, from a few images, with an exact restart.

Ruiz et al. 2023 (prior preservation), on the adapter of In&Out (Capogrosso et al. 2024, section 3.2).
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from defaug_utils.core.files import write_csv, write_png
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import image_seed
from defaug_utils.diffusion.dreambooth_plan import (
    DreamBoothError,
    DreamBoothSettings,
    Step,
    plan_steps,
    tell_identifier,
    weigh_noise_levels,
)
from defaug_utils.diffusion.lora import LoraCounts, LoraPlan, attach_lora, lora_parameters, read_lora
from defaug_utils.diffusion.lora_files import save_lora
from defaug_utils.diffusion.text2image import (
    TextJob,
    TextSettings,
    TextToImage,
    embed_tokens,
    generate_images,
    make_noise_schedule,
    tokenise_prompts,
)
from defaug_utils.diffusion.training_images import (
    TrainingImages,
    cache_latents,
    check_bucket_step,
    count_buckets,
    tell_fit,
)
from defaug_utils.training.checkpoints import read_checkpoint, restore_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

HISTORY_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "loss_instance",
    "loss_class",
    "learning_rate",
    "gradient_norm",
)
LORA, HISTORY = "lora.safetensors", "history.csv"


class DreamBoothRun(NamedTuple):
    """A finished fine-tuning; the model carries the trained adapter.

    Attributes:
        lora: file of the adapter.
        history: one row a step: step (from 1), epoch, loss, loss_instance, loss_class (means over their
            images, missing where a step has none), learning_rate, gradient_norm.
        seconds: of training, in this call.
        resumed_steps: how many steps an earlier call had finished.
        buckets: see `count_buckets`.
        adapted: layers and parameters of the adapter.
        notices: what a user must be told.
    """

    lora: Path
    history: pd.DataFrame
    seconds: float
    resumed_steps: int
    buckets: pd.DataFrame
    adapted: LoraCounts
    notices: list[str]


class Denoiser(nn.Module):
    """U-Net and text encoder as one module, so that several processes keep both in step."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, clip_skip: int) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.clip_skip = unet, text_encoder, clip_skip

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """What the U-Net predicts for noisy latents (batch channels height width)."""
        return self.unet(noisy, times, embed_tokens(self.text_encoder, tokens, self.clip_skip)).sample


class _Inputs(NamedTuple):
    """What one step shows the network, and what it shall say."""

    noisy: Tensor
    times: Tensor
    tokens: Tensor
    target: Tensor
    weights: Tensor
    is_class: Tensor


class _Trainer(NamedTuple):
    """What training works with."""

    accelerator: "Accelerator"
    denoiser: nn.Module
    optimiser: torch.optim.Optimizer
    parameters: nn.ParameterDict
    settings: DreamBoothSettings
    latents: list[tuple[Tensor, Tensor]]
    is_class: list[bool]
    tokens: Tensor
    level_weights: Tensor
    schedule: object


def train_dreambooth(
    model: TextToImage,
    images: TrainingImages,
    folder: Path | str,
    settings: DreamBoothSettings,
    plan: LoraPlan,
    on_step: Callable[[dict, int], None] | None = None,
    on_sample: Callable[[int], None] | None = None,
    sample_every: int = 0,
) -> DreamBoothRun:
    """Fine-tune a model by an adapter, or go on where an earlier call with the same settings stopped.

    All draws of a step come from (seed, step, place in the batch), so that on one machine a resumed run has
    the losses of an uninterrupted one, and several processes see what one would see.

    Args:
        model: as it was loaded, without an adapter; it carries the trained one afterwards.
        images: from `read_training_images`.
        folder: where `checkpoint.safetensors`, `lora.safetensors` and `history.csv` go.
        settings: how to train.
        plan: ranks of the adapter.
        on_step: called after every step with its row of the history and the number of all steps.
        on_sample: called with the number of finished steps, the model ready to make pictures.
        sample_every: steps between two calls of `on_sample`; 0 for none.

    Returns:
        Where the adapter is, with the history.

    Raises:
        DreamBoothError: the folder holds a run of other settings, images, base model or rank (all differing
            ones are named), or a checkpoint that can't be read.
        FloatingPointError: a loss or gradient is not finite; names the step and keeps the last checkpoint.
    """
    folder = Path(folder)
    check_bucket_step(settings.buckets, model)
    settings, notices = settle_settings(settings, model.device)
    notices += tell_identifier(model.pipeline.tokenizer, settings.identifier)
    notices += tell_images(images, settings) + tell_fit(images.buckets)
    described = describe_training(model, images, settings, plan)
    check_folder(folder, described)
    steps = plan_steps(images.sizes(is_class=False), images.sizes(is_class=True), settings)
    trainer, adapted = _prepare(model, images, settings, plan)
    history = _resume(folder, trainer)
    resumed, start = len(history), time.perf_counter()
    rate_of = _rate_schedule(trainer, len(steps))
    _set_mode(model, settings, is_training=True)
    for number in range(resumed, len(steps)):
        row = _train_step(trainer, steps[number], number, rate_of(number), folder)
        history.append(row)
        is_last = number + 1 == len(steps)
        if is_last or (number + 1) % settings.save_every == 0:
            _save(folder, trainer, described, history)
        if on_step:
            on_step(row, len(steps))
        if on_sample and sample_every and ((number + 1) % sample_every == 0 or is_last):
            _sample(trainer, model, settings, number + 1, on_sample)
    _set_mode(model, settings, is_training=False)
    seconds = time.perf_counter() - start
    if trainer.accelerator.is_main_process:
        _write_results(folder, model, described, history)
    trainer.accelerator.wait_for_everyone()
    return DreamBoothRun(
        folder / LORA,
        _tabulate(history),
        seconds,
        resumed,
        count_buckets(images.buckets),
        adapted,
        notices,
    )


def settle_settings(settings: DreamBoothSettings, device: str) -> tuple[DreamBoothSettings, list[str]]:
    """Replace what this machine does not have (half precision on a processor, bitsandbytes), and tell it."""
    notices = []
    if settings.precision != "no" and not device.startswith("cuda"):
        settings = replace(settings, precision="no")
        notices.append("a processor trains in float32, not in half precision")
    if settings.optimiser == "adamw8bit" and not (device.startswith("cuda") and find_spec("bitsandbytes")):
        settings = replace(settings, optimiser="adamw")
        notices.append("plain AdamW in place of the 8-bit one, which needs bitsandbytes and a GPU")
    return settings, notices


def tell_images(images: TrainingImages, settings: DreamBoothSettings) -> list[str]:
    """What a user must know about how many images there are."""
    notices, count = [], images.count(is_class=False)
    if count == 1:
        notices.append("there is one instance image: the adapter will learn it by heart")
    if not images.count(is_class=True):
        notices.append(
            f"prior preservation is off (prior_weight {settings.prior_weight}, no regularisation image): the "
            "class word drifts towards the instance images"
        )
    return notices


def _prepare(
    model: TextToImage, images: TrainingImages, settings: DreamBoothSettings, plan: LoraPlan
) -> tuple[_Trainer, LoraCounts]:
    """Cache latents, attach the adapter, and hand everything to accelerate."""
    from accelerate import Accelerator

    pipeline = model.pipeline
    latents = cache_latents(model, images)
    tokens = tokenise_prompts(model, [settings.instance_prompt, settings.class_prompt])
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        adapted = attach_lora(pipeline.unet, pipeline.text_encoder, plan)
    parameters = _collect_parameters(pipeline)
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=model.device == "cpu")
    denoiser = Denoiser(pipeline.unet, pipeline.text_encoder, model.clip_skip)
    denoiser, optimiser = accelerator.prepare(denoiser, _make_optimiser(parameters, settings))
    schedule = make_noise_schedule(model)
    weights = weigh_noise_levels(schedule.alphas_cumprod, settings.gamma, model.prediction)
    trainer = _Trainer(
        accelerator,
        denoiser,
        optimiser,
        parameters,
        settings,
        latents,
        images.items["is_class"].tolist(),
        tokens,
        weights,
        schedule,
    )
    return trainer, adapted


def _collect_parameters(pipeline: object) -> nn.ParameterDict:
    """The adapter's parameters by name, U-Net and text encoder (a name of a ParameterDict has no dots)."""
    networks = pipeline.unet, pipeline.text_encoder
    names = [name.replace(".", "/") for name in read_lora(*networks)]
    parameters = [parameter for network in networks for parameter in lora_parameters(network)]
    return nn.ParameterDict(dict(zip(names, parameters, strict=True)))


def _make_optimiser(parameters: nn.ParameterDict, settings: DreamBoothSettings) -> torch.optim.Optimizer:
    if settings.optimiser == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as AdamW
    else:
        from torch.optim import AdamW
    return AdamW(list(parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _rate_schedule(trainer: _Trainer, count: int) -> Callable[[int], float]:
    """The learning rate of a step, from 0: a function of the step alone, so there is no state to store."""
    settings = trainer.settings
    schedule = get_scheduler(
        "cosine_with_restarts",
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=count,
        scheduler_specific_kwargs={"num_cycles": settings.restarts},
    )
    return lambda step: settings.learning_rate * schedule.lr_lambdas[0](step)


def _set_mode(model: TextToImage, settings: DreamBoothSettings, is_training: bool) -> None:
    """Training mode with gradient checkpointing, or ready to make pictures."""
    unet, text_encoder = model.pipeline.unet, model.pipeline.text_encoder
    for part in (unet, text_encoder):
        part.train(is_training)
    if settings.gradient_checkpointing and is_training:
        unet.enable_gradient_checkpointing()
        text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
    elif settings.gradient_checkpointing:
        unet.disable_gradient_checkpointing()
        text_encoder.gradient_checkpointing_disable()


def _make_inputs(trainer: _Trainer, positions: Sequence[int], images: Sequence[int], number: int) -> _Inputs:
    """Draw noise, noise level and latents for some places of a step's batch."""
    device, latents, noises, times = trainer.accelerator.device, [], [], []
    step_seed = image_seed(trainer.settings.seed, number)
    levels = len(trainer.level_weights)
    for position, image in zip(positions, images, strict=True):
        generator = torch.Generator().manual_seed(image_seed(step_seed, position))
        mean, deviation = trainer.latents[image]
        latents.append(mean + deviation * torch.randn(mean.shape, generator=generator))
        noises.append(torch.randn(mean.shape, generator=generator))
        times.append(int(torch.randint(levels, (), generator=generator)))
    clean, noise, level = torch.stack(latents), torch.stack(noises), torch.tensor(times)
    is_class = torch.tensor([trainer.is_class[image] for image in images])
    is_epsilon = trainer.schedule.config.prediction_type == "epsilon"
    weights = trainer.level_weights[level] * torch.where(is_class, trainer.settings.prior_weight, 1.0)
    inputs = _Inputs(
        trainer.schedule.add_noise(clean, noise, level),
        level,
        trainer.tokens[is_class.long()],
        noise if is_epsilon else trainer.schedule.get_velocity(clean, noise, level),
        weights,
        is_class,
    )
    return _Inputs(*(part.to(device) for part in inputs))


def _train_step(trainer: _Trainer, step: Step, number: int, rate: float, folder: Path) -> dict:
    """One step on this process's share of the batch; the row of the history."""
    accelerator, settings = trainer.accelerator, trainer.settings
    count, processes = len(step.images), accelerator.num_processes
    mine = list(range(accelerator.process_index, count, processes))
    idle = not mine  # more processes than images: take part, but count for nothing
    positions = mine or [0]
    inputs = _make_inputs(trainer, positions, [step.images[position] for position in positions], number)
    for group in trainer.optimiser.param_groups:
        group["lr"] = rate
    trainer.optimiser.zero_grad()
    predicted = trainer.denoiser(inputs.noisy, inputs.times, inputs.tokens).float()
    errors = inputs.weights * (predicted - inputs.target).square().mean(dim=(1, 2, 3)) * (not idle)
    accelerator.backward(errors.sum() / count * processes)
    norm = _clip_gradients(trainer)
    sums = torch.stack([errors.detach().sum(), (errors.detach() * inputs.is_class).sum()])
    counts = torch.tensor([count, sum(trainer.is_class[image] for image in step.images)])
    total, of_class = accelerator.reduce(sums, "sum").tolist()
    row = {
        "step": number + 1,
        "epoch": step.epoch,
        "loss": total / count,
        "loss_instance": _mean(total - of_class, int(counts[0] - counts[1])),
        "loss_class": _mean(of_class, int(counts[1])),
        "learning_rate": rate,
        "gradient_norm": norm,
    }
    _check_finite(row, settings, folder)
    trainer.optimiser.step()
    return row


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


def _clip_gradients(trainer: _Trainer) -> float:
    limit = trainer.settings.max_gradient_norm or float("inf")
    return float(trainer.accelerator.clip_grad_norm_(list(trainer.parameters.values()), limit))


def _check_finite(row: dict, settings: DreamBoothSettings, folder: Path) -> None:
    """Stop at the first value that is no number; fp16's loss scaling skips single such gradients itself."""
    names = ["loss"] if settings.precision == "fp16" else ["loss", "gradient_norm"]
    broken = [name for name in names if not torch.tensor(row[name]).isfinite()]
    if broken:
        raise FloatingPointError(
            f"{folder}: {' and '.join(broken)} of step {row['step']} (epoch {row['epoch']}) is no number: "
            f"the learning rate {row['learning_rate']:.3g} may be too high, or the base model holds values "
            "that are no numbers; the last checkpoint is kept"
        )


def _tabulate(history: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(history, columns=HISTORY_COLUMNS)


def _scaler(trainer: _Trainer) -> torch.amp.GradScaler | None:
    return getattr(trainer.accelerator, "scaler", None)


def _bare_optimiser(trainer: _Trainer) -> torch.optim.Optimizer:
    """The optimiser without accelerate's wrap."""
    return getattr(trainer.optimiser, "optimizer", trainer.optimiser)


def _save(folder: Path, trainer: _Trainer, described: dict, history: list[dict]) -> None:
    """Replace the checkpoint; a kill or a full disk leaves the former one."""
    if trainer.accelerator.is_main_process:
        scaler = _scaler(trainer)
        save_checkpoint(
            folder / CHECKPOINT,
            trainer.parameters,
            _bare_optimiser(trainer),
            described,
            history,
            scaler.state_dict() if scaler else None,
        )
        write_csv(_tabulate(history), folder / HISTORY)
    trainer.accelerator.wait_for_everyone()


def _resume(folder: Path, trainer: _Trainer) -> list[dict]:
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    if checkpoint is None:
        return []
    restore_checkpoint(checkpoint, trainer.parameters, _bare_optimiser(trainer))
    scaler = _scaler(trainer)
    if scaler and checkpoint.scaler:
        scaler.load_state_dict(checkpoint.scaler)
    return list(checkpoint.history)


def _sample(
    trainer: _Trainer,
    model: TextToImage,
    settings: DreamBoothSettings,
    finished: int,
    on_sample: Callable[[int], None],
) -> None:
    """Let the caller make pictures with the model as it is now."""
    if trainer.accelerator.is_main_process:
        _set_mode(model, settings, is_training=False)
        on_sample(finished)
        _set_mode(model, settings, is_training=True)
    trainer.accelerator.wait_for_everyone()


def _write_results(folder: Path, model: TextToImage, described: dict, history: list[dict]) -> None:
    write_csv(_tabulate(history), folder / HISTORY)
    metadata = {"training": json.dumps(described, sort_keys=True)}
    save_lora(folder / LORA, model.pipeline.unet, model.pipeline.text_encoder, metadata)


CHECKPOINT = "checkpoint.safetensors"


def describe_training(
    model: TextToImage, images: TrainingImages, settings: DreamBoothSettings, plan: LoraPlan
) -> dict:
    """Everything that the trained adapter depends on, as JSON values."""
    return {
        "base": model.describe()["fingerprint"],
        "clip_skip": model.clip_skip,
        "dreambooth": asdict(settings),
        "lora": asdict(plan),
        "trained_on": images.describe(),
    }


def check_folder(folder: Path, described: dict) -> None:
    """Refuse to go on with, or to overwrite, a run that is another one.

    Args:
        folder: of the run.
        described: see `describe_training`.

    Raises:
        DreamBoothError: names every value that differs, or the checkpoint can't be read.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return
    checkpoint = read_checkpoint(path)
    if checkpoint is None:
        raise DreamBoothError(f"{path} can't be read (damaged?): delete it to train again")
    differing = _differing(checkpoint.settings, _as_json(described))
    if differing:
        raise DreamBoothError(
            f"{folder} holds a fine-tuning with other {', '.join(differing)}: delete the folder to train "
            "again, or choose another one"
        )


def _as_json(described: dict) -> dict:
    return json.loads(json.dumps(described))


def _differing(found: dict, asked: dict, prefix: str = "") -> list[str]:
    names = []
    for name in sorted({*found, *asked}):
        one, other = found.get(name), asked.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            names += _differing(one, other, f"{prefix}{name}.")
        elif one != other:
            names.append(f"{prefix}{name} ({_short(one)}, asked for {_short(other)})")
    return names


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


_STEP = re.compile(r"step-(\d+)")


def keep_sample(
    folder: Path | str, step: int, model: TextToImage, jobs: Sequence[TextJob], settings: TextSettings
) -> list[np.ndarray]:
    """Store adapter and sample pictures of a step; for `on_sample` of `train_dreambooth`.

    A step that was kept before a run was interrupted is still there when it goes on.

    Args:
        folder: of the fine-tuning; `steps/` in it is where they go.
        step: number of finished steps.
        model: with the adapter beside its weights, as in training (α = 1).
        jobs: what to draw.
        settings: how.

    Returns:
        The pictures, one a job.
    """
    target = _steps_folder(folder) / f"step-{step:06d}"
    images = generate_images(model, jobs, settings)
    for place, image_u8 in enumerate(images):
        write_png(target / f"{place:03d}.png", image_u8)
    save_lora(target / "lora.safetensors", model.pipeline.unet, model.pipeline.text_encoder)
    return images


def list_adapters(folder: Path | str) -> dict[int, Path]:
    """Adapters that were kept, by the number of finished steps, in their order."""
    return {
        int(_STEP.fullmatch(path.parent.name)[1]): path
        for path in sorted(_steps_folder(folder).glob("step-*/lora.safetensors"))
    }


def read_samples(folder: Path | str) -> dict[int, list[np.ndarray]]:
    """Sample pictures that were kept, by the number of finished steps; each (height, width, 3), uint8."""
    return {
        step: [read_image(path) for path in sorted(adapter.parent.glob("*.png"))]
        for step, adapter in list_adapters(folder).items()
    }


def _steps_folder(folder: Path | str) -> Path:
    return Path(folder) / "steps"
