"""Small random changes of whole training images: rotation, brightness and contrast."""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample

LARGEST_ANGLE = 10.0  # ± degrees
LARGEST_FACTOR = 0.2  # of brightness and of contrast: each is multiplied by 0.8 … 1.2


def draw_jitter(count: int, generator: Generator) -> Tensor:
    """Angle in degrees, factor of brightness and factor of contrast of `count` images, shape (3, count)."""
    uniform = 2 * torch.rand((count, 3), generator=generator).T - 1
    return torch.stack([LARGEST_ANGLE * uniform[0], *(1 + LARGEST_FACTOR * uniform[1:])])


def jitter_images(images_u8: Tensor, jitter: Tensor) -> Tensor:
    """Change each image of a batch independently.

    Images are rotated about their centre, and corners are filled by mirroring the border. Brightness
    multiplies an image's mean, contrast the distance from it.

    Args:
        images_u8: shape (batch, height, width, 3), uint8; the result has the same form.
        jitter: shape (3, batch), see `draw_jitter`.
    """
    height, width = images_u8.shape[1:3]
    angle, brightness, contrast = jitter.to(images_u8.device)
    cosine, sine = torch.cos(angle * math.pi / 180), torch.sin(angle * math.pi / 180)
    zero = torch.zeros_like(angle)  # the grid's units are half the width and half the height
    rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]
    images = images_u8.permute(0, 3, 1, 2).float()
    grid = affine_grid(torch.stack(rows, dim=1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
    turned = grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    brightness, contrast = (factor[:, None, None, None] for factor in (brightness, contrast))
    mean = turned.mean(dim=(1, 2, 3), keepdim=True)
    changed = (turned - mean) * contrast + mean * brightness
    return changed.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
