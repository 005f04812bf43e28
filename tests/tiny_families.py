"""Tiny random models of today's families, of the real classes, in diffusers' layout, without a network."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tiny_models import LETTERS, MAX_TOKENS, WIDTH, make_parts, make_tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LATENTS = 16  # channels, as in the real ones: the table of families knows how many a transformer takes
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
QWEN = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 256 + len(SPECIAL),
}


def make_qwen_tokenizer() -> Qwen2Tokenizer:
    """One token a byte, and the marks of a chat."""
    words = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    tokenizer = Qwen2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=10_000,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def make_t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """A text encoder of one layer, one token a letter."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((letter, -2.0) for letter in f"▁{LETTERS}")]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
    sizes = {"d_model": WIDTH, "d_kv": 4, "d_ff": WIDTH, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)), tokenizer


def make_clip(kind: type) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A text encoder of one layer, for the tokenizer of `tiny_models`."""
    words = 2 * len(LETTERS)
    config = CLIPTextConfig(
        vocab_size=words + 2,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=words,
        eos_token_id=words + 1,
    )
    return kind(config)


def autoencoder_sizes(channels: int = LATENTS) -> dict:
    """Cells of 8 × 8 pixels, as in the real ones."""
    return {
        "block_out_channels": (4, 4, 4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 2,
    }


def make_autoencoder() -> AutoencoderKL:
    """With scale and shift, as FLUX.1's, Stable Diffusion 3's and Z-Image's have them."""
    return AutoencoderKL(**autoencoder_sizes(), scaling_factor=0.36, shift_factor=0.12)


def make_flux(in_channels: int, out_channels: int | None = None) -> dict:
    """FLUX.1, of two kinds."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=out_channels,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
        **HEADS,
    )
    encoder, tokenizer = make_t5()
    return {
        "vae": make_autoencoder(),
        "transformer": transformer,
        "text_encoder": make_clip(CLIPTextModel),
        "tokenizer": make_tokenizer(),
        "text_encoder_2": encoder,
        "tokenizer_2": tokenizer,
    }


def make_flux_2_klein() -> dict:
    """FLUX.2 klein; its text is read at layers 9, 18 and 27."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
        **HEADS,
    )
    return {
        "vae": diffusers.AutoencoderKLFlux2(**autoencoder_sizes(32)),
        "transformer": transformer,
        "text_encoder": Qwen3ForCausalLM(Qwen3Config(**QWEN, num_hidden_layers=27, head_dim=4)),
        "tokenizer": make_qwen_tokenizer(),
        "is_distilled": True,
    }


def make_z_image() -> dict:
    """Z-Image."""
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=LATENTS,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 32, 32],
    )
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.ones_(pad)  # memory as it was found, otherwise
    return {
        "vae": make_autoencoder(),
        "transformer": transformer,
        "text_encoder": Qwen3Model(Qwen3Config(**QWEN, num_hidden_layers=2, head_dim=4)),
        "tokenizer": make_qwen_tokenizer(),
    }


def make_stable_diffusion_xl() -> dict:
    """Stable Diffusion XL, for text to image."""
    parts = make_parts(4)
    unet = diffusers.UNet2DConditionModel(
        **parts["unet"].config
        | {
            "cross_attention_dim": 2 * WIDTH,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
        }
    )
    further = {
        "text_encoder_2": make_clip(CLIPTextModelWithProjection),
        "tokenizer_2": make_tokenizer(),
    }
    names = ("vae", "scheduler", "text_encoder", "tokenizer")
    return {"unet": unet, **{name: parts[name] for name in names}, **further}


def make_stable_diffusion_3() -> dict:
    """Stable Diffusion 3 and 3.5, with three text encoders."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=LATENTS,
        num_layers=1,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        **HEADS,
    )
    encoder, tokenizer = make_t5()
    encoder = T5EncoderModel(T5Config(**encoder.config.to_dict() | {"d_model": 2 * WIDTH}))
    return {
        "vae": make_autoencoder(),
        "transformer": transformer,
        "text_encoder": make_clip(CLIPTextModelWithProjection),
        "tokenizer": make_tokenizer(),
        "text_encoder_2": make_clip(CLIPTextModelWithProjection),
        "tokenizer_2": make_tokenizer(),
        "text_encoder_3": encoder,
        "tokenizer_3": tokenizer,
    }


def make_qwen_image() -> dict:
    """Qwen-Image."""
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=4 * LATENTS,
        out_channels=LATENTS,
        num_layers=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
        **HEADS,
    )
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0]}
    seeing = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WIDTH}
    text = QWEN | {"num_hidden_layers": 1, "rope_scaling": rope}
    return {
        "vae": diffusers.AutoencoderKLQwenImage(
            base_dim=4, z_dim=LATENTS, dim_mult=[1, 1, 1, 1], num_res_blocks=1
        ),
        "transformer": transformer,
        "text_encoder": Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=seeing)
        ),
        "tokenizer": make_qwen_tokenizer(),
    }


MODELS: dict[str, tuple[str, Callable[[], dict]]] = {  # family: the class that a hub's model names, its parts
    "Stable Diffusion XL": ("StableDiffusionXLPipeline", make_stable_diffusion_xl),
    "Stable Diffusion 3": ("StableDiffusion3Pipeline", make_stable_diffusion_3),
    "FLUX.1": ("FluxPipeline", lambda: make_flux(64)),
    "FLUX.1 Fill": ("FluxFillPipeline", lambda: make_flux(384, 64)),
    "FLUX.2 klein": ("Flux2KleinPipeline", make_flux_2_klein),
    "Z-Image": ("ZImagePipeline", make_z_image),
    "Qwen-Image": ("QwenImagePipeline", make_qwen_image),
}


def save_family(folder: Path, family: str) -> Path:
    """Save a family's model as its maker would: by the class for text to image, where there is one."""
    torch.manual_seed(0)
    pipeline, make_parts = MODELS[family]
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler()} | make_parts()
    getattr(diffusers, pipeline)(**parts).save_pretrained(folder)
    return folder
