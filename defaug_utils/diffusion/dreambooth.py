"""DreamBooth (Ruiz et al. 2023) with In&Out's LoRA adapter (Capogrosso et al. 2024), resumed exactly."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import get_cosine_with_hard_restarts_schedule_with_warmup

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import image_seed
from defaug_utils.diffusion import dreambooth_plan, text2image, training_images
from defaug_utils.diffusion.dreambooth_plan import DreamBoothSettings
from defaug_utils.diffusion.lora import LoraCounts, LoraPlan, attach_lora, lora_parameters
from defaug_utils.diffusion.lora_files import save_lora
from defaug_utils.diffusion.text2image import TextJob, TextSettings, TextToImage
from defaug_utils.diffusion.training_images import TrainingImages
from defaug_utils.training import loop

if TYPE_CHECKING:
    from accelerate import Accelerator

LORA = "lora.safetensors"


@dataclass(frozen=True)
class DreamBoothRun:
    """A finished fine-tuning; the model carries the trained adapter."""

    lora: Path  #: the adapter
    #: one row per step: step (from 1), epoch, loss, loss_instance and loss_class (means over their images,
    #: missing if a step has none), learning_rate, gradient_norm
    history: pd.DataFrame
    resumed_steps: int  #: steps from an earlier call
    buckets: pd.DataFrame  #: see `count_buckets`
    adapted: LoraCounts  #: layers and parameters of the adapter
    notices: list[str]  #: notices for the user


class KeptSample(NamedTuple):
    """Adapter and sample images, (height, width, 3), uint8, at a step of fine-tuning."""

    adapter: Path
    images_u8: list[np.ndarray]


class Denoiser(nn.Module):
    """U-Net and text encoder as one module, so that several processes synchronise both."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, clip_skip: int) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.clip_skip = unet, text_encoder, clip_skip

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """The U-Net's prediction for noisy latents (batch channels height width)."""
        embedded = text2image.embed_tokens(self.text_encoder, tokens, self.clip_skip)
        return self.unet(noisy, times, embedded).sample


class _Trainer(NamedTuple):
    """Everything that a step is computed from."""

    accelerator: "Accelerator"
    settings: DreamBoothSettings
    steps: list[dreambooth_plan.Step]
    latents: list[tuple[Tensor, Tensor]]
    is_class: Tensor
    tokens: Tensor
    level_weights: Tensor
    schedule: Any


def train_dreambooth(
    model: TextToImage,
    images: TrainingImages,
    folder: Path | str,
    settings: DreamBoothSettings,
    plan: LoraPlan,
    on_step: loop.OnStep | None = None,
    on_sample: Callable[[int], None] | None = None,
    sample_times: int = 1,
) -> DreamBoothRun:
    """Fine-tune a model with an adapter, or resume an earlier call with the same settings.

    All random numbers of a step come from (seed, step, position in the batch). On one machine, a resumed run
    has the losses of an uninterrupted one, and several processes see the same as a single one.

    Args:
        model: freshly loaded, without an adapter; it has the trained one afterwards.
        folder: for `checkpoint.safetensors`, `lora.safetensors` and `history.csv`.
        on_step: see `run_steps`; its numbers are the step's row of the history.
        on_sample: called with the number of finished steps, when the model can generate images.
        sample_times: number of these calls, evenly spaced; the last one is at the end.

    Raises:
        DreamBoothError: the folder contains a run with other settings (all are listed) or a bad checkpoint.
        FloatingPointError: a loss or gradient is not finite; the last checkpoint is kept.
    """
    folder, lora = Path(folder), Path(folder) / LORA
    training_images.check_bucket_step(settings.buckets, model)
    settings, notices = dreambooth_plan.settle_settings(settings, model.device)
    notices += dreambooth_plan.tell_identifier(model.pipeline.tokenizer, settings.identifier)
    notices += dreambooth_plan.tell_images(images, settings) + training_images.tell_fit(images.buckets)
    described = {
        "base": model.describe()["fingerprint"],
        "clip_skip": model.clip_skip,
        "dreambooth": settings.describe(),
        "lora": asdict(plan),
        "trained_on": images.describe(),
    }
    loop.check_training(folder, described, training_images.DreamBoothError)
    training, adapted, count = _prepare(model, images, settings, plan)

    def tell(done: loop.StepDone) -> None:
        if on_step:
            on_step(done)
        if on_sample and (done.step % -(-count // sample_times) == 0 or done.step == count):
            if accelerator.is_main_process:
                _set_mode(model, settings, is_training=False)
                on_sample(done.step)
                _set_mode(model, settings, is_training=True)
            accelerator.wait_for_everyone()

    accelerator = training.accelerator
    _set_mode(model, settings, is_training=True)
    step_plan = loop.StepPlan(count, settings.save_every, settings.precision, row="step", is_final=True)
    run = loop.run_steps(training, step_plan, folder, described, tell)
    _set_mode(model, settings, is_training=False)
    if accelerator.is_main_process:
        metadata = {"training": json.dumps(described, sort_keys=True)}
        save_lora(lora, model.pipeline.unet, model.pipeline.text_encoder, metadata)
    accelerator.wait_for_everyone()
    buckets = training_images.count_buckets(images.buckets)
    return DreamBoothRun(lora, run.history, run.resumed_steps, buckets, adapted, notices)


def _prepare(
    model: TextToImage, images: TrainingImages, settings: DreamBoothSettings, plan: LoraPlan
) -> tuple[loop.Training, LoraCounts, int]:
    """Cache latents and attach the adapter; return what is trained, the adapter's size and the steps."""
    pipeline = model.pipeline
    latents = training_images.cache_latents(model, images)
    tokens = text2image.tokenise_prompts(model, [settings.instance_prompt, settings.class_prompt])
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        adapted = attach_lora(pipeline.unet, pipeline.text_encoder, plan)
    parameters = nn.ParameterDict(
        {
            f"{network}.{name}".replace(".", "/"): parameter  # a name of a ParameterDict has no dots
            for network in ("unet", "text_encoder")
            for name, parameter in lora_parameters(getattr(pipeline, network)).items()
        }
    ).float()
    steps = dreambooth_plan.plan_steps(images.sizes(is_class=False), images.sizes(is_class=True), settings)
    schedule = text2image.make_ddim(model)
    weights = dreambooth_plan.weigh_noise_levels(schedule.alphas_cumprod, settings.gamma, model.prediction)
    skips_layers = model.clip_skip > 1  # of the text encoder, whose adapters then stay as they are
    accelerator = loop.open_accelerator(settings.precision, model.device, skips_layers)
    if accelerator.num_processes > settings.batch_size:
        raise training_images.DreamBoothError(
            f"{accelerator.num_processes} processes share the {settings.batch_size} images of a step "
            f"(batch_size): use at most {settings.batch_size} processes"
        )
    is_class = torch.tensor(images.items["is_class"].to_numpy())
    trainer = _Trainer(accelerator, settings, steps, latents, is_class, tokens, weights, schedule)
    training = loop.Training(
        Denoiser(pipeline.unet, pipeline.text_encoder, model.clip_skip),
        _make_optimiser(parameters, settings),
        lambda denoiser, number, part: _compute_loss(trainer, denoiser, number, part),
        accelerator,
        rate_of=_rate_schedule(settings, len(steps)),
        largest_gradient=settings.max_gradient_norm or float("inf"),
        kept=parameters,
        divisible=settings.batch_size,
    )
    return training, adapted, len(steps)


def _make_optimiser(parameters: nn.ParameterDict, settings: DreamBoothSettings) -> torch.optim.Optimizer:
    if settings.optimiser == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as AdamW
    else:
        from torch.optim import AdamW
    return AdamW(list(parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _rate_schedule(settings: DreamBoothSettings, count: int) -> Callable[[int], float]:
    """The learning rate as a function of the step (from 0), so that there is no state to store."""
    unused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    spanned = count // settings.epochs * (settings.schedule_epochs or settings.epochs)
    schedule = get_cosine_with_hard_restarts_schedule_with_warmup(
        unused, settings.warmup_steps, spanned, settings.restarts
    )
    return lambda step: settings.learning_rate * schedule.lr_lambdas[0](step)


def _set_mode(model: TextToImage, settings: DreamBoothSettings, is_training: bool) -> None:
    """Switch between training mode (with gradient checkpointing) and generation."""
    unet, text_encoder = model.pipeline.unet, model.pipeline.text_encoder
    for part in (unet, text_encoder):
        part.train(is_training)
    if settings.gradient_checkpointing and is_training:
        unet.enable_gradient_checkpointing()
        text_encoder.activation_checkpointing_enable({"use_reentrant": False})
    elif settings.gradient_checkpointing:
        unet.disable_gradient_checkpointing()
        text_encoder.activation_checkpointing_disable()


def _measure_errors(
    trainer: _Trainer, denoiser: nn.Module, positions: Sequence[int], number: int
) -> tuple[Tensor, Tensor]:
    """Weighted errors at positions of a batch, with their own draws, and which are regularisation images."""
    latents, noises, times = [], [], []
    step_seed = image_seed(trainer.settings.seed, number)
    levels, offset = len(trainer.level_weights), trainer.settings.noise_offset
    images = [trainer.steps[number].images[position] for position in positions]
    for position, image in zip(positions, images, strict=True):
        generator = torch.Generator().manual_seed(image_seed(step_seed, position))
        mean, deviation = trainer.latents[image]
        latents.append(mean + deviation * torch.randn(mean.shape, generator=generator))
        noises.append(torch.randn(mean.shape, generator=generator))
        times.append(torch.randint(levels, (), generator=generator))
        if offset:
            noises[-1] += offset * torch.randn((len(mean), 1, 1), generator=generator)
    clean, noise, level = map(torch.stack, (latents, noises, times))
    is_class = trainer.is_class[images]
    weights = trainer.level_weights[level] * torch.where(is_class, trainer.settings.prior_weight, 1.0)
    target = text2image.choose_target(trainer.schedule, clean, noise, level)
    inputs = (trainer.schedule.add_noise(clean, noise, level), level, trainer.tokens[is_class.long()])
    device = trainer.accelerator.device
    predicted = denoiser(*(part.to(device) for part in inputs)).float()
    errors = weights.to(device) * (predicted - target.to(device)).square().mean(dim=(1, 2, 3))
    return errors, is_class.to(device)


def _compute_loss(trainer: _Trainer, denoiser: nn.Module, number: int, part: slice) -> loop.StepLoss:
    """One step on a part of this process's share of the batch."""
    accelerator, step = trainer.accelerator, trainer.steps[number]
    count, processes = len(step.images), accelerator.num_processes
    mine = list(range(accelerator.process_index, count, processes))[part]
    errors, is_class = _measure_errors(trainer, denoiser, mine or [0], number)
    errors = errors * bool(mine)  # more processes or parts than images: take part with weight 0
    sums = torch.stack([errors.detach().sum(), (errors.detach() * is_class).sum()])
    total, of_class = accelerator.reduce(sums, "sum").tolist()
    class_count = int(trainer.is_class[list(step.images)].sum())
    numbers = {
        "epoch": step.epoch,
        "loss": total / count,
        "loss_instance": (total - of_class) / (count - class_count) if count > class_count else None,
        "loss_class": of_class / class_count if class_count else None,
    }
    return loop.StepLoss(errors.sum() / count * processes, numbers)


def keep_sample(
    folder: Path | str, step: int, model: TextToImage, jobs: Sequence[TextJob], settings: TextSettings
) -> list[np.ndarray]:
    """Store a step's adapter and sample images (α = 1) in `steps/`, and return the images."""
    target = Path(folder) / "steps" / f"step-{step:06d}"
    images = text2image.generate_images(model, jobs, settings)
    for place, image_u8 in enumerate(images):
        write_png(target / f"{place:03d}.png", image_u8)
    save_lora(target / LORA, model.pipeline.unet, model.pipeline.text_encoder)
    return images


def read_samples(folder: Path | str) -> dict[int, KeptSample]:
    """What `keep_sample` stored, by number of finished steps, in order."""
    kept = {}
    for adapter in sorted((Path(folder) / "steps").glob(f"step-*/{LORA}")):
        pictures = [read_image(path) for path in sorted(adapter.parent.glob("*.png"))]
        kept[int(adapter.parent.name.removeprefix("step-"))] = KeptSample(adapter, pictures)
    return kept
