"""Train the autoencoder of the embedded model (factor 8, 4 channels) on crops of the drawn parts.

    python scripts/embedded/train_autoencoder.py
    python scripts/embedded/train_autoencoder.py --decoder-only
    python scripts/embedded/train_autoencoder.py --decoder-only --start-from models/workshop/inpainting/vae

The second call, at any time after the first, trains only the decoder further, so that latents and U-Nets made
in the meantime stay valid. The third starts from a finished model's autoencoder.

The loss is the absolute difference, with more weight on defects so that thin ones survive, plus the
differences of the image gradients and of their local energy (so that textures keep their roughness), plus a
small Kullback-Leibler term. The decoder alone is trained for grain: latents don't contain the position of
each grain, so a loss on single pixels would smooth it away. Gradients therefore count only on defects;
elsewhere, the *power* in each part of the spectrum is matched.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from loop import Run, choose_precision, load_average
from start_linear import GROUPS, start_linear

from defaug_utils.core.files import write_png

CROP, BATCH = 64, 8
DEFECT_WEIGHT = 4.0
GRADIENT_WEIGHT, ENERGY_WEIGHT, KL_WEIGHT = 0.5, 0.5, 2e-4
SPECTRUM_WEIGHT = 0.15  # in the decoder's training
LONGEST_PERIOD = 16  # pixels; coarser structure is in the latents


def build_autoencoder() -> AutoencoderKL:
    """The architecture, with random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 96, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=GROUPS,
        mid_block_add_attention=False,
        sample_size=384,
    ).to(memory_format=torch.channels_last)


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The autoencoder of a training (with averaged weights) or of a model's folder."""
    if (folder / "config.json").exists():
        model, trained = build_autoencoder(), AutoencoderKL.from_pretrained(folder).float()
        model.load_state_dict(trained.state_dict())
        model.register_to_config(scaling_factor=trained.config.scaling_factor)
        return model.eval()
    return load_average(build_autoencoder(), folder)


def read_crops(rng: np.random.Generator, pool: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops, most of them around a defect, with flips: images in [-1, 1] and masks as floats."""
    image, clean, mask = (np.load(pool / f"{name}.npy", mmap_mode="r") for name in ("image", "clean", "mask"))
    crops, masks = [], []
    for index in rng.integers(0, len(mask), BATCH):
        rows, columns = np.nonzero(mask[index])
        pick = rng.integers(len(rows))
        center = (rows[pick], columns[pick]) if rng.random() < 0.7 else rng.integers(0, mask.shape[1:])
        top = int(np.clip(center[0] - rng.integers(CROP), 0, mask.shape[1] - CROP))
        left = int(np.clip(center[1] - rng.integers(CROP), 0, mask.shape[2] - CROP))
        window = (index, slice(top, top + CROP), slice(left, left + CROP))
        flip = (slice(None, None, int(rng.choice([-1, 1]))), slice(None, None, int(rng.choice([-1, 1]))))
        is_clean = rng.random() < 0.15
        crops.append((clean if is_clean else image)[window][flip])
        masks.append(mask[window][flip] & (not is_clean))
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.stack(masks))[
        :, None
    ].float()


def compute_gradients(pixels: torch.Tensor) -> torch.Tensor:
    """Differences to the right and lower neighbours, stacked as channels."""
    across = pixels[..., :-1, 1:] - pixels[..., :-1, :-1]
    down = pixels[..., 1:, :-1] - pixels[..., :-1, :-1]
    return torch.cat([across, down], 1)


def measure_energy(gradients: torch.Tensor) -> torch.Tensor:
    """Root mean square of the gradients in windows of 6 x 6 pixels."""
    return (functional.avg_pool2d(gradients.square(), 6, 3) + 1e-5).sqrt()


def measure_spectrum(pixels: torch.Tensor) -> torch.Tensor:
    """Logarithm of the power of brightness and two colour differences, for periods of 2 to 16 pixels.

    Power is averaged over 3 x 3 neighbouring frequencies, to reduce noise and so that a repeating pattern
    does not pass for grain. Shape (batch, 3, frequencies).
    """
    red, green, blue = pixels.unbind(1)
    signals = torch.stack([(red + green + blue) / 3, red - green, blue - green], 1)
    window = torch.hann_window(CROP)
    window = torch.outer(window, window) / window.square().mean()
    centred = (signals - signals.mean((2, 3), keepdim=True)) * window
    power = functional.avg_pool2d(torch.fft.rfft2(centred, norm="ortho").abs().square(), 3, 1, 1)
    frequency = torch.hypot(torch.fft.fftfreq(CROP)[:, None], torch.fft.rfftfreq(CROP)[None])
    is_grain = (frequency > 1 / LONGEST_PERIOD) & (frequency <= 1 / 2)
    return (power[..., is_grain] + 1 / 127.5**2).log()


def compute_losses(
    model: AutoencoderKL, pixels: torch.Tensor, mask: torch.Tensor, generator: torch.Generator
):
    """All terms of the loss for one batch."""
    is_decoder_only = not model.encoder.conv_in.weight.requires_grad
    with choose_precision():
        with torch.set_grad_enabled(not is_decoder_only):
            posterior = model.encode(pixels).latent_dist
        decoded = model.decode(posterior.sample(generator)).sample.float()
    weight = 1 + DEFECT_WEIGHT * mask
    difference = ((decoded - pixels).abs() * weight).mean()
    ours, theirs = compute_gradients(decoded), compute_gradients(pixels)
    gradient = ((ours - theirs).abs() * (weight - float(is_decoder_only))[..., :-1, :-1]).mean()
    energy = (measure_energy(ours) - measure_energy(theirs)).abs().mean()
    divergence = (
        0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    )
    loss = difference + GRADIENT_WEIGHT * gradient + ENERGY_WEIGHT * energy + KL_WEIGHT * divergence
    terms = {"difference": difference, "gradient": gradient, "energy": energy, "divergence": divergence}
    if is_decoder_only:
        terms["spectrum"] = (measure_spectrum(decoded) - measure_spectrum(pixels)).abs().mean()
        loss = loss + SPECTRUM_WEIGHT * terms["spectrum"]
    return {"loss": loss, **terms}


def save_samples(run: Run, validation: Path) -> None:
    """Write originals above their reconstructions with the averaged weights."""
    image = np.load(validation / "image.npy", mmap_mode="r")[:12]
    model = build_autoencoder()
    model.load_state_dict(run.average)
    with torch.no_grad():
        pixels = torch.from_numpy(image.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        decoded = model.decode(model.encode(pixels).latent_dist.mode()).sample
    ours = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    grid = np.vstack([np.hstack(list(image)), np.hstack(list(ours))])
    write_png(run.folder / "samples" / f"{run.step:06d}.png", grid)
    model.save_pretrained(run.folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, default=Path("runs/embedded/pool"))
    parser.add_argument("--validation", type=Path, default=Path("runs/embedded/validation"))
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded/autoencoder"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--start-from", type=Path, help="folder of a finished autoencoder to start from")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build_autoencoder()
    folder = arguments.folder
    if arguments.decoder_only:
        model = load_autoencoder(arguments.start_from or folder)
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
        folder = folder.with_name("decoder")
    else:
        start_linear(model)
    run = Run(folder, model, arguments.rate)
    run.train(
        lambda rng, generator: compute_losses(run.model, *read_crops(rng, arguments.pool), generator),
        arguments.steps,
        arguments.minutes,
        lambda: save_samples(run, arguments.validation),
    )


if __name__ == "__main__":
    main()
