"""Inpainting with any suitable diffusers model: jobs in batches, with one seed per image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

import numpy as np
import torch

from defaug_utils.core.guards import check_demands, describe_settings
from defaug_utils.core.prompts import check_prompts
from defaug_utils.diffusion import families, loading
from defaug_utils.diffusion.autoencoder import autoencode
from defaug_utils.diffusion.compositing import choose_box, cover_cells, cut_out
from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob, as_pixels, check_jobs, finish_image
from defaug_utils.training.memory import run_in_parts

# A pipeline's arguments for prompts; the pooled ones only for two text encoders.
EMBEDDINGS = [f"{kind}prompt_embeds" for kind in ("", "negative_", "pooled_", "negative_pooled_")]
MAX_TEXTS = 128  # pairs whose embeddings are kept, of Stable Diffusion XL 160 MB


@dataclass(frozen=True)
class InpaintSettings:
    """How a defect is painted; the defaults are DIAG's (section 4 and its code)."""

    size: tuple[int, int] = (1024, 1024)  #: working size (width, height); images are stretched to it
    steps: int = 30  #: of the whole noise schedule; only `effective_steps` of them are run
    guidance: float = 20.0  #: weight of the prompt against the negative one; 1 is none
    strength: float = 0.99  #: how much noise replaces the original, in (0, 1]; SDXL fails at 1
    #: pixels of the working size kept around the mask, 0 for none; None works on the whole image
    padding_mask_crop: int | None = 2
    feather: int = 0  #: pixels inside the mask over which the original fades out
    #: show the model whole latent cells, or thin cracks are missed; only the mask itself is painted
    cover_cells: bool = True
    #: share of what the autoencoder loses of the original's grain that is given back, in 0 … 1
    keep_detail: float = 0.0

    @property
    def effective_steps(self) -> int:
        """Steps that are actually run: steps × strength, rounded down; families with a transformer run one
        more if there is a remainder.
        """
        return int(self.steps * self.strength)

    def describe(self) -> dict:
        """For the recipe of a pool."""
        return describe_settings(self, "keep_detail") | {"effective_steps": self.effective_steps}

    def __post_init__(self) -> None:
        steps, strength, crop = self.steps, self.strength, self.padding_mask_crop
        run = steps * strength
        demands = {
            f"size {self.size} must be (width, height) of at least 8 × 8": min(self.size) >= 8,
            f"steps {steps} must be 1 or more": steps >= 1,
            f"guidance {self.guidance} must be in 1 … 100": 1 <= self.guidance <= 100,
            f"strength {strength} must be in 0 … 1, 0 excluded": 0 < strength <= 1,
            f"padding_mask_crop {crop} must be None or 0 or more": crop is None or crop >= 0,
            f"feather {self.feather} must be 0 or more": self.feather >= 0,
            f"keep_detail {self.keep_detail} must be in 0 … 1": 0 <= self.keep_detail <= 1,
            f"{steps} steps × strength {strength} leaves no step: increase one of them": not 0 < run < 1,
        }
        check_demands("inpainting settings", demands)


@dataclass
class Inpainter(loading.LoadedModel):
    """A loaded inpainting model."""

    family: families.Family = families.STABLE_DIFFUSION
    #: of the most recent prompts, by (prompt, negative prompt)
    embeddings: dict[tuple[str, str], dict[str, torch.Tensor]] = field(default_factory=dict)
    #: what `speed_up` has enabled; it may change the last bits of an image
    speed: list[str] = field(default_factory=list)
    #: held while the pipeline runs, because its scheduler counts steps
    lock: RLock = field(default_factory=RLock, repr=False, compare=False)

    def __post_init__(self) -> None:
        family, channels = self.family, self.denoiser.config.in_channels
        if channels not in family.channels:
            raise loading.ModelError(
                f"{self.model}: its network takes {channels} channels, expected "
                f"{' or '.join(map(str, family.channels))} ({family.label})"
            )
        if not family.channels[channels]:
            self.notices.append(
                f"{self.model} is a text-to-image model: it inpaints by blending latents at every step and "
                "uses the surroundings of a mask less well than an inpainting model"
            )
        if not family.caches_texts:
            self.notices.append(
                f"{family.label} has its own default settings: in diffusers, guidance "
                f"{self.read_default('guidance'):g} and strength {self.read_default('strength'):g}"
            )
        if not family.takes_negative:
            self.notices.append(f"{family.label} ignores negative prompts: those of the board are not used")
        super().__post_init__()

    def read_default(self, name: str) -> float | None:
        """Diffusers' default for "strength", "guidance" or another argument, or None."""
        return families.read_default(self.family, self.pipeline, name)

    @property
    def side_step(self) -> int:
        """Sides of images must be multiples of it: pixels per side of one patch of the network."""
        return self.cell * self.family.packing

    @property
    def longest_text(self) -> int | None:
        """Tokens of the longest prompt that is not truncated; None if only the tokenizers decide."""
        limit = self.read_default("max_sequence_length")
        return limit - self.family.chat_tokens if limit else None

    def describe(self) -> dict:
        """The model for a pool's recipe, and its speed-ups."""
        return super().describe() | {"speed": sorted(self.speed)}


def load_inpainter(
    model: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32, **speed: bool
) -> Inpainter:
    """Load a model of one of `FAMILIES` that can inpaint, or one that blends latents, from safetensors only.

    Raises a ModelError if parts are missing, weights are pickled, or the model can't inpaint.

    Args:
        model: a folder in diffusers' layout, a single .safetensors checkpoint, or a hub id.
        dtype: of the weights; half precision is for GPUs, and bfloat16 does not overflow.
        speed: options of `speed_up`.
    """
    pipeline = loading.load_pipeline(model, "inpainting", dtype)
    family = families.find_family(type(pipeline).__name__)
    inpainter = Inpainter(pipeline.to(device), str(model), device, family=family)
    speed_up(inpainter, **speed)
    return inpainter


def speed_up(
    inpainter: Inpainter, channels_last: bool = False, compile_unet: bool = False, slice_vae: bool = False
) -> None:
    """Enable, in place, what makes large batches faster or smaller, and record it for the recipe.

    Args:
        channels_last: the memory layout for convolutions that GPUs prefer.
        compile_unet: compile the network at its first use (takes minutes; again for each batch size).
        slice_vae: run the autoencoder image by image, so that a larger batch fits.
    """
    pipeline = inpainter.pipeline
    if channels_last:
        inpainter.denoiser.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if slice_vae:
        pipeline.vae.enable_slicing()
    if compile_unet:
        inpainter.denoiser.compile()
    chosen = {"channels_last": channels_last, "compile_unet": compile_unet, "slice_vae": slice_vae}
    inpainter.speed += [name for name, is_on in chosen.items() if is_on and name not in inpainter.speed]


def inpaint_batch(
    inpainter: Inpainter,
    jobs: Sequence[InpaintJob],
    settings: InpaintSettings,
    on_images: Callable[[int], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[InpaintedImage]:
    """Paint all jobs at once, in order, or in halves if memory runs out.

    Images may have any size, and each has its own seeded CPU generator. On one machine, an image is the same
    at any position of a batch of a given size; for other batch sizes the last bits may differ. `on_images` is
    called with the number of images just painted; an exception from `on_step` stops painting at that step.

    Raises:
        ValueError, MemoryError: unsuitable masks (all listed), prompts or size; not even one image fits.
    """
    inpainter.check_size(settings.size)
    check_jobs(jobs)
    negatives = [job.negative_prompt for job in jobs if job.negative_prompt]
    check_prompts(inpainter, [job.prompt for job in jobs] + negatives)
    return run_in_parts(
        jobs, lambda part: _paint(inpainter, part, settings, on_step), inpainter, settings.size, on_images
    )


def _paint(
    inpainter: Inpainter,
    jobs: Sequence[InpaintJob],
    settings: InpaintSettings,
    on_step: Callable[[], None] | None,
) -> list[InpaintedImage]:
    """One call of the pipeline, with its images pasted back under their masks."""
    family = inpainter.family
    boxes = [choose_box(job.mask, settings.size, settings.padding_mask_crop) for job in jobs]
    cuts = [cut_out(job.image_u8, job.mask, box, settings.size) for job, box in zip(jobs, boxes, strict=True)]
    covers = [cover_cells(mask, inpainter.cell) for _, mask in cuts]
    masks = covers if settings.cover_cells else [mask for _, mask in cuts]
    images = torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image, _ in cuts]).float() / 255

    def tell(*_: object) -> dict:  # diffusers expects the tensors that a callback changes: none
        on_step()
        return {}

    with inpainter.lock, torch.inference_mode():
        painted = inpainter.pipeline(
            image=images,
            mask_image=torch.from_numpy(np.stack(masks)[:, None]).float(),
            width=settings.size[0],
            height=settings.size[1],
            num_inference_steps=settings.steps,
            strength=settings.strength,
            generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
            output_type="latent" if family.adds_shift else "pt",
            callback_on_step_end=tell if on_step else None,
            **_name_arguments(inpainter, jobs, settings),
        ).images
        if family.adds_shift:
            painted = families.decode_shifted(inpainter.pipeline, painted)
        returned = [None] * len(jobs)
        if settings.keep_detail:
            returned = as_pixels(autoencode(inpainter.pipeline.vae, 2 * images - 1) / 2 + 0.5)
    cells = [int(cover.sum()) // inpainter.cell**2 for cover in covers]
    return [
        finish_image(*one, settings.feather, keep_detail=settings.keep_detail)
        for one in zip(jobs, boxes, as_pixels(painted), cells, returned, strict=True)
    ]


def _name_arguments(inpainter: Inpainter, jobs: Sequence[InpaintJob], settings: InpaintSettings) -> dict:
    """The pipeline's arguments for prompts and guidance, in the form that its family needs."""
    if inpainter.family.caches_texts:
        return {"guidance_scale": settings.guidance, **embed_texts(inpainter, jobs, settings)}
    prompts, negatives = zip(*[(job.prompt, job.negative_prompt) for job in jobs], strict=True)
    return families.name_arguments(inpainter.family, prompts, negatives, settings.guidance)


def embed_texts(
    inpainter: Inpainter, jobs: Sequence[InpaintJob], settings: InpaintSettings
) -> dict[str, torch.Tensor]:
    """The pipeline's prompt arguments for some jobs; each pair of prompts is encoded once."""
    pairs = [(job.prompt, job.negative_prompt) for job in jobs]
    for prompt, negative_prompt in set(pairs) - set(inpainter.embeddings):
        tensors = inpainter.pipeline.encode_prompt(
            prompt=prompt,
            device=inpainter.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative_prompt,
        )
        inpainter.embeddings[prompt, negative_prompt] = dict(zip(EMBEDDINGS, tensors, strict=False))
    per_job = [inpainter.embeddings[pair] for pair in pairs]
    for pair in list(inpainter.embeddings)[:-MAX_TEXTS]:
        del inpainter.embeddings[pair]
    names = [name for name in per_job[0] if settings.guidance > 1 or not name.startswith("negative")]
    return {name: torch.cat([embedded[name] for embedded in per_job]) for name in names}
