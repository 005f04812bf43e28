"""Adapter to diffusers: a text-to-image model of the Stable Diffusion family, its prompts and images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from defaug_utils.core.guards import check_demands, describe_settings
from defaug_utils.core.prompts import check_prompts
from defaug_utils.diffusion import loading
from defaug_utils.diffusion.autoencoder import draw_noise
from defaug_utils.training.memory import run_in_parts

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

CLIP_SKIP = 2  # In&Out's configuration: the text encoder's second-to-last layer
PREDICTIONS = ("epsilon", "v_prediction")


@dataclass
class TextToImage(loading.LoadedModel):
    """A loaded text-to-image model."""

    clip_skip: int = CLIP_SKIP  #: layer of the text encoder: 1 for the last, 2 for the second-to-last
    description: dict = field(init=False, repr=False)  #: as it was loaded, before any training

    def __post_init__(self) -> None:
        pipeline, model = self.pipeline, self.model
        if getattr(pipeline, "text_encoder_2", None) or not getattr(pipeline, "unet", None):
            raise loading.ModelError(
                f"{model}: {type(pipeline).__name__} doesn't have one text encoder and a U-Net: expected "
                "Stable Diffusion 1.5 or 2"
            )
        channels, layers = pipeline.unet.config.in_channels, pipeline.text_encoder.config.num_hidden_layers
        known, clip_skip, used = ", ".join(PREDICTIONS), self.clip_skip, range(1, layers + 1)
        demands = {
            f"its U-Net takes {channels} channels, expected 4: don't use an inpainting model": channels == 4,
            f"it predicts {self.prediction!r}, expected one of {known}": self.prediction in PREDICTIONS,
            f"clip_skip {clip_skip} must be 1 … {layers}, the layers of the text encoder": clip_skip in used,
        }
        check_demands(model, demands, loading.ModelError)
        super().__post_init__()
        self.description = super().describe() | {"clip_skip": clip_skip}

    @property
    def side_step(self) -> int:
        """The smallest step for which the U-Net's downsampled maps match again."""
        return self.cell * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    @property
    def prediction(self) -> str:
        """What the network predicts: "epsilon" (the noise) or "v_prediction" (the velocity)."""
        return self.pipeline.scheduler.config.prediction_type

    def describe(self) -> dict:
        """The model for a pool's recipe."""
        return dict(self.description)


class TextJob(NamedTuple):
    """One image to make: prompts and a noise seed."""

    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True)
class TextSettings:
    """How images are generated from text."""

    size: tuple[int, int] = (512, 512)  #: (width, height), pixels
    steps: int = 30  #: of denoising
    guidance: float = 7.0  #: weight of the prompt against the negative one; 1 is none
    centre_noise: bool = False  #: subtract each channel's mean from the initial noise, see `start_latents`

    def __post_init__(self) -> None:
        demands = {
            f"size {self.size} must be (width, height) of at least 8 × 8": min(self.size) >= 8,
            f"steps {self.steps} must be 1 or more": self.steps >= 1,
            f"guidance {self.guidance} must be in 1 … 100": 1 <= self.guidance <= 100,
        }
        check_demands("text-to-image settings", demands)

    def describe(self) -> dict:
        """For the recipe of a pool."""
        return describe_settings(self, "centre_noise")


def load_text2image(
    model: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32, clip_skip: int = CLIP_SKIP
) -> TextToImage:
    """Load a text-to-image model; arguments as in `load_inpainter`.

    Raises a ModelError if parts are missing, weights are pickled, or it isn't Stable Diffusion 1.5 or 2.
    """
    pipeline = loading.load_pipeline(model, "text to image", dtype).to(device)
    return TextToImage(pipeline, str(model), device, clip_skip=clip_skip)


def tokenise_prompts(model: TextToImage, prompts: Sequence[str]) -> Tensor:
    """Token ids, shape (batch, tokens), of prompts; refuses one that the tokenizer would truncate."""
    check_prompts(model, [prompt for prompt in prompts if prompt])
    tokenizer = model.pipeline.tokenizer
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "return_tensors": "pt"}
    return tokenizer(list(prompts), **options).input_ids


def embed_tokens(text_encoder: nn.Module, tokens: Tensor, clip_skip: int) -> Tensor:
    """Embeddings (batch, tokens, width) of token ids: a layer's output, then the final layer norm."""
    states = text_encoder(tokens, output_hidden_states=True).hidden_states
    layer_norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
    return layer_norm(states[-clip_skip])


@torch.no_grad()
def embed_prompts(model: TextToImage, prompts: Sequence[str]) -> Tensor:
    """Embeddings of prompts for the U-Net, each encoded once; shape (batch, tokens, width)."""
    texts = list(dict.fromkeys(prompts))
    tokens = tokenise_prompts(model, texts).to(model.device)
    embeddings = embed_tokens(model.pipeline.text_encoder, tokens, model.clip_skip)
    return torch.stack([embeddings[texts.index(prompt)] for prompt in prompts])


def make_ddim(model: TextToImage) -> "DDIMScheduler":
    """DDIM with the model's own noise schedule and prediction; clean latents are not clipped."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(model.pipeline.scheduler.config, clip_sample=False)


def choose_target(schedule: "DDIMScheduler", clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """The network's target: the noise or the velocity."""
    is_velocity = schedule.config.prediction_type == "v_prediction"
    return schedule.get_velocity(clean, noise, times) if is_velocity else noise


def generate_images(model: TextToImage, jobs: Sequence[TextJob], settings: TextSettings) -> list[np.ndarray]:
    """Make all images, (height, width, 3), uint8, at once, or in halves if memory runs out.

    Each has its own seeded CPU generator; see `inpaint_batch` for what else its last bits depend on.

    Raises:
        ValueError: a prompt is empty or too long, or the size doesn't suit the model.
        FloatingPointError: lists the seeds for which the model produced non-finite values.
        MemoryError: not even one image fits.
    """
    model.check_size(settings.size)
    check_prompts(model, [job.prompt for job in jobs])
    return run_in_parts(jobs, lambda part: _draw(model, part, settings), model, settings.size)


def start_latents(
    model: TextToImage, generators: Sequence[torch.Generator], settings: TextSettings
) -> Tensor:
    """The noise that images start from, shape (images, channels, height, width), see `draw_noise`.

    Stable Diffusion's noise schedule leaves some of the image in its last noise level (Lin et al. 2024,
    section 3.1), so a network learns to read the mean colour of an image from the mean of its noise. With
    `centre_noise`, each channel's mean is subtracted, and the colour comes from what was learned.
    """
    network, (width, height) = model.pipeline.unet, settings.size
    shape = (1, network.config.in_channels, height // model.cell, width // model.cell)
    noise = draw_noise(generators, torch.empty(shape, dtype=network.dtype, device=model.device))
    return noise - noise.mean(dim=(2, 3), keepdim=True) if settings.centre_noise else noise


@torch.inference_mode()
def _draw(model: TextToImage, jobs: Sequence[TextJob], settings: TextSettings) -> list[np.ndarray]:
    embeddings = embed_prompts(model, [text for job in jobs for text in (job.prompt, job.negative_prompt)])
    generators = [torch.Generator("cpu").manual_seed(int(job.seed)) for job in jobs]
    pixels = model.pipeline(
        prompt_embeds=embeddings[::2],
        negative_prompt_embeds=embeddings[1::2] if settings.guidance > 1 else None,
        width=settings.size[0],
        height=settings.size[1],
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=generators,  # some schedulers draw more noise at every step
        latents=start_latents(model, generators, settings),
        output_type="pt",
    ).images.float()
    broken = [job.seed for job, image in zip(jobs, pixels, strict=True) if not image.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"{model.model} produced non-finite values for the seeds {broken}: load it in float32 (or "
            "bfloat16), or lower the merge share of its adapter"
        )
    pixels_u8 = (255 * pixels.clamp(0, 1)).round().to(torch.uint8)
    return list(pixels_u8.permute(0, 2, 3, 1).cpu().numpy())
