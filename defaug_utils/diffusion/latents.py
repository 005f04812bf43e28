"""Between pictures and a diffusion model's latents; no diffusion library is needed to do it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

Denoise = Callable[[Tensor, Tensor], Tensor]  # latents and time → what the network predicts


def to_floats(images_u8: Sequence[np.ndarray]) -> Tensor:
    """Images (height, width, 3), uint8, as one tensor (batch, 3, height, width) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(images_u8)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1


def to_u8(images: Tensor) -> list[np.ndarray]:
    """Images (batch, 3, height, width) in [-1, 1] as uint8 (height, width, 3); no number becomes grey."""
    clean = images.detach().float().nan_to_num().clamp(-1, 1)
    return list(((clean + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def encode_images(vae: nn.Module, images: Tensor) -> Tensor:
    """The most likely latents of images, scaled as the U-Net expects them.

    Args:
        vae: diffusers' AutoencoderKL.
        images: shape (batch, 3, height, width) in [-1, 1].

    Returns:
        Shape (batch, 4, height / cell, width / cell), float32 whatever the model's type.
    """
    return vae.encode(images.to(vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor


def decode_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """Images of latents, shape (batch, 3, height, width), float32, about in [-1, 1]."""
    return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()


@torch.inference_mode()
def autoencode_images(
    vae: nn.Module, images_u8: Sequence[np.ndarray], batch_size: int = 4
) -> list[np.ndarray]:
    """Images as they come back from the autoencoder: as soft as what the model can draw at best.

    Args:
        vae: diffusers' AutoencoderKL.
        images_u8: each of shape (height, width, 3), uint8, all of one size that suits the model.
        batch_size: images at once.

    Returns:
        The same number of images, same shape.
    """
    device, returned = next(vae.parameters()).device, []
    for start in range(0, len(images_u8), batch_size):
        floats = to_floats(images_u8[start : start + batch_size]).to(device)
        returned += to_u8(decode_latents(vae, encode_images(vae, floats)))
    return returned


def cover_latent_cells(masks: Tensor, cell: int, dilation: int = 1) -> Tensor:
    """The latent cells that masks touch, grown by a box.

    Args:
        masks: shape (batch, 1, height, width), bool, true on the defect.
        cell: pixels along either side of a latent cell.
        dilation: side of the box in cells, odd; 1 grows nothing.

    Returns:
        Shape (batch, 1, height / cell, width / cell), bool.
    """
    touched = max_pool2d(masks.float(), cell)
    return max_pool2d(touched, dilation, stride=1, padding=dilation // 2) > 0


def draw_noise(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Gaussian noise of the shape of `like`, each image's from its own CPU generator."""
    shape = (1, *like.shape[1:])
    return torch.cat([torch.randn(shape, generator=one, dtype=like.dtype) for one in generators]).to(like)
