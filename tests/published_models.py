"""Tiny random models under their published ids, in a folder that the hub's library takes for its cache."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import ResNetConfig, ResNetForImageClassification

from defaug_utils.diffusion import stand_ins

COMMIT = "0" * 40
SMALL_VAE = {"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2, "layers_per_block": 1}
SMALL_TEXT = {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 16}
SMALL_TEXT |= {"num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_UNET = {"norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 2}
SMALL_UNETS = {
    "sd15": {"block_out_channels": (8, 8, 16, 16), "cross_attention_dim": 16},
    "sdxl": {
        "block_out_channels": (8, 8, 16),
        "cross_attention_dim": 32,
        "transformer_layers_per_block": (1, 1, 2),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
}


def make_pipeline(name: str, purpose: str) -> diffusers.DiffusionPipeline:
    """A published model but for its widths and depths, for "inpainting" or "text to image"."""
    torch.manual_seed(0)
    published = stand_ins.MODELS[name]
    channels = 9 if purpose == "inpainting" else 4
    parts = {
        "unet": UNet2DConditionModel(
            **published["unet"]
            | {"in_channels": channels, "out_channels": 4}
            | SMALL_UNET
            | SMALL_UNETS[name]
        ),
        "vae": AutoencoderKL(**stand_ins.VAE | published["vae"] | SMALL_VAE),
    }
    for place, text in enumerate(published["texts"]):
        ending = "_2" * place
        parts[f"text_encoder{ending}"] = stand_ins.make_text_encoder(place, text | SMALL_TEXT)
        parts[f"tokenizer{ending}"] = stand_ins.make_tokenizer()
    return stand_ins.join_parts(name, purpose, parts)


def make_resnet() -> ResNetForImageClassification:
    """ResNet-50 at its full size, with ImageNet's thousand classes."""
    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig(num_labels=1000))


PUBLISHED: dict[str, Callable[[], diffusers.DiffusionPipeline | ResNetForImageClassification]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": lambda: make_pipeline("sd15", "text to image"),
    "stable-diffusion-v1-5/stable-diffusion-inpainting": lambda: make_pipeline("sd15", "inpainting"),
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": lambda: make_pipeline("sdxl", "inpainting"),
    "microsoft/resnet-50": make_resnet,
}


def fill_cache(cache: Path, names: set[str]) -> dict[str, str]:
    """Put models into a cache of the hub; returns the environment in which only this cache is used."""
    for name in sorted(names):
        folder = cache / f"models--{name.replace('/', '--')}"
        PUBLISHED[name]().save_pretrained(folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT, encoding="ascii")
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
