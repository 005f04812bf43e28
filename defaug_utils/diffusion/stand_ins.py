"""Stand-ins: models of published architectures with random weights, which take the same time and memory."""

from typing import TYPE_CHECKING

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from defaug_utils.diffusion.families import find_family
from defaug_utils.diffusion.inpainting import Inpainter
from defaug_utils.diffusion.loading import ModelError
from defaug_utils.diffusion.text2image import TextToImage

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

STAND_INS = {  # published model → its architecture in `MODELS`
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stable-diffusion-v1-5/stable-diffusion-inpainting": "sd15",
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": "sdxl",
}
VOCABULARY_SIZE, MAX_TOKENS = 49408, 77
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
MODELS = {  # the published config.json files, where they differ from diffusers' defaults
    "sd15": {
        "size": (512, 512),
        "unet": {"in_channels": 9, "sample_size": 64, "cross_attention_dim": 768},
        "vae": {"sample_size": 512, "scaling_factor": 0.18215},
        "texts": (CLIP_L,),
        "weights": {"unet": 859_535_364, "vae": 83_653_863, "text_encoder": 123_060_480},
    },
    "sdxl": {
        "size": (1024, 1024),
        "unet": {
            "in_channels": 9,
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "texts": (CLIP_L, CLIP_BIG_G),
        "weights": {
            "unet": 2_567_478_084,
            "vae": 83_653_863,
            "text_encoder": 123_060_480,
            "text_encoder_2": 694_659_840,
        },
    },
}


def make_tokenizer() -> CLIPTokenizer:
    """One token a letter, and as many unused ones as make the published size."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"unused{number}" for number in range(VOCABULARY_SIZE - 2 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_TOKENS)


def make_text_encoder(place: int, values: dict) -> torch.nn.Module:
    """The first text encoder is CLIP's, the second one has a projection."""
    tokens = {"bos_token_id": VOCABULARY_SIZE - 2, "eos_token_id": VOCABULARY_SIZE - 1}
    config = CLIPTextConfig(
        vocab_size=VOCABULARY_SIZE, max_position_embeddings=MAX_TOKENS, **tokens, **values
    )
    return (CLIPTextModelWithProjection if place else CLIPTextModel)(config)


def make_networks(name: str, channels: int = 9) -> dict[str, torch.nn.Module]:
    """All networks of a model without memory for their weights; 9 channels to inpaint, 4 to draw from text.

    Raises a ModelError if a network has another number of weights than the published one.
    """
    import diffusers  # takes seconds

    values = MODELS[name]
    with torch.device("meta"):
        networks = {
            "unet": diffusers.UNet2DConditionModel(**values["unet"] | {"in_channels": channels}),
            "vae": diffusers.AutoencoderKL(**VAE, **values["vae"]),
        }
        for place, text in enumerate(values["texts"]):
            networks[f"text_encoder{'_2' * place}"] = make_text_encoder(place, text)
    fewer = (values["unet"]["in_channels"] - channels) * networks["unet"].conv_in.weight[:, 0].numel()
    expected = values["weights"] | {"unet": values["weights"]["unet"] - fewer}
    counts = {part: sum(weight.numel() for weight in net.parameters()) for part, net in networks.items()}
    if counts != expected:
        raise ModelError(f"{name} is not of the published size: {counts}, expected {expected}")
    return networks


@torch.no_grad()
def fill(network: torch.nn.Module, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """Give a network memory and small random weights."""
    network = network.to(dtype).to_empty(device=device).eval()
    for key, weight in network.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=0.02)
        else:
            weight.fill_(float(key.endswith("weight")))  # norms start as in training
    for key, buffer in network.named_buffers():
        if not key.endswith("position_ids"):
            raise ModelError(f"unknown buffer {key}: it would hold whatever the memory held")
        buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))
    return network


def build_pipeline(name: str, purpose: str, device: str, dtype: torch.dtype) -> "DiffusionPipeline":
    """The pipeline of a model with random weights, for "inpainting" or "text to image" (not XL)."""
    torch.manual_seed(0)
    networks = make_networks(name, 9 if purpose == "inpainting" else 4)
    parts = {part: fill(network, device, dtype) for part, network in networks.items()}
    parts |= {f"tokenizer{'_2' * place}": make_tokenizer() for place in range(len(MODELS[name]["texts"]))}
    return join_parts(name, purpose, parts)


def join_parts(name: str, purpose: str, parts: dict) -> "DiffusionPipeline":
    """The pipeline of networks and tokenizers, by the names of their places, with the published scheduler."""
    import diffusers

    if name == "sdxl":
        scheduler = diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
        return diffusers.StableDiffusionXLInpaintPipeline(**parts, scheduler=scheduler, add_watermarker=False)
    scheduler = diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False)
    parts |= {"scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    parts |= {"requires_safety_checker": False}
    if purpose == "inpainting":
        return diffusers.StableDiffusionInpaintPipeline(**parts)
    return diffusers.StableDiffusionPipeline(**parts)


def open_stand_in(
    model: str, purpose: str, device: str, dtype: torch.dtype, clip_skip: int = 1
) -> Inpainter | TextToImage:
    """A stand-in for a published model, loaded as `load_inpainter` or `load_text2image` would.

    Raises a ModelError if its architecture is unknown.
    """
    name = STAND_INS.get(model)
    if name is None or (name == "sdxl" and purpose != "inpainting"):
        raise ModelError(f"{model} has no stand-in for {purpose}: known are {', '.join(STAND_INS)}")
    pipeline = build_pipeline(name, purpose, device, dtype)
    told = f"random weights in place of {model}"
    if purpose == "inpainting":
        return Inpainter(pipeline, told, device, family=find_family(type(pipeline).__name__))
    return TextToImage(pipeline, told, device, clip_skip=clip_skip)
