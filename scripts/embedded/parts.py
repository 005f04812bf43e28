"""The parts of the embedded model besides its autoencoder: text encoder, U-Nets, scheduler, pipelines."""

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

TEXT_WIDTH = 128


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The architecture, with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(in_channels: int) -> UNet2DConditionModel:
    """The architecture, with random weights: 9 channels for inpainting, 4 for text to image."""
    return UNet2DConditionModel(
        sample_size=48 if in_channels == 9 else (48, 16),  # the inpainting pipeline accepts only one number
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(64, 80, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler(in_channels: int) -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with the velocity as the network's target.

    Text to image (4 channels) ends in pure noise (Lin et al. 2024, "zero terminal SNR"): the schedule of
    Stable Diffusion leaves a trace of the image at its last step, from which a network learns to read the
    colour, and then reads it from the mean of any noise. An inpainting model (9 channels) sees the surface.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=in_channels == 4,
    )


class Denoiser(torch.nn.Module):
    """Text encoder and U-Net, trained together."""

    def __init__(self, tokenizer: CLIPTokenizer, in_channels: int):
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.unet = build_unet(in_channels)

    def forward(self, sample: torch.Tensor, times: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predict the velocity for latents (followed by mask and masked latents for inpainting)."""
        return self.unet(sample, times, self.text_encoder(tokens)[0]).sample


def load_denoiser(folder: Path, tokenizer: CLIPTokenizer, in_channels: int) -> Denoiser:
    """Text encoder and U-Net of a model in diffusers' layout, as float32."""
    denoiser = Denoiser(tokenizer, in_channels)
    for part in (denoiser.text_encoder, denoiser.unet):
        name = "unet" if part is denoiser.unet else "text_encoder"
        trained = type(part).from_pretrained(folder / name).float()
        part.load_state_dict(trained.state_dict())
    return denoiser


def build_pipeline(
    vae: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline | StableDiffusionInpaintPipeline:
    """The parts as diffusers' pipeline: inpainting for a U-Net with 9 channels, otherwise text to image."""
    is_inpainting = denoiser.unet.config.in_channels == 9
    return (StableDiffusionInpaintPipeline if is_inpainting else StableDiffusionPipeline)(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(denoiser.unet.config.in_channels),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
