"""Diffusion models of the real classes, with random weights and so small that an image takes a blink."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz,"
WIDTH = 8  # of the text embeddings
MAX_TOKENS = 60  # one a letter, with one at either end


def make_tokenizer() -> CLIPTokenizer:
    """One token a letter."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=MAX_TOKENS
    )


def make_parts(unet_channels: int, text_layers: int = 1, prediction: str = "epsilon") -> dict:
    """All parts of a latent diffusion model, always the same ones; copies, so that a test may change them."""
    torch.manual_seed(0)
    return deepcopy(_build_parts(unet_channels, text_layers, prediction))


@cache
def _build_parts(unet_channels: int, text_layers: int, prediction: str) -> dict:
    torch.manual_seed(0)
    blocks = ("DownEncoderBlock2D", "DownEncoderBlock2D")
    text = CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=text_layers,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
    )
    return {
        "vae": AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=blocks,
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=4,
        ),
        "unet": UNet2DConditionModel(
            sample_size=16,
            in_channels=unet_channels,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        "text_encoder": CLIPTextModel(text),
        "tokenizer": make_tokenizer(),
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type=prediction),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def save_model(folder: Path, unet_channels: int = 9, safe: bool = True, **parts: int | str) -> Path:
    """Save a model in diffusers' folder layout: 9 channels to inpaint, 4 to make images from text."""
    pipeline = {9: StableDiffusionInpaintPipeline, 4: StableDiffusionPipeline}[unet_channels]
    pipeline(**make_parts(unet_channels, **parts)).save_pretrained(folder, safe_serialization=safe)
    return folder
