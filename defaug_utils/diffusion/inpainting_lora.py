"""An adapter that teaches an inpainting U-Net the defects of one product, from a few images with masks.

The book's own union of In&Out's adapter (Capogrosso et al. 2024, section 3.2) and DIAG's inpainting (Girella
et al., CBMI 2024).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from defaug_utils.core.guards import check_demands, collect_problems, raise_problems
from defaug_utils.core.manifest import ManifestError, image_seed
from defaug_utils.core.prompts import check_prompts
from defaug_utils.diffusion.autoencoder import draw_noise, encode_images, to_floats
from defaug_utils.diffusion.compositing import choose_box, cover_cells, cut_out
from defaug_utils.diffusion.inpainting import Inpainter
from defaug_utils.diffusion.loading import ModelError
from defaug_utils.diffusion.lora import (
    LoraCount,
    LoraPlan,
    attach_layers,
    lora_parameters,
    merge_lora,
    plan_layers,
)
from defaug_utils.diffusion.lora_files import save_lora
from defaug_utils.diffusion.text2image import choose_target, make_ddim
from defaug_utils.masks.patches import hash_masked, list_masked_positives, read_masked
from defaug_utils.masks.trimaps import write_prompt
from defaug_utils.training.loop import OnStep, StepPlan, Training, open_accelerator, run_steps, share_batches

LORA = "lora.safetensors"
INPAINTING_CHANNELS = 9  # latents, mask, and latents of the masked image


class MaskedDefect(NamedTuple):
    """A real defect to learn from: image (height, width, 3), uint8; mask (height, width), bool; prompt."""

    image_u8: np.ndarray
    mask: np.ndarray
    prompt: str
    name: str


@dataclass(frozen=True)
class InpaintingLoraSettings:
    """How the adapter is trained."""

    size: tuple[int, int]  #: working size (width, height), as in `InpaintSettings`
    padding_mask_crop: int | None = (
        None  #: as in `InpaintSettings`, so that training and painting see the same
    )
    batch_size: int = 4  #: images per step, shared by all processes
    learning_rate: float = 1e-4  #: of AdamW
    flips: bool = True  #: whether images are also mirrored, left to right and top to bottom
    seed: int = 0  #: of the adapter, the images, the times and the noise

    def __post_init__(self) -> None:
        demands = {
            f"batch_size {self.batch_size} must be 1 or more": self.batch_size >= 1,
            f"learning_rate {self.learning_rate} must be above 0": self.learning_rate > 0,
            f"seed {self.seed} must not be negative": self.seed >= 0,
        }
        check_demands("tuning of the inpainting model", demands)


class InpaintingLoraRun(NamedTuple):
    """A finished training; the model carries the adapter, not yet merged."""

    lora: Path  #: the adapter, in kohya's format
    history: pd.DataFrame  #: from `run_steps`
    resumed_steps: int
    adapted: LoraCount


def read_masked_defects(known: pd.DataFrame, data_folder: Path | str, template: str) -> list[MaskedDefect]:
    """The known positives that have a mask, with prompts from a template.

    Raises a ManifestError if none has, or lists files that can't be read and masks of another size.
    """
    advice = "draw masks for them (chapter 10 has a canvas), or leave this arm out"
    rows, folder = list_masked_positives(known, data_folder, advice), Path(data_folder)
    defects, problems = [], []
    for row in rows.itertuples():
        with collect_problems(problems):
            prompt = write_prompt(template, row.category, row.defect_type)
            defects.append(MaskedDefect(*read_masked(row, folder), prompt, row.image))
    raise_problems(f"defects in {data_folder}", problems, ManifestError)
    return defects


def train_inpainting_lora(
    inpainter: Inpainter,
    defects: Sequence[MaskedDefect],
    folder: Path | str,
    settings: InpaintingLoraSettings,
    lora: LoraPlan | None = None,
    plan: StepPlan | None = None,
    on_step: OnStep | None = None,
) -> InpaintingLoraRun:
    """Train an adapter for the U-Net, or resume an earlier call with the same settings.

    Masks are fixed, so the autoencoder and the text encoder run once per image. The loss is the mean of the
    squared error inside the masks' latent cells and that of the whole image. All random numbers come from
    (seed, position): several processes, or a resumed run, see the same as an uninterrupted one.

    Args:
        inpainter: freshly loaded, with a U-Net of nine channels and one text encoder.
        folder: for the checkpoint, `history.csv`, and at the end `lora.safetensors`.

    Raises:
        ModelError: the model has another architecture.
        ValueError: size, prompts, or the division among processes don't work; see also `run_steps`.
    """
    folder, lora, plan = Path(folder), lora or LoraPlan(), plan or StepPlan(500)
    unet = _check_model(inpainter)
    inpainter.check_size(settings.size)
    check_prompts(inpainter, [defect.prompt for defect in defects])
    accelerator = open_accelerator(plan.precision, inpainter.device)
    place_batch = share_batches(settings.batch_size, "images", accelerator)
    examples = cache_examples(inpainter, defects, settings)
    described = {
        **asdict(settings),
        "model": inpainter.describe(),
        "lora": asdict(lora),
        "precision": plan.precision,
        "defects": {"names": [defect.name for defect in defects], "sha256": hash_masked(defects)},
    }
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        adapted = attach_layers(unet, plan_layers(unet, lora))
    weights = {name.replace(".", "/"): weight for name, weight in lora_parameters(unet).items()}
    kept = nn.ParameterDict(weights).float()
    scheduler = make_ddim(inpainter)

    def compute_loss(trained: nn.Module, step: int, part: slice) -> Tensor:
        places = place_batch(step)
        seeds = [image_seed(settings.seed, place) for place in places[part]]
        return _measure_loss(trained, scheduler, examples, seeds) * (len(seeds) / len(places))

    optimiser = torch.optim.AdamW(list(kept.values()), settings.learning_rate)
    training = Training(
        *(unet, optimiser, compute_loss, accelerator),
        largest_gradient=1.0,
        kept=kept,
        divisible=len(place_batch(0)),
    )
    run = run_steps(training, plan, folder, described, on_step)
    unet.eval()
    if accelerator.is_main_process:
        metadata = {"training": json.dumps(described, sort_keys=True)}
        save_lora(folder / LORA, unet, inpainter.pipeline.text_encoder, metadata)
    accelerator.wait_for_everyone()
    return InpaintingLoraRun(folder / LORA, run.history, run.resumed_steps, adapted)


def merge_inpainting_lora(inpainter: Inpainter, share: float = 1.0) -> None:
    """Merge the model's adapter into its weights, see `merge_lora`."""
    merge_lora(inpainter.denoiser, inpainter.pipeline.text_encoder, share)


def _check_model(inpainter: Inpainter) -> nn.Module:
    """The U-Net that can be tuned, or a ModelError that says why there is none."""
    pipeline, channels = inpainter.pipeline, inpainter.denoiser.config.in_channels
    has_one_text_encoder = getattr(pipeline, "text_encoder_2", None) is None
    if not hasattr(pipeline, "unet") or channels != INPAINTING_CHANNELS or not has_one_text_encoder:
        raise ModelError(
            f"{inpainter.model} ({inpainter.family.label}, {channels} channels) can't be tuned: expected "
            f"an inpainting U-Net with {INPAINTING_CHANNELS} channels and one text encoder, such as Stable "
            "Diffusion 1.5's or 2's inpainting model"
        )
    return pipeline.unet


class Example(NamedTuple):
    """What a step needs of an image; latents (channels, height, width), cells (1, height, width)."""

    clean: Tensor
    cells: Tensor  #: 1 on the latent cells that the mask touches
    masked: Tensor  #: latents of the image with the masked cells in grey
    text: Tensor  #: embedded prompt (tokens, width)


@torch.no_grad()
def cache_examples(
    inpainter: Inpainter, defects: Sequence[MaskedDefect], settings: InpaintingLoraSettings
) -> list[Example]:
    """Images and masks as the pipeline would prepare them, also mirrored if the settings say so."""
    pipeline, examples = inpainter.pipeline, []
    axes = [(), (1,), (0,), (0, 1)] if settings.flips else [()]
    for defect in defects:
        box = choose_box(defect.mask, settings.size, settings.padding_mask_crop)
        image_u8, mask = cut_out(defect.image_u8, defect.mask, box, settings.size)
        text = pipeline.encode_prompt(defect.prompt, inpainter.device, 1, False)[0][0]
        for flipped in axes:
            turned = np.flip(image_u8, flipped).copy() if flipped else image_u8
            cover = cover_cells(np.flip(mask, flipped).copy() if flipped else mask, inpainter.cell)
            image = to_floats([turned]).to(inpainter.device)
            covered = torch.from_numpy(cover)[None, None].to(inpainter.device)
            latents = [encode_images(pipeline.vae, one)[0] for one in (image, image * ~covered)]
            cells = covered[0, :, :: inpainter.cell, :: inpainter.cell].float()
            examples.append(Example(latents[0], cells, latents[1], text))
    return examples


def _measure_loss(
    unet: nn.Module, scheduler: object, examples: Sequence[Example], seeds: Sequence[int]
) -> Tensor:
    """Mean loss of a batch; each seed draws an example, its time and its noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = [examples[int(torch.randint(len(examples), (), generator=one))] for one in generators]
    clean, cells, masked, text = (torch.stack(part) for part in zip(*drawn, strict=True))
    levels = scheduler.config.num_train_timesteps
    times = torch.stack([torch.randint(levels, (), generator=one) for one in generators]).to(clean.device)
    noise = draw_noise(generators, clean)
    target = choose_target(scheduler, clean, noise, times)
    inputs = torch.cat([scheduler.add_noise(clean, noise, times), cells, masked], dim=1)
    predicted = unet(inputs.to(text.dtype), times, text).sample.float()
    errors = (predicted - target).square().mean(dim=1, keepdim=True)
    inside = (errors * cells).sum(dim=(1, 2, 3)) / cells.sum(dim=(1, 2, 3))
    return (inside.mean() + errors.mean()) / 2
