"""An initialisation that makes the autoencoder linear before any training (mean colours of 8 x 8
blocks).

Group normalisation hides mean colours, so that a small autoencoder would spend most of a short training on
recovering them. Here three pairs of channels carry plus and minus a colour through the whole network, next to
constant channels that fix the normalisation's scale, and every residual branch starts at zero.
silu(x) - silu(-x) = x makes the last activation linear. All other weights stay random.
"""

import torch
from diffusers import AutoencoderKL
from torch import nn

CONSTANT = 3.0  # value of the channels that fix the normalisation's scale
LATENT_GAIN = 2.0  # latent units per unit of colour
START_LOG_VARIANCE = -4.0
GROUPS = 4


def _rows(channels: int, color: int) -> list[int]:
    """Channels of one colour in a layer: plus, minus, constant, minus constant; one colour per group."""
    return [color * (channels // GROUPS) + offset for offset in range(4)]


def _carry(conv: nn.Conv2d, kernel: torch.Tensor, sources: list[tuple[int, int]] | None = None) -> None:
    """Make a convolution pass the colour pairs on, smoothed by `kernel`, from its own or given `sources`."""
    for color in range(3):
        plus, minus, high, low = _rows(conv.out_channels, color)
        inputs = sources[color] if sources else _rows(conv.in_channels, color)[:2]
        for row in (plus, minus, high, low):
            conv.weight[row] = 0
            conv.bias[row] = 0
        conv.weight[plus, inputs[0]] = kernel
        conv.weight[minus, inputs[1]] = kernel if sources is None else -kernel
        conv.bias[high], conv.bias[low] = CONSTANT, -CONSTANT


def _read(conv: nn.Conv2d) -> None:
    """Make the last convolution of encoder or decoder output the colour pairs in its first channels."""
    conv.weight.zero_()
    conv.bias.zero_()
    for color in range(3):
        plus, minus = _rows(conv.in_channels, color)[:2]
        conv.weight[color, plus, 1, 1], conv.weight[color, minus, 1, 1] = 1, -1


def _fit(conv: nn.Conv2d, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Scale and shift the first three outputs to match their targets on flat patches."""
    for color in range(3):
        ours, theirs = outputs[:, color], targets[:, color]
        slope = ((ours - ours.mean()) * (theirs - theirs.mean())).sum() / (ours - ours.mean()).square().sum()
        conv.weight[color] *= slope
        conv.bias[color] = theirs.mean() - slope * ours.mean()


@torch.no_grad()
def start_linear(model: AutoencoderKL) -> None:
    """Overwrite the weights of a fresh autoencoder with `GROUPS` normalisation groups."""
    point, box, smooth = torch.zeros(3, 3), torch.zeros(3, 3), torch.tensor([1.0, 2.0, 1.0])
    point[1, 1], box[:2, :2], smooth = 1, 0.25, torch.outer(smooth, smooth) / 16
    pairs = [(color, color) for color in range(3)]
    _carry(model.encoder.conv_in, point, pairs)
    _carry(model.decoder.conv_in, point, pairs)
    for name, module in model.named_modules():
        if name.endswith("conv2"):
            module.weight.zero_()
            module.bias.zero_()
        elif name.endswith("conv_shortcut"):
            _carry(module, torch.ones(1, 1))
        elif name.endswith("downsamplers.0.conv"):
            _carry(module, box)
        elif name.endswith("upsamplers.0.conv"):
            _carry(module, smooth)
    for conv in (model.quant_conv, model.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.out_channels)[..., None, None])
        conv.bias.zero_()
    _read(model.encoder.conv_out)
    _read(model.decoder.conv_out)
    random = torch.Generator().manual_seed(0)
    model.encoder.conv_out.weight[3] = (
        torch.randn(model.encoder.conv_out.weight[3].shape, generator=random) * 0.12
    )
    colors = torch.rand(64, 3, generator=random) * 2 - 1
    patches = colors[..., None, None].expand(-1, -1, 64, 64).contiguous()
    latents = model.encode(patches).latent_dist.mean
    _fit(model.encoder.conv_out, latents[:, :, 4, 4], LATENT_GAIN * colors)
    model.encoder.conv_out.bias[4:] = START_LOG_VARIANCE
    latents = model.encode(patches).latent_dist.mean
    _fit(model.decoder.conv_out, model.decode(latents).sample[:, :, 32, 32], colors)
