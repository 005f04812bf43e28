"""Families of diffusion models that inpaint: their diffusers classes, and the arguments of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CHAT_TOKENS = 32  # the most that a chat template adds to a prompt


@dataclass(frozen=True)
class Family:
    """Properties of a model family in diffusers 0.42."""

    label: str
    stem: str  #: common start of its class names in diffusers
    inpainting: str  #: the class that inpaints
    channels: Mapping[int, bool]  #: input channels of its network → whether it sees around the mask
    text_to_image: str = ""  #: the class for text-to-image training and generation, if supported
    guidance: str = "guidance_scale"  #: the argument for the weight of the prompt
    unguided: float = 1.0  #: its value for no guidance
    takes_negative: bool = True
    packing: int = 2  #: latent cells per side of one patch of the network
    chat_tokens: int = 0  #: tokens of the prompt's limit that a template uses
    is_single_file: bool = False  #: a single weights file is enough
    caches_texts: bool = False  #: `encode_prompt` returns the call's arguments, in the order of `EMBEDDINGS`
    adds_shift: bool = False  #: diffusers omits the autoencoder's shift when decoding

    @property
    def classes(self) -> set[str]:
        """Class names that a model's index may contain."""
        return {f"{self.stem}{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint")} | {self.inpainting}

    def name_class(self, purpose: str) -> str:
        """Its class for "inpainting" or "text to image", empty if unsupported."""
        return self.inpainting if purpose == "inpainting" else self.text_to_image


STABLE_DIFFUSION = Family(
    "Stable Diffusion 1.5 or 2",
    "StableDiffusion",
    "StableDiffusionInpaintPipeline",
    {9: True, 4: False},
    text_to_image="StableDiffusionPipeline",
    packing=1,
    is_single_file=True,
    caches_texts=True,
)
SDXL = Family(
    "Stable Diffusion XL",
    "StableDiffusionXL",
    "StableDiffusionXLInpaintPipeline",
    {9: True, 4: False},
    packing=1,
    is_single_file=True,
    caches_texts=True,
)
FAMILIES = (
    STABLE_DIFFUSION,
    SDXL,
    Family(
        "Stable Diffusion 3",
        "StableDiffusion3",
        "StableDiffusion3InpaintPipeline",
        {33: True, 16: False},
        adds_shift=True,
    ),
    Family("FLUX.1", "Flux", "FluxInpaintPipeline", {64: False}, takes_negative=False),
    Family("FLUX.1 Fill", "FluxFill", "FluxFillPipeline", {384: True}, takes_negative=False),
    Family(
        "FLUX.2 klein",
        "Flux2Klein",
        "Flux2KleinInpaintPipeline",
        {128: True},
        takes_negative=False,
        chat_tokens=CHAT_TOKENS,
    ),
    Family("Z-Image", "ZImage", "ZImageInpaintPipeline", {16: False}, unguided=0.0, chat_tokens=CHAT_TOKENS),
    Family(
        "Qwen-Image",
        "QwenImage",
        "QwenImageInpaintPipeline",
        {64: False},
        guidance="true_cfg_scale",
        chat_tokens=CHAT_TOKENS,
    ),
)


def find_family(class_name: str) -> Family | None:
    """The family of a diffusers class, or None."""
    return next((family for family in FAMILIES if class_name in family.classes), None)


def list_families(purpose: str) -> str:
    """Names of the families for "inpainting" or "text to image"."""
    return ", ".join(family.label for family in FAMILIES if family.name_class(purpose))


def read_default(family: Family, pipeline: "DiffusionPipeline", name: str) -> float | None:
    """The family's default for `name` ("strength", "guidance"); guidance on our scale."""
    argument = family.guidance if name == "guidance" else name
    known = signature(type(pipeline).__call__).parameters
    if argument not in known:
        return None
    return known[argument].default + (1 - family.unguided if name == "guidance" else 0)


def name_arguments(
    family: Family, prompts: Sequence[str], negatives: Sequence[str], guidance: float
) -> dict[str, object]:
    """Arguments for prompts and guidance (1 is none) of a family that encodes prompts in its call."""
    arguments: dict[str, object] = {"prompt": list(prompts), family.guidance: guidance - 1 + family.unguided}
    if family.takes_negative and guidance > 1:
        arguments["negative_prompt"] = list(negatives)
    return arguments


def decode_shifted(pipeline: "DiffusionPipeline", latents: torch.Tensor) -> torch.Tensor:
    """Decode latents to images (batch, 3, height, width) in [0, 1]; diffusers 0.42 omits SD 3's shift."""
    scale, shift = pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor
    decoded = pipeline.vae.decode((latents / scale + shift).to(pipeline.vae.dtype), return_dict=False)[0]
    return pipeline.image_processor.postprocess(decoded, output_type="pt")
