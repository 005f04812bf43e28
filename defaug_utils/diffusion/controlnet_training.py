"""Training a trimap ControlNet on triples made on the fly (AdaBLDM, section 3.2)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from defaug_utils.core.guards import check_demands
from defaug_utils.core.manifest import image_seed
from defaug_utils.diffusion.autoencoder import encode_images, to_floats
from defaug_utils.diffusion.controlnet import (
    embed_prompts,
    make_controlnet,
    make_ddim,
    predict,
    save_controlnet,
    to_conditioning,
)
from defaug_utils.diffusion.text2image import TextToImage
from defaug_utils.masks.trimaps import TRIPLES, Triple, TripleSet
from defaug_utils.training.loop import OnStep, StepDone, StepPlan, Training, open_accelerator, run_steps

LEARNING_RATE = 1e-5  # AdaBLDM, section 4.1
BATCH_SIZE = 4  # AdaBLDM, section 4.1
EPOCHS = 10  # AdaBLDM, section 4.1
PAPER_PLAN = StepPlan(TRIPLES * EPOCHS // BATCH_SIZE)


@dataclass(frozen=True)
class ControlNetSettings:
    """How a ControlNet is trained; the defaults are AdaBLDM's.

    Attributes:
        batch_size: triples a step, shared by all processes.
        learning_rate: of AdamW.
        seed: of the new layers, the times and the noise.
    """

    batch_size: int = BATCH_SIZE
    learning_rate: float = LEARNING_RATE
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that make no sense, all in one message."""
        demands = {
            f"batch_size {self.batch_size} must be 1 or more": self.batch_size >= 1,
            f"learning_rate {self.learning_rate} must be above 0": self.learning_rate > 0,
            f"seed {self.seed} must not be negative": self.seed >= 0,
        }
        check_demands("training of the ControlNet", demands)


@dataclass
class ControlNetRun:
    """A finished training.

    Attributes:
        controlnet: in evaluation mode.
        history: one row a checkpoint: step, loss (mean since the last one), seconds.
        resumed_steps: how many an earlier run had done.
    """

    controlnet: nn.Module
    history: pd.DataFrame
    resumed_steps: int


def train_controlnet(
    model: TextToImage,
    triples: TripleSet,
    folder: Path | str,
    settings: ControlNetSettings | None = None,
    plan: StepPlan = PAPER_PLAN,
    on_step: OnStep | None = None,
    on_samples: Callable[[int, nn.Module], None] | None = None,
) -> ControlNetRun:
    """Train a ControlNet beside the frozen model, or go on where an earlier run stopped.

    Triple p of the run, and its time and noise, depend on the seed and p alone. On one processor the
    result repeats exactly, interrupted or not, for the same number of threads and versions.

    Args:
        model: from `load_text2image`; stays as it is.
        triples: at a size that suits the model.
        folder: for the checkpoint, `history.csv` and, in the end, `controlnet/` in diffusers' layout.
        settings: the paper's when None.
        plan: steps, checkpoints and precision.
        on_step: called after each step, see `run_steps`.
        on_samples: called after each checkpoint with the steps and the ControlNet, such as to draw a grid.

    Raises:
        ValueError: size or prompts don't suit the model, the batch is not divisible by the processes, or
            the folder holds a training with other settings.
        FloatingPointError: a loss is no number; the last checkpoint is kept.
    """
    settings, folder = settings or ControlNetSettings(), Path(folder)
    accelerator = open_accelerator(plan.precision, model.device)
    processes = accelerator.num_processes
    if settings.batch_size % processes:
        raise ValueError(f"batch_size {settings.batch_size} is not divisible by {processes} processes")
    controlnet = make_controlnet(model, settings.seed)
    for part in (model.pipeline.unet, model.pipeline.vae, model.pipeline.text_encoder):
        part.requires_grad_(False).eval()
    scheduler, share = make_ddim(model), settings.batch_size // processes

    def compute_loss(trained: nn.Module, step: int) -> Tensor:
        first = step * settings.batch_size + accelerator.process_index * share
        positions = range(first, first + share)
        batch = [triples[position % len(triples)] for position in positions]
        seeds = [image_seed(settings.seed, position) for position in positions]
        return measure_loss(model, trained, scheduler, batch, seeds)

    def tell(done: StepDone) -> None:
        if on_step:
            on_step(done)
        if on_samples and done.is_saved and accelerator.is_main_process:
            on_samples(done.step, controlnet.eval())

    optimiser = torch.optim.AdamW(controlnet.parameters(), settings.learning_rate)
    described = asdict(settings) | {"model": model.describe(), "triples": triples.describe()}
    demanded = described | {"precision": plan.precision, "processes": processes}
    training = Training(controlnet, optimiser, compute_loss, accelerator)
    run = run_steps(training, plan, folder, demanded, tell)
    if accelerator.is_main_process:
        metadata = {"base": model.describe()["fingerprint"], "steps": plan.steps} | described
        save_controlnet(controlnet, folder / "controlnet", metadata | {"trained_on": triples.list_names()})
    return ControlNetRun(controlnet.eval(), run.history, run.resumed_steps)


def measure_loss(
    model: TextToImage,
    controlnet: nn.Module,
    scheduler: Any,
    triples: list[Triple],
    seeds: list[int],
) -> Tensor:
    """Mean squared error of what the U-Net predicts, noise or velocity, on noised triples.

    Args:
        model: the frozen one.
        controlnet: the trained one.
        scheduler: the model's noise schedule.
        triples: the batch.
        seeds: one a triple, of its time and noise.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    count = scheduler.config.num_train_timesteps
    with torch.no_grad():
        images = to_floats([triple.image_u8 for triple in triples]).to(model.device)
        clean = encode_images(model.pipeline.vae, images)
        noise = torch.cat([torch.randn((1, *clean.shape[1:]), generator=one) for one in generators]).to(clean)
        times = torch.cat([torch.randint(count, (1,), generator=one) for one in generators]).to(model.device)
        is_velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(clean, noise, times) if is_velocity else noise
        texts = embed_prompts(model, [triple.prompt for triple in triples])
        empty = embed_prompts(model, [""] * len(triples))
    conditioning = to_conditioning([triple.trimap_u8 for triple in triples]).to(clean)
    noised = scheduler.add_noise(clean, noise, times)
    (predicted,) = predict(model, controlnet, noised, times, conditioning, empty.to(clean), [texts])
    return mse_loss(predicted.float(), target)
