"""Encode the drawn parts once, so that the U-Nets train on arrays of latents.

    python scripts/embedded/cache_latents.py --pool runs/embedded/pool --count 4000
    python scripts/embedded/cache_latents.py --autoencoder models/workshop/text2image/vae --without-masked

For every part: the latents with defect, without it, and of the clean surface with a mask cut out (grey, as in
the inpainting pipelines), and that mask. Masks are exact, widened, boxes or ovals around the defect.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from loop import choose_precision
from tqdm import tqdm
from train_autoencoder import load_autoencoder

BATCH = 16


def loosen_mask(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A mask as users and programs make it: exact, slightly or much wider, a box, or an oval around it.

    Wide, box and oval masks hide the defect's outline, so that its type can only be inferred from the text.
    """
    kind = rng.choice(["exact", "tight", "wide", "box", "oval"], p=[0.1, 0.2, 0.25, 0.15, 0.3])
    if kind == "exact":
        return mask
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if kind == "box":
        box = np.zeros_like(mask)
        gap = rng.integers(1, 9, 4)
        rows = slice(max(0, top - gap[0]), top + height + gap[1])
        box[rows, max(0, left - gap[2]) : left + width + gap[3]] = True
        return box
    if kind == "oval":
        oval = np.zeros(mask.shape, np.uint8)
        center = (left + width // 2, top + height // 2)
        axes = (int(0.55 * width + rng.integers(3, 14)), int(0.55 * height + rng.integers(3, 14)))
        cv2.ellipse(oval, center, axes, 0, 0, 360, 1, -1)
        return (oval > 0) | mask
    side = 2 * int(rng.integers(1, 4) if kind == "tight" else rng.integers(5, 12)) + 1
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))) > 0


@torch.no_grad()
def encode(model: torch.nn.Module, images_u8: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Mean latents, shape (batch, 4, height / 8, width / 8), float16; pixels under the mask become grey."""
    pixels = torch.from_numpy(images_u8).permute(0, 3, 1, 2).float() / 127.5 - 1
    if mask is not None:
        pixels = pixels * ~torch.from_numpy(mask)[:, None]
    with choose_precision():
        moments = model.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mean
    return moments.to(torch.float16).contiguous().numpy()


def cache_latents(
    pool: Path, folder: Path, model: torch.nn.Module, count: int, with_masked: bool = True
) -> None:
    """Write image.npy, clean.npy, masked.npy (latents) and mask.npy; resumes an interrupted call."""
    folder.mkdir(parents=True, exist_ok=True)
    image, clean, mask = (np.load(pool / f"{name}.npy", mmap_mode="r") for name in ("image", "clean", "mask"))
    shape = (count, 4, mask.shape[1] // 8, mask.shape[2] // 8)
    progress = folder / "done.txt"
    start = int(progress.read_text()) if progress.exists() else 0
    mode = "r+" if start else "w+"
    outputs = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode, np.float16, shape)
        for name in ("image", "clean", "masked")
    }
    masks = np.lib.format.open_memmap(folder / "mask.npy", mode, bool, (count, *mask.shape[1:]))
    for first in tqdm(range(start, count, BATCH), desc="latents", unit="batch"):
        part = slice(first, min(count, first + BATCH))
        loose = np.stack(
            [loosen_mask(np.random.default_rng([7, i]), mask[i]) for i in range(part.start, part.stop)]
        )
        outputs["image"][part] = encode(model, image[part])
        outputs["clean"][part] = encode(model, clean[part])
        if with_masked:
            outputs["masked"][part] = encode(model, clean[part], loose)
        masks[part] = loose
        progress.write_text(str(part.stop))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, default=Path("runs/embedded/pool"))
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded/latents"))
    parser.add_argument("--autoencoder", type=Path, default=Path("runs/embedded/autoencoder"))
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--without-masked", action="store_true", help="enough for text to image")
    arguments = parser.parse_args()
    cache_latents(
        arguments.pool,
        arguments.folder,
        load_autoencoder(arguments.autoencoder),
        arguments.count,
        not arguments.without_masked,
    )
