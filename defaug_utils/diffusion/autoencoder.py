"""Images to latents and back, and a decoder adapted to one image (AdaBLDM: Li et al. 2024, section 3.4)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, mse_loss

from defaug_utils.core.guards import check_demands
from defaug_utils.core.images import fit_image

Denoise = Callable[[Tensor, Tensor], Tensor]  # latents and time → the network's prediction


def to_floats(images_u8: Sequence[np.ndarray]) -> Tensor:
    """Images (height, width, 3), uint8, as one tensor (batch, 3, height, width) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(images_u8)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1


def to_u8(images: Tensor) -> list[np.ndarray]:
    """Images (batch, 3, height, width) in [-1, 1] as uint8 (height, width, 3); NaN becomes grey."""
    clean = images.detach().float().nan_to_num().clamp(-1, 1)
    return list(((clean + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def encode_images(vae: nn.Module, images: Tensor) -> Tensor:
    """Latents, float32, of images (batch, 3, height, width) in [-1, 1], scaled as the U-Net expects."""
    return vae.encode(images.to(vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor


def decode_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """Images (batch, 3, height, width), float32, about in [-1, 1], of latents."""
    return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()


@torch.no_grad()
def autoencode(vae: nn.Module, images: Tensor) -> Tensor:
    """Images (batch, 3, height, width) in [-1, 1] as they come back, float32, in the same range.

    Any family's autoencoder will do: scale and shift of its latents cancel out. Where half precision would
    overflow (SDXL's), it computes in float32, as in diffusers' own pipelines, and is left as it was.
    """
    if overflows := vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        vae.to(torch.float32)
    pixels = images.to(vae.device, vae.dtype)
    if takes_frames := isinstance(vae.encoder.conv_in, nn.Conv3d):  # an image is a film of one frame
        pixels = pixels[:, :, None]
    returned = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.float().clamp(-1, 1)
    if overflows:
        vae.to(torch.float16)
    return returned[:, :, 0] if takes_frames else returned


@torch.inference_mode()
def autoencode_images(
    vae: nn.Module, images_u8: Sequence[np.ndarray], size: tuple[int, int], batch_size: int = 4
) -> list[np.ndarray]:
    """Images, uint8, encoded and decoded at a size (width, height): the best that a model can draw."""
    returned = []
    for start in range(0, len(images_u8), batch_size):
        fitted_u8 = [fit_image(image_u8, size) for image_u8 in images_u8[start : start + batch_size]]
        returned += to_u8(autoencode(vae, to_floats(fitted_u8)))
    return returned


def cover_latent_cells(masks: Tensor, cell: int, dilation: int = 1) -> Tensor:
    """The latent cells that masks (batch, 1, height, width) touch, grown by a box of odd side `dilation`."""
    touched = max_pool2d(masks.float(), cell)
    return max_pool2d(touched, dilation, stride=1, padding=dilation // 2) > 0


def draw_noise(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Gaussian noise with the shape of `like`; each image's comes from its own CPU generator."""
    shape = (1, *like.shape[1:])
    return torch.cat([torch.randn(shape, generator=one, dtype=like.dtype) for one in generators]).to(like)


# Number of the decoder's last modules that are trained; the others run once and their output is kept.
TRAINED_MODULES = {"all": None, "last_block": 4, "last_layer": 3}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class AdaptationSettings:
    """How a decoder is adapted; the defaults are those of AdaBLDM's code."""

    #: "all", or faster "last_block" (up-block and the rest) or "last_layer" (normalisation, convolution)
    parameters: str = "all"
    steps: int = 200  #: of AdamW; an upper limit
    learning_rate: float = 1e-4  #: of AdamW
    background_weight: float = 100.0  #: of the error outside the defect
    patience: int = 0  #: stop after this many steps without improvement; 0 never stops early
    improvement: float = 0.01  #: relative decrease of the lowest loss that counts as improvement
    precision: str = "float32"  #: of the forward pass, or "bfloat16"; the weights are always float32

    def __post_init__(self) -> None:
        trained = self.parameters
        demands = {
            f"parameters {trained!r} is not one of {', '.join(TRAINED_MODULES)}": trained in TRAINED_MODULES,
            f"precision {self.precision} is not one of {', '.join(PRECISIONS)}": self.precision in PRECISIONS,
            f"steps {self.steps} must be 1 or more": self.steps >= 1,
            f"learning_rate {self.learning_rate} must be above 0": self.learning_rate > 0,
            f"background_weight {self.background_weight} must not be negative": self.background_weight >= 0,
            f"patience {self.patience} must not be negative": self.patience >= 0,
            f"improvement {self.improvement} must be in 0 … 1, 1 excluded": 0 <= self.improvement < 1,
        }
        check_demands("decoder adaptation", demands)


class BackgroundError(NamedTuple):
    """Mean absolute error in grey levels outside the mask, and near its border (NaN without pixels)."""

    outside: float
    border: float


@dataclass(frozen=True)
class Adaptation:
    """The result for one image; images have shape (1, 3, height, width) and are roughly in [-1, 1]."""

    image: Tensor  #: from the adapted decoder, or from the model's own if that diverged
    own_image: Tensor  #: from the model's own decoder (its trained part in float32)
    losses: list[float]  #: before each step and after the last
    problem: str  #: why the adaptation was discarded; empty if it was kept


def adaptation_loss(decoded: Tensor, edited: Tensor, good: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Error to the edited image inside the mask, plus `weight` times the error to the good image outside.

    Both are means over all pixels; the mask (batch, 1, height, width) is true on the defect.
    """
    inside = mse_loss(decoded * mask, edited * mask)
    return inside + weight * mse_loss(decoded * ~mask, good * ~mask)


def adapt_decoder(
    vae: nn.Module, latents: Tensor, good: Tensor, mask: Tensor, settings: AdaptationSettings | None = None
) -> Adaptation:
    """Decode one image with a copy of the decoder that learns to leave the good part unchanged.

    Args:
        vae: diffusers' AutoencoderKL; it stays unchanged, bit for bit.
        latents: clean latents of one image, shape (1, 4, height / cell, width / cell).
        good: the good image, shape (1, 3, height, width) in [-1, 1].
        mask: shape (1, 1, height, width), bool, true on the defect.
    """
    settings = settings or AdaptationSettings()
    if good.shape != (1, 3, *mask.shape[2:]) or mask.shape[:2] != (1, 1) or len(latents) != 1:
        raise ValueError(
            f"latents {tuple(latents.shape)}, good {tuple(good.shape)}, mask {tuple(mask.shape)}: expected "
            "one image, (1, 4, …), (1, 3, height, width) and (1, 1, height, width)"
        )
    trained, features = split_decoder(vae, latents, settings.parameters)
    with torch.no_grad():
        own_image = trained(features)  # nothing is trained yet
    good = good.to(own_image)

    def measure() -> tuple[Tensor, Tensor]:
        precision = PRECISIONS[settings.precision]
        with torch.autocast(features.device.type, precision, enabled=precision != torch.float32):
            decoded = trained(features)
        decoded = decoded.float()
        return decoded, adaptation_loss(decoded, own_image, good, mask, settings.background_weight)

    losses = _descend(trained, measure, settings)
    with torch.no_grad():
        image, loss = measure()
    losses.append(loss.item())
    problem = find_divergence(losses)
    return Adaptation(own_image if problem else image, own_image, losses, problem)


def split_decoder(vae: nn.Module, latents: Tensor, parameters: str) -> tuple[nn.Module, Tensor]:
    """A float32 copy of the decoder's trained part, and the output of the part before it."""
    decoder = vae.decoder
    ending = [decoder.conv_norm_out, decoder.conv_act, decoder.conv_out]
    modules = [decoder.conv_in, decoder.mid_block, *decoder.up_blocks, *ending]
    cut = len(modules) - (TRAINED_MODULES[parameters] or len(modules))
    with torch.no_grad():
        features = (latents / vae.config.scaling_factor).to(vae.dtype)
        if vae.post_quant_conv is not None:
            features = vae.post_quant_conv(features)
        for module in modules[:cut]:
            features = module(features)
    trained = copy.deepcopy(nn.Sequential(*modules[cut:])).float().requires_grad_(True)
    # On CPUs PyTorch 2.13 crashes in this layout's backward pass on some shapes.
    layout = torch.channels_last if features.is_cuda else torch.contiguous_format
    return trained.to(memory_format=layout), features.float().contiguous(memory_format=layout)


@torch.enable_grad()
def _descend(
    trained: nn.Module, measure: Callable[[], tuple[Tensor, Tensor]], settings: AdaptationSettings
) -> list[float]:
    """Take AdamW steps until all are done, nothing improves or the loss is not finite; return the losses."""
    parameters, losses = list(trained.parameters()), []
    optimiser = torch.optim.AdamW(parameters, settings.learning_rate, fused=parameters[0].is_cuda)
    lowest, waited = float("inf"), 0
    for _ in range(settings.steps):
        _, loss = measure()
        losses.append(loss.item())
        has_improved = losses[-1] < lowest * (1 - settings.improvement)
        lowest, waited = (losses[-1], 0) if has_improved else (lowest, waited + 1)
        if not torch.isfinite(loss) or 0 < settings.patience <= waited:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return losses


def find_divergence(losses: list[float]) -> str:
    """Why an adaptation must not be used; empty if it may."""
    broken = [step for step, loss in enumerate(losses) if not loss < float("inf")]
    if broken:
        return f"the loss is not finite after {broken[0]} steps"
    if losses[-1] > losses[0]:
        return f"the loss rose from {losses[0]:.3g} to {losses[-1]:.3g}"
    return ""


def measure_background(image: Tensor, good: Tensor, mask: Tensor, width: int = 3) -> BackgroundError:
    """Error of an image before compositing, outside the mask; the border is `width` pixels wide."""
    difference = (image.clamp(-1, 1) - good).abs().mean(dim=1, keepdim=True) * 127.5
    grown = max_pool2d(mask.float(), 2 * width + 1, stride=1, padding=width) > 0
    return BackgroundError(float(difference[~mask].mean()), float(difference[grown & ~mask].mean()))
