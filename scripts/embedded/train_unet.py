"""Train text encoder and inpainting U-Net together, then the text-to-image U-Net from them.

    python scripts/embedded/train_unet.py --task inpainting
    python scripts/embedded/train_unet.py --task text2image
    python scripts/embedded/train_unet.py --task text2image --start-from models/workshop/text2image

Inpainting paints a named defect (or clean surface) into a masked clean surface; most steps use windows around
the defect. In three of ten images everything is masked, which is text to image: there the words matter most.
The text-to-image U-Net starts as this special case of the inpainting one, folded into a first layer of 4
channels, and keeps the text encoder. `--start-from` uses a finished model's weights instead, with its
tokenizer, text encoder and autoencoder; the latents must come from that autoencoder.

Text to image is trained with pure noise at the last step, and with offset noise: a random shift shared by all
cells of a channel. Together these teach it not to read an image's colour from the mean of its noise.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from cache_latents import encode
from loop import Run, choose_precision, load_average
from parts import Denoiser, build_pipeline, build_scheduler, load_denoiser
from PIL import Image
from train_autoencoder import load_autoencoder
from train_text import TextReader, list_labels
from transformers import CLIPTokenizer
from worlds import caption_clean, caption_defect

from defaug_utils.core.files import write_png

FRAMES, WINDOWS, WINDOW = 4, 12, 16  # images per step: full frames, or windows of that many latent rows
CLEAN_SHARE, ALL_MASKED_SHARE = 0.2, 0.3
NOISE_OFFSET = 0.2  # for text to image: deviation of the shift of an image's noise, per channel
MASK_WEIGHT, DEFECT_WEIGHT = 2.0, 6.0  # added to the loss's weight of 1, under the mask and on the defect
SAMPLE_PROMPTS = ["a long dark scratch", "background cracked", "white marks on the wall", "a deep black hole",
                  "a large stain", "copper metal scratches"]  # fmt: skip


class Latents(NamedTuple):
    """The cached arrays, the factor that gives them unit variance, and the latents of an all-grey image."""

    image: np.ndarray
    clean: np.ndarray
    masked: np.ndarray
    mask: np.ndarray
    defect: np.ndarray
    words: list[dict[str, str]]
    factor: float
    grey: torch.Tensor


class Batch(NamedTuple):
    """The data of one step."""

    target: torch.Tensor
    mask: torch.Tensor
    masked: torch.Tensor
    weight: torch.Tensor
    captions: list[str]


def load_latents(folder: Path, pool: Path, autoencoder: torch.nn.Module) -> Latents:
    """Open the part of the cache that has been written."""
    done = int((folder / "done.txt").read_text())
    names = ("image", "clean", "masked", "mask")
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r")[:done] for name in names]
    grey = torch.from_numpy(encode(autoencoder, np.full((1, 384, 128, 3), 127.5, np.float32))).float()
    factor = 1 / float(arrays[1][:1000].astype(np.float32).std())
    defect = np.load(pool / "mask.npy", mmap_mode="r")
    return Latents(*arrays, defect, json.loads((pool / "words.json").read_text()), factor, grey)


def touch_cells(mask: np.ndarray) -> np.ndarray:
    """The latent cells that contain any pixel of a mask."""
    return mask.reshape(48, 8, 16, 8).any((1, 3))


def read_batch(
    rng: np.random.Generator, latents: Latents, with_windows: bool, all_masked_share: float, count: int
) -> Batch:
    """Draw parts, defective or clean, with their conditions: mask, surroundings, caption."""
    rows = []
    for index in rng.integers(0, len(latents.mask), count):
        words, mask = latents.words[index], latents.mask[index]
        is_clean = rng.random() < CLEAN_SHARE
        target = (latents.clean if is_clean else latents.image)[index]
        known, coarse, defect = latents.masked[index], mask[::8, ::8], touch_cells(latents.defect[index])
        weight = 1 + MASK_WEIGHT * touch_cells(mask) + DEFECT_WEIGHT * defect
        if rng.random() < all_masked_share:
            known, coarse = latents.grey[0].numpy(), np.ones_like(coarse)
        if with_windows:
            words = {**words, "place": ""}
            hit = int(rng.choice(np.nonzero(defect)[0]))
            top = int(np.clip(hit - rng.integers(WINDOW), 0, 48 - WINDOW))
            window = slice(top, top + WINDOW)
            target, known, coarse, weight = (
                target[:, window],
                known[:, window],
                coarse[window],
                weight[window],
            )
        caption = (caption_clean if is_clean else caption_defect)(rng, words)
        rows.append((target, coarse[None], known, weight[None], caption))
    target, coarse, known, weight, captions = zip(*rows, strict=True)
    stack = [torch.from_numpy(np.stack(part).astype(np.float32)) for part in (target, coarse, known, weight)]
    return Batch(stack[0] * latents.factor, stack[1], stack[2] * latents.factor, stack[3], list(captions))


def draw_noise(shape: torch.Size, generator: torch.Generator, offset: float) -> torch.Tensor:
    """Noise of unit variance, plus `offset` times a shift for each image and channel."""
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise += offset * torch.randn((*shape[:2], 1, 1), generator=generator)
    return noise


def compute_losses(denoiser: Denoiser, tokenizer: CLIPTokenizer, batch: Batch, generator: torch.Generator):
    """Weighted squared error of the predicted velocity."""
    scheduler = build_scheduler(denoiser.unet.config.in_channels)
    count, is_inpainting = len(batch.captions), denoiser.unet.config.in_channels == 9
    noise = draw_noise(batch.target.shape, generator, 0.0 if is_inpainting else NOISE_OFFSET)
    times = torch.randint(0, scheduler.config.num_train_timesteps, (count,), generator=generator)
    sample = scheduler.add_noise(batch.target, noise, times)
    if is_inpainting:
        sample = torch.cat([sample, batch.mask, batch.masked], 1)
    tokens = tokenizer(batch.captions, padding="max_length", truncation=True, return_tensors="pt")
    with choose_precision():
        velocity = denoiser(sample, times, tokens.input_ids).float()
    is_defect = batch.weight > 1 + MASK_WEIGHT
    error = (velocity - scheduler.get_velocity(batch.target, noise, times)).square()
    return {
        "loss": (error * batch.weight).mean() / batch.weight.mean(),
        "on_defect": (error.detach() * is_defect).sum() / (4 * is_defect.sum()),
    }


@torch.no_grad()
def fold_unet(inpainting: Denoiser, tokenizer: CLIPTokenizer, latents: Latents) -> Denoiser:
    """Text to image as inpainting with everything masked: its constants move into the first bias."""
    denoiser = Denoiser(tokenizer, 4)
    state = inpainting.state_dict()
    weight = state.pop("unet.conv_in.weight")
    constants = torch.cat([torch.ones(1), latents.factor * latents.grey[0, :, 20:28, 6:10].mean((1, 2))])
    state["unet.conv_in.bias"] = state["unet.conv_in.bias"] + weight[:, 4:].sum((2, 3)) @ constants
    state["unet.conv_in.weight"] = weight[:, :4].clone()
    denoiser.load_state_dict(state)
    return denoiser


def save_inpainted(run: Run, tokenizer: CLIPTokenizer, autoencoder, factor: float, validation: Path) -> None:
    """Write a grid: masked surfaces above the results with the averaged weights."""
    denoiser = Denoiser(tokenizer, 9)
    denoiser.load_state_dict(run.average)
    autoencoder.register_to_config(scaling_factor=factor)
    pipeline = build_pipeline(autoencoder, denoiser.eval(), tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    clean = np.load(validation / "clean.npy", mmap_mode="r")[: len(SAMPLE_PROMPTS)]
    mask = np.zeros(clean.shape[:3], np.uint8)
    for oval in mask:  # one for all, so that the outline gives nothing away
        cv2.ellipse(oval, (64, 192), (44, 34), 0, 0, 360, 1, -1)
    mask = mask > 0
    images = pipeline(
        SAMPLE_PROMPTS,
        image=[Image.fromarray(picture) for picture in clean],
        mask_image=[Image.fromarray((m * 255).astype(np.uint8)) for m in mask],
        height=384, width=128, num_inference_steps=15, guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(mask))],
    ).images  # fmt: skip
    holes = [
        np.where(m[..., None], 127, picture).astype(np.uint8) for picture, m in zip(clean, mask, strict=True)
    ]
    ours = [np.asarray(picture) for picture in images]
    pasted = [np.where(m[..., None], a, c) for a, c, m in zip(ours, clean, mask, strict=True)]
    rows = [np.hstack(row) for row in (holes, ours, pasted)]
    write_png(run.folder / "samples" / f"{run.step:06d}.png", np.hstack(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["inpainting", "text2image"], required=True)
    parser.add_argument("--root", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--frames", type=int, default=FRAMES, help="full frames per step")
    parser.add_argument("--start-from", type=Path, help="model in diffusers' layout to start from")
    arguments = parser.parse_args()
    root, is_inpainting = arguments.root, arguments.task == "inpainting"
    torch.manual_seed(0)
    start, channels = arguments.start_from, 9 if is_inpainting else 4
    tokenizer = CLIPTokenizer.from_pretrained((start or root) / "tokenizer")
    autoencoder = load_autoencoder(start / "vae" if start else root / "autoencoder")
    latents = load_latents(root / "latents", root / "pool", autoencoder)
    if start:
        latents = latents._replace(factor=autoencoder.config.scaling_factor)
        model = load_denoiser(start, tokenizer, channels)
        model.text_encoder.requires_grad_(False)
    elif is_inpainting:
        model = Denoiser(tokenizer, 9)
        reader = load_average(TextReader(tokenizer, len(list_labels(latents.words))), root / "text")
        model.text_encoder.load_state_dict(reader.text_encoder.state_dict())
    else:
        model = fold_unet(load_average(Denoiser(tokenizer, 9), root / "inpainting"), tokenizer, latents)
        model.text_encoder.requires_grad_(False)
    run = Run(root / arguments.task, model, arguments.rate if is_inpainting else 0.25 * arguments.rate)

    def compute(rng: np.random.Generator, generator: torch.Generator) -> dict[str, torch.Tensor]:
        with_windows = is_inpainting and run.step % 3 > 0
        count = WINDOWS if with_windows else arguments.frames
        batch = read_batch(rng, latents, with_windows, ALL_MASKED_SHARE, count)
        return compute_losses(model, tokenizer, batch, generator)

    def on_save() -> None:
        if is_inpainting:
            save_inpainted(run, tokenizer, autoencoder, latents.factor, root / "validation")

    run.train(compute, arguments.steps, arguments.minutes, on_save)


if __name__ == "__main__":
    main()
