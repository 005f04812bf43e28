"""Adapter to diffusers: a trimap ControlNet beside a frozen text-to-image U-Net (AdaBLDM, section 3.2)."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from defaug_utils.core.files import write_json
from defaug_utils.diffusion.autoencoder import Denoise
from defaug_utils.diffusion.loading import CONVERT, PICKLES, ModelError, fingerprint, quiet_libraries
from defaug_utils.diffusion.text2image import TextToImage, embed_tokens, tokenise_prompts

if TYPE_CHECKING:
    from diffusers import ControlNetModel, DDIMScheduler

CONDITIONING_CHANNELS = (16, 32, 96, 256)  # from pixels to cells of 8 (ControlNet, Zhang et al. 2023)
TRAINING = "training.json"
TRIMAP_CHANNELS = 3  # the trimap is repeated, so that the weights fit Stable Diffusion's ControlNets


@dataclass
class TrimapModel:
    """A text-to-image model and the ControlNet that reads trimaps for it.

    Attributes:
        model: from `load_text2image`; stays frozen.
        controlnet: from `make_controlnet` or a training.
        training: what `train_controlnet` wrote beside the weights; empty where nothing is known.
    """

    model: TextToImage
    controlnet: "ControlNetModel"
    training: dict = field(default_factory=dict)

    def describe(self) -> dict:
        """Both models in the recipe of a pool, with the real defects that were learned from."""
        parts = SimpleNamespace(components={"controlnet": self.controlnet})
        trained_on = self.training.get("trained_on", {})
        known = {"steps": self.training.get("steps"), "trained_on": trained_on.get("defects", "unknown")}
        return self.model.describe() | {
            "sampler": "DDIMScheduler",
            "controlnet": {"fingerprint": fingerprint(parts), **known},
        }


def make_controlnet(model: TextToImage, seed: int = 0) -> "ControlNetModel":
    """A ControlNet that starts as the U-Net's encoder and changes nothing yet.

    Args:
        model: from `load_text2image`.
        seed: of the layers that read the trimap.

    Returns:
        The network, in float32 on the model's device, in evaluation mode.

    Raises:
        ModelError: a latent cell has no power of two pixels, or too many.
    """
    from diffusers import ControlNetModel

    count = math.log2(model.cell) + 1
    if not count.is_integer() or count > len(CONDITIONING_CHANNELS):
        raise ModelError(f"{model.model}: latent cells of {model.cell} pixels, expected 1, 2, 4 or 8")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        controlnet = ControlNetModel.from_unet(
            model.pipeline.unet,
            conditioning_embedding_out_channels=CONDITIONING_CHANNELS[: int(count)],
            conditioning_channels=TRIMAP_CHANNELS,
        )
    return controlnet.to(model.device).eval()


def save_controlnet(controlnet: "ControlNetModel", folder: Path | str, training: dict | None = None) -> None:
    """Write a ControlNet in diffusers' layout, safetensors, and `training.json`: how it came about."""
    with quiet_libraries():
        controlnet.save_pretrained(folder, safe_serialization=True)
    write_json(Path(folder) / TRAINING, training or {})


def load_trimap_model(
    folder: Path | str, model: TextToImage, dtype: torch.dtype = torch.float32
) -> TrimapModel:
    """Read a ControlNet, with what is known of its training, for its text-to-image model.

    Args:
        folder: from `train_controlnet`, or any ControlNet of diffusers' layout that reads trimaps.
        model: the text-to-image model that it was trained beside.
        dtype: of the ControlNet's weights; half precision is for GPUs.

    Raises:
        ModelError: there is none, it does not fit the model, or it was trained beside another one.
    """
    controlnet, path = load_controlnet(folder, model, dtype), Path(folder) / TRAINING
    try:
        training = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{path} can't be read ({error}): copy the model again") from error
    base = model.describe().get("fingerprint")
    if training and training["base"] != base:
        raise ModelError(
            f"{folder} was trained beside the model {training['base']}, {model.model} is {base}: load the "
            "model that it belongs to"
        )
    return TrimapModel(model, controlnet, training)


def load_controlnet(
    folder: Path | str, model: TextToImage, dtype: torch.dtype = torch.float32
) -> "ControlNetModel":
    """Read a ControlNet from a folder of diffusers' layout.

    Args:
        folder: with config.json and weights in safetensors.
        model: the text-to-image model that it belongs to.
        dtype: of the weights; half precision is for GPUs.

    Raises:
        ModelError: there is none, its weights are pickled, or it does not fit the model.
    """
    from diffusers import ControlNetModel

    folder = Path(folder)
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        found = f"only {', '.join(pickled)}: {CONVERT}" if pickled else "none: train one first"
        raise ModelError(f"{folder}: expected config.json and weights (*.safetensors), found {found}")
    try:
        with quiet_libraries():
            controlnet = ControlNetModel.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} can't be loaded as a ControlNet: {error}") from error
    check_fit(controlnet, model, folder)
    return controlnet.to(model.device).eval()


def check_fit(controlnet: "ControlNetModel", model: TextToImage, name: Path | str) -> None:
    """Refuse a ControlNet of another U-Net's shape, naming every setting in which they differ."""
    own, unet = controlnet.config, model.pipeline.unet.config
    names = ("block_out_channels", "layers_per_block", "cross_attention_dim", "in_channels")
    differing = [
        f"{name} {own[name]} beside {unet[name]}" for name in names if _plain(own[name]) != _plain(unet[name])
    ]
    if own.conditioning_channels != TRIMAP_CHANNELS:
        differing.append(f"it reads {own.conditioning_channels} channels, trimaps are {TRIMAP_CHANNELS}")
    if differing:
        raise ModelError(f"{name} does not fit {model.model}: {'; '.join(differing)}")


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def make_ddim(model: TextToImage) -> "DDIMScheduler":
    """DDIM with the model's own noise schedule and prediction; clean latents are not clipped."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(model.pipeline.scheduler.config, clip_sample=False)


@torch.no_grad()
def embed_prompts(model: TextToImage, prompts: Sequence[str]) -> Tensor:
    """What the U-Net reads of texts, each encoded once; shape (batch, tokens, width)."""
    texts = list(dict.fromkeys(prompts))
    tokens = tokenise_prompts(model, texts).to(model.device)
    embeddings = embed_tokens(model.pipeline.text_encoder, tokens, model.clip_skip)
    return torch.stack([embeddings[texts.index(prompt)] for prompt in prompts])


def to_conditioning(trimaps_u8: Sequence[np.ndarray]) -> Tensor:
    """Trimaps (height, width), uint8, as the ControlNet reads them: (batch, 3, height, width) in [0, 1]."""
    stacked = torch.from_numpy(np.stack(trimaps_u8))[:, None].float() / 255
    return stacked.repeat(1, TRIMAP_CHANNELS, 1, 1)


@torch.no_grad()
def read_once(controlnet: "ControlNetModel", conditioning: Tensor) -> tuple["ControlNetModel", Tensor]:
    """Read trimaps once for all steps, for which a small model needs as long as for all the rest of a step.

    Args:
        controlnet: stays as it is.
        conditioning: from `to_conditioning`.

    Returns:
        A view of the ControlNet, with the same weights, that takes trimaps as they were read; and these.
    """
    view = copy.copy(controlnet)
    view._modules = dict(controlnet._modules, controlnet_cond_embedding=torch.nn.Identity())
    view.__dict__.pop("forward", None)  # in mixed precision accelerate binds it to the original
    return view, controlnet.controlnet_cond_embedding(conditioning)


def predict(
    model: TextToImage,
    controlnet: "ControlNetModel",
    latents: Tensor,
    times: Tensor,
    conditioning: Tensor,
    empty: Tensor,
    texts: Sequence[Tensor],
) -> list[Tensor]:
    """What the U-Net predicts under the ControlNet's guidance, for one or more texts an image.

    The ControlNet reads the empty prompt, so its one answer serves all texts.

    Args:
        model: the frozen one.
        controlnet: on the same device.
        latents: noisy, shape (batch, 4, height / cell, width / cell).
        times: of the noise, one for all or one an image.
        conditioning: from `to_conditioning`.
        empty: the empty prompt's embedding, shape (batch, tokens, width).
        texts: embeddings of the same shape.

    Returns:
        One prediction a text, of the latents' shape.
    """
    down, middle = controlnet(latents, times, empty, conditioning, return_dict=False)
    copies, dtype = len(texts), model.pipeline.unet.dtype
    repeat = (copies, 1, 1, 1)
    predicted = model.pipeline.unet(
        latents.to(dtype).repeat(repeat),
        times if times.dim() == 0 else times.repeat(copies),
        torch.cat(list(texts)),
        down_block_additional_residuals=[residual.to(dtype).repeat(repeat) for residual in down],
        mid_block_additional_residual=middle.to(dtype).repeat(repeat),
    ).sample
    return list(predicted.chunk(copies))


def make_denoiser(
    trimap_model: TrimapModel,
    trimaps_u8: Sequence[np.ndarray],
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    guidance: float,
) -> Denoise:
    """The network as `blend_latents` asks for it: latents and time in, guided prediction out.

    Args:
        trimap_model: both models.
        trimaps_u8: one an image, shape (height, width), uint8.
        prompts: one an image.
        negative_prompts: one an image.
        guidance: weight of the prompt against the negative one; at 1 only the prompt is asked.

    Raises:
        ValueError: a prompt is too long.
    """
    model, controlnet = trimap_model.model, trimap_model.controlnet
    conditioning = to_conditioning(trimaps_u8).to(model.device, controlnet.dtype)
    controlnet, conditioning = read_once(controlnet, conditioning)
    empty = embed_prompts(model, [""] * len(prompts)).to(controlnet.dtype)
    texts = [embed_prompts(model, prompts)]
    if guidance > 1:
        texts.insert(0, embed_prompts(model, negative_prompts))

    def denoise(latents: Tensor, time: Tensor) -> Tensor:
        inputs = latents.to(controlnet.dtype)
        first, *rest = predict(model, controlnet, inputs, time, conditioning, empty, texts)
        return first + guidance * (rest[0] - first) if rest else first

    return denoise
