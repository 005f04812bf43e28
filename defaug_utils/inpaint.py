"""Adapter to diffusers: loads any model that can inpaint, and tells what it is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from defaug_utils.diffusion_models import describe_pipeline, is_xl_file, load_pipeline, prepare_pipeline
from defaug_utils.model_folders import ModelError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass
class Inpainter:
    """A loaded model with what is known about it.

    Attributes:
        pipeline: diffusers' pipeline.
        model: name, folder or file it was loaded from.
        device: where it runs.
        notices: what a user must be told.
        batch_limit: largest batch that fitted in memory; None while none failed.
        embeddings: text embeddings by (prompt, negative prompt), computed once.
    """

    pipeline: "DiffusionPipeline"
    model: str
    device: str
    notices: list[str] = field(default_factory=list)
    batch_limit: int | None = None
    embeddings: dict[tuple[str, str], dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def cell(self) -> int:
        """Pixels along either side of a latent cell."""
        return self.pipeline.vae_scale_factor

    def describe(self) -> dict:
        """The model in the recipe of a pool: classes, scheduler, fingerprint of its weights, type."""
        return describe_pipeline(self.pipeline, self.device)


def load_inpainter(model: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Inpainter:
    """Load a model that can inpaint, from safetensors only.

    Args:
        model: a folder of diffusers' layout, a single .safetensors checkpoint, or a hub id.
        device: such as "cpu" or "cuda".
        dtype: of the weights; half precision is for GPUs.

    Returns:
        The model. A text-to-image model works, too, by blending latents; its `notices` say so.

    Raises:
        ModelError: parts are missing, weights are pickled, or it is none of the three.
    """
    pipeline = load_pipeline(model, _load_folder, _load_single_file, "inpainting", dtype)
    return wrap_pipeline(pipeline.to(device), str(model), device)


def _load_folder(model: str, dtype: torch.dtype) -> "DiffusionPipeline":
    """A folder or a hub id."""
    from diffusers import AutoPipelineForInpainting

    return AutoPipelineForInpainting.from_pretrained(model, dtype=dtype, use_safetensors=True)


def _load_single_file(path: str, dtype: torch.dtype) -> "DiffusionPipeline":
    """A checkpoint in one file, SDXL's where it has that model's second text encoder."""
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline

    chosen = StableDiffusionXLInpaintPipeline if is_xl_file(path) else StableDiffusionInpaintPipeline
    return chosen.from_single_file(path, dtype=dtype)


def wrap_pipeline(pipeline: "DiffusionPipeline", model: str, device: str = "cpu") -> Inpainter:
    """Set a pipeline up for batches: no bars, no filter that would blank pictures of parts.

    Args:
        pipeline: any of diffusers' inpainting pipelines with a U-Net.
        model: its name.
        device: where it is.

    Raises:
        ModelError: its U-Net takes neither 9 channels (inpainting) nor 4 (latent blending).
    """
    inpainter = Inpainter(pipeline, model, device)
    channels = pipeline.unet.config.in_channels
    if channels == 4:
        inpainter.notices.append(
            f"{model} is a text-to-image model: it inpaints by blending latents at every step and sees the "
            "surroundings of a mask less well than an inpainting model"
        )
    elif channels != 9:
        raise ModelError(f"{model}: its U-Net takes {channels} channels, expected 9 (inpainting) or 4")
    inpainter.notices += prepare_pipeline(pipeline)
    return inpainter
