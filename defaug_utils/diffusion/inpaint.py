"""Adapter to diffusers: loads any model that can inpaint, and tells what it is."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import torch

from defaug_utils.diffusion.diffusion_models import (
    describe_pipeline,
    is_xl_file,
    load_pipeline,
    prepare_pipeline,
)
from defaug_utils.diffusion.model_folders import ModelError

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
        speed: what `speed_up` has switched on; it may change the last bits of a picture.
        lock: held while the pipeline runs, since its scheduler counts the steps of one picture at a time.
    """

    pipeline: "DiffusionPipeline"
    model: str
    device: str
    notices: list[str] = field(default_factory=list)
    batch_limit: int | None = None
    embeddings: dict[tuple[str, str], dict[str, torch.Tensor]] = field(default_factory=dict)
    speed: list[str] = field(default_factory=list)
    lock: RLock = field(default_factory=RLock, repr=False, compare=False)

    @property
    def cell(self) -> int:
        """Pixels along either side of a latent cell."""
        return self.pipeline.vae_scale_factor

    def describe(self) -> dict:
        """The model in the recipe of a pool: classes, scheduler, fingerprint of its weights, type."""
        return describe_pipeline(self.pipeline, self.device) | {"speed": sorted(self.speed)}


def load_inpainter(
    model: Path | str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    compile_unet: bool = False,
    slice_vae: bool = False,
) -> Inpainter:
    """Load a model that can inpaint, from safetensors only.

    Args:
        model: a folder of diffusers' layout, a single .safetensors checkpoint, or a hub id.
        device: such as "cpu" or "cuda".
        dtype: of the weights; half precision is for GPUs, where bfloat16 is the one that does not overflow.
        channels_last: see `speed_up`.
        compile_unet: see `speed_up`.
        slice_vae: see `speed_up`.

    Returns:
        The model. A text-to-image model works, too, by blending latents; its `notices` say so.

    Raises:
        ModelError: parts are missing, weights are pickled, or it is none of the three.
    """
    pipeline = load_pipeline(model, _load_folder, _load_single_file, "inpainting", dtype)
    inpainter = wrap_pipeline(pipeline.to(device), str(model), device)
    speed_up(inpainter, channels_last, compile_unet, slice_vae)
    return inpainter


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


def speed_up(
    inpainter: Inpainter, channels_last: bool = False, compile_unet: bool = False, slice_vae: bool = False
) -> None:
    """Switch on what makes large batches faster or smaller, and record it for the recipe.

    Args:
        inpainter: the model, changed in place; its weights keep their names and values.
        channels_last: memory layout of the convolutions that GPUs prefer.
        compile_unet: translate the U-Net for this machine at its first use (minutes; again for every other
            batch size), which pays for hundreds of images.
        slice_vae: take the autoencoder's images one by one, so that a larger batch fits.
    """
    pipeline = inpainter.pipeline
    if channels_last:
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    if slice_vae:
        pipeline.vae.enable_slicing()
    if compile_unet:
        pipeline.unet.compile()
    chosen = {"channels_last": channels_last, "compile_unet": compile_unet, "slice_vae": slice_vae}
    inpainter.speed += [name for name, is_on in chosen.items() if is_on and name not in inpainter.speed]
