"""Adapter to diffusers: loads any model that can inpaint, and tells what it is."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from defaug_utils.model_folders import ModelError, check_model_folder, check_single_file

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FINGERPRINT_VALUES = 1024  # of every weight tensor that the fingerprint looks at
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


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
    """

    pipeline: "DiffusionPipeline"
    model: str
    device: str
    notices: list[str] = field(default_factory=list)
    batch_limit: int | None = None
    embeddings: dict[tuple[str, str], dict[str, torch.Tensor]] = field(default_factory=dict)
    speed: list[str] = field(default_factory=list)

    @property
    def cell(self) -> int:
        """Pixels along either side of a latent cell."""
        return self.pipeline.vae_scale_factor

    def describe(self) -> dict:
        """The model in the recipe of a pool: classes, scheduler, fingerprint of its weights, type."""
        scheduler = self.pipeline.scheduler
        settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        return {
            "pipeline": type(self.pipeline).__name__,
            "fingerprint": fingerprint(self.pipeline),
            "scheduler": {"class": type(scheduler).__name__, **settings},
            "dtype": str(self.pipeline.unet.dtype).removeprefix("torch."),
            "speed": sorted(self.speed),
            "device": self.device.partition(":")[0],
        }


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
    path = Path(model)
    if path.is_dir():
        check_model_folder(path)
    elif path.is_file():
        check_single_file(path)
    elif path.suffix in FILE_SUFFIXES or not HUB_ID.fullmatch(str(model)):
        raise ModelError(
            f"no model at {model}: expected a folder, a .safetensors file or a hub id owner/name"
        )
    load = _load_single_file if path.is_file() else _load_folder
    try:
        with quiet_libraries():
            pipeline = load(str(model), dtype)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{model} can't be loaded for inpainting: {error}; expected a complete Stable Diffusion "
            "model (1.5, 2 or XL) in safetensors; a hub id needs a connection or a copy from an earlier use"
        ) from error
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

    with safe_open(path, "pt") as opened:
        is_xl = any(key.startswith("conditioner.embedders.1") for key in opened.keys())  # noqa: SIM118
    chosen = StableDiffusionXLInpaintPipeline if is_xl else StableDiffusionInpaintPipeline
    return chosen.from_single_file(path, dtype=dtype)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what loading a model writes (bars, hints about other libraries) out of notebooks."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        from diffusers.utils import logging

        logging.disable_progress_bar()
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


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
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
        inpainter.notices.append("the model's picture filter is off: it blanks harmless pictures of parts")
    pipeline.set_progress_bar_config(disable=True)
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


def fingerprint(pipeline: "DiffusionPipeline") -> str:
    """Hash of names, shapes and up to 1024 values of every weight: tells models apart, wherever they lie."""
    digest = hashlib.sha256()
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, weight in part.state_dict().items():
                flat = weight.detach().flatten()
                values = flat[:: max(1, flat.numel() // FINGERPRINT_VALUES)].float().cpu()
                digest.update(f"{name}.{key} {tuple(weight.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]
