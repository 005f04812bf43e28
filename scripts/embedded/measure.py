"""Measure the embedded model on parts not used in any training; writes measurements.json and images.

    python scripts/embedded/measure.py --model models/workshop --folder runs/embedded/measured

- Reconstruction PSNR of the autoencoder inside and outside the defect masks, and the share of the true power
  that it reproduces in each band of the spectrum: PSNR compares each grain, the bands only their amount.
- Text to image: how much of an image's colour is explained by the mean of its initial noise. By chance, a fit
  on four channels would explain about 9 % of the variance among 48 images.
- Inpainted images: the share in which the segmenter (trained only on procedural parts) finds a defect inside
  the mask, and the requested one, compared with untouched negatives and the world's own defects. This is
  measured with masks of the requested type's shape, and with one oval for all types, so that the shape gives
  nothing away.
- What a trip through the autoencoder costs a classifier, see round_trip.py; this part needs no training.
- The largest difference outside the mask after pasting, which must be 0, and the time for 8 images.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from loop import load_average
from PIL import Image
from round_trip import measure_round_trip
from train_segmenter import Segmenter
from world_defects import DEFECTS

from defaug_utils.core.files import write_json, write_png

FOUND_SHARE = 0.25  # share of the mask's pixels that must be classified as defect
BATCH = 8
OF_POOL = ["inpainting", "reconstruction", "speed"]  # parts that look at the validation pool
PARTS = [*OF_POOL, "text2image", "colour_on_noise", "round_trip"]
BANDS = {"2_to_4_pixels": (2, 4), "4_to_8_pixels": (4, 8), "8_to_16_pixels": (8, 16)}  # periods
COLOUR_PROMPTS = ["skt background cracked", "white marks on the skt background"]  # the chapter's
COLOUR_COUNT, COLOUR_SETTINGS = 48, {"num_inference_steps": 8, "guidance_scale": 2.0}  # likewise
TEXTS = [
    "background",
    "background",
    "background scratched",
    "background cracked",
    "white marks on the wall",
    "copper metal scratches",
    "red leather",
    "a large stain on grey fabric",
    "wood",
    "smooth, plain",
    "green circuit board",
    "a deep black hole on white paper",
]


@torch.no_grad()
def measure_reconstruction(vae, images_u8: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Mean over images of the PSNR in dB, inside and outside the masks, and `measure_bands`."""
    inside, outside, ours = [], [], []
    for image, mask in zip(images_u8, masks, strict=True):
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0].permute(1, 2, 0)
        ours.append((decoded.clamp(-1, 1) * 127.5 + 127.5).numpy())
        error = np.square(ours[-1] - image).mean(2)
        inside.append(error[mask].mean())
        outside.append(error[~mask].mean())
    psnr = {name: 10 * np.log10(255**2 / np.array(errors)) for name, errors in
            (("inside", inside), ("outside", outside))}  # fmt: skip
    report = {f"psnr_{name}_db": round(float(values.mean()), 2) for name, values in psnr.items()}
    return report | {"power_kept": measure_bands(np.stack(ours), images_u8)}


def measure_power(images: np.ndarray) -> np.ndarray:
    """Power of every image (batch, height, width, 3) in each of `BANDS`, shape (batch, bands)."""
    images = images.astype(np.float32)
    spectrum = np.abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True), axes=(1, 2))) ** 2
    rows, columns = (np.fft.fftfreq(side)[:, None] for side in images.shape[1:3])
    frequency = np.hypot(rows, columns.T)
    bands = [(frequency > 1 / longest) & (frequency <= 1 / shortest) for shortest, longest in BANDS.values()]
    return np.stack([spectrum[:, band].sum((1, 2)) for band in bands], 1)


def measure_bands(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Median over images of the power in a band, as a share of the true power."""
    shares = np.median(measure_power(ours) / measure_power(theirs), axis=0)
    return {name: round(float(share), 3) for name, share in zip(BANDS, shares, strict=True)}


def inpaint(
    pipeline, prompts: list[str], images_u8: np.ndarray, masks: np.ndarray, settings: dict
) -> np.ndarray:
    """Paint each prompt into its mask and paste the result over the original."""
    pasted = []
    for first in range(0, len(prompts), BATCH):
        part = slice(first, first + BATCH)
        painted = pipeline(
            prompts[part],
            image=[Image.fromarray(image) for image in images_u8[part]],
            mask_image=[Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks[part]],
            height=images_u8.shape[1],
            width=images_u8.shape[2],
            generator=[
                torch.Generator().manual_seed(i) for i in range(first, min(first + BATCH, len(prompts)))
            ],
            **settings,
        ).images
        pasted += [np.where(m[..., None], np.asarray(ours), image) for ours, image, m in
                   zip(painted, images_u8[part], masks[part], strict=True)]  # fmt: skip
    return np.stack(pasted)


@torch.no_grad()
def judge(segmenter: Segmenter, images_u8: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image: share of the mask classified as defect, and the most frequent type (-1 for none)."""
    shares, types = [], []
    for image, mask in zip(images_u8, masks, strict=True):
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        logits = segmenter(pixels)[0]
        inside = torch.from_numpy(mask.reshape(mask.shape[0] // 2, 2, -1, 2).any((1, 3)))
        calls = logits.argmax(0)[inside]
        shares.append(float((calls > 0).float().mean()))
        counts = torch.bincount(calls, minlength=1 + len(DEFECTS))[1:]
        types.append(int(counts.argmax()) if counts.sum() else -1)
    return np.array(shares), np.array(types)


def summarize(shares: np.ndarray, types: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """Shares of images in which a defect is found, and in which it is the requested one."""
    found = shares >= FOUND_SHARE
    return {
        "found": round(float(found.mean()), 3),
        "found_as_asked": round(float((found & (types == asked)).mean()), 3),
    }


def draw_ovals(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    """One oval of 36 x 28 pixels per image, anywhere inside."""
    masks = np.zeros((count, *shape), np.uint8)
    for mask in masks:
        center = int(rng.integers(24, shape[1] - 24)), int(rng.integers(24, shape[0] - 24))
        cv2.ellipse(mask, center, (18, 14), float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return masks > 0


def make_grid(rows: list[np.ndarray], count: int) -> np.ndarray:
    """Rows of images, the first `count` of each."""
    return np.vstack([np.hstack(list(row[:count])) for row in rows])


def measure_inpainting(arguments: argparse.Namespace, pool: dict[str, np.ndarray], asked: np.ndarray) -> dict:
    """All measurements of the inpainting U-Net."""
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(arguments.model / "inpainting")
    pipeline.set_progress_bar_config(disable=True)
    segmenter = load_average(Segmenter(), arguments.root / "segmenter")
    settings = {
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "strength": 0.99,
    }
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    shaped = np.stack([cv2.dilate(mask.astype(np.uint8), kernel) > 0 for mask in pool["mask"]])
    ovals = draw_ovals(np.random.default_rng(0), len(asked), shaped.shape[1:])
    names = list(DEFECTS)
    prompts = [f"a {names[kind]}" for kind in asked]
    report = {"settings": settings, "images": len(asked), "chance_as_asked": round(1 / len(names), 3)}
    outside = 0
    for name, masks in (("own_shape", shaped), ("oval", ovals)):
        images = inpaint(pipeline, prompts, pool["clean"], masks, settings)
        difference = np.abs(images.astype(int) - pool["clean"])
        outside = max(outside, int(difference[~masks].max()))
        report[name] = summarize(*judge(segmenter, images, masks), asked)
        report[name]["untouched_found"] = summarize(*judge(segmenter, pool["clean"], masks), asked)["found"]
        report[name]["mean_change_inside"] = round(float(difference[masks].mean()), 2)
        write_png(arguments.folder / f"{name}.png", make_grid([pool["clean"], images], 12))
    report["largest_change_outside"] = outside
    report["world"] = summarize(*judge(segmenter, pool["image"], shaped), asked)
    return report


def measure_speed(arguments: argparse.Namespace, pool: dict[str, np.ndarray]) -> dict[str, float]:
    """Seconds for 8 images with 30 steps on this machine."""
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(arguments.model / "inpainting")
    pipeline.set_progress_bar_config(disable=True)
    ovals = draw_ovals(np.random.default_rng(0), 8, pool["clean"].shape[1:3])
    settings = {"num_inference_steps": 30, "guidance_scale": arguments.guidance, "strength": 0.99}
    start = time.perf_counter()
    inpaint(pipeline, ["a scratch"] * 8, pool["clean"][:8], ovals, settings)
    return {
        "seconds_8_images_30_steps": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
    }


def explain_colours(noise: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """How much of the mean colours a linear fit on the mean noise explains.

    Args:
        noise: initial latents, shape (batch, channels, rows, columns).
        images: shape (batch, height, width, 3), grey levels.

    Returns:
        The explained share of the variance (R²) of red, green and blue, and in grey levels the deviation
        of the colours and that of what is explained, over all three.
    """
    means, colours = noise.mean((2, 3)), images.mean((1, 2))
    inputs = np.column_stack([np.ones(len(means)), means])
    fitted = inputs @ np.linalg.lstsq(inputs, colours, rcond=None)[0]
    explained, total = fitted.var(0), colours.var(0)
    shares = dict(zip(("red", "green", "blue"), explained / total, strict=True))
    report = {**shares, "explained_levels": explained.mean() ** 0.5, "colour_levels": total.mean() ** 0.5}
    return {name: round(float(value), 3) for name, value in report.items()}


def measure_colour_on_noise(folder: Path, count: int = COLOUR_COUNT) -> tuple[dict, np.ndarray]:
    """Draw images as in the chapter on fine-tuning; return what explains their colours, and the images."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.stack(
        [torch.randn(4, 48, 16, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    )
    prompts = [COLOUR_PROMPTS[i % len(COLOUR_PROMPTS)] for i in range(count)]
    images = [
        255 * pipeline(prompts[first : first + BATCH], latents=noise[first : first + BATCH], output_type="np",
                       height=384, width=128, **COLOUR_SETTINGS).images
        for first in range(0, count, BATCH)
    ]  # fmt: skip
    images = np.concatenate(images)
    report = {"images": count, "settings": COLOUR_SETTINGS, **explain_colours(noise.numpy(), images)}
    return report, images.round().astype(np.uint8)


def draw_text2image(arguments: argparse.Namespace) -> None:
    """Write a row of images drawn from text alone."""
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.model / "text2image")
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(i) for i in range(len(TEXTS))]
    images = pipeline(
        TEXTS, num_inference_steps=arguments.steps, guidance_scale=4.0, generator=generator
    ).images
    write_png(arguments.folder / "text2image.png", np.hstack([np.asarray(image) for image in images]))


def read_pool(arguments: argparse.Namespace) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Images of the validation pool, and the number of each one's defect."""
    validation = arguments.root / "validation"
    pool = {
        n: np.load(validation / f"{n}.npy", mmap_mode="r")[: arguments.images]
        for n in ("image", "clean", "mask")
    }
    words = json.loads((validation / "words.json").read_text())[: arguments.images]
    return pool, np.array([list(DEFECTS).index(entry["defect"]) for entry in words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--model", type=Path, default=Path("models/workshop"))
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded/measured"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure again")
    arguments = parser.parse_args()
    pool, asked = read_pool(arguments) if set(arguments.parts) & set(OF_POOL) else ({}, np.empty(0))
    path = arguments.folder / "measurements.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    if "inpainting" in arguments.parts:
        report["inpainting"] = measure_inpainting(arguments, pool, asked)
    if "reconstruction" in arguments.parts:
        vae = StableDiffusionInpaintPipeline.from_pretrained(arguments.model / "inpainting").vae
        report["reconstruction"] = measure_reconstruction(vae, pool["image"], pool["mask"])
    if "speed" in arguments.parts:
        report["speed"] = measure_speed(arguments, pool)
    if "text2image" in arguments.parts:
        draw_text2image(arguments)
    if "colour_on_noise" in arguments.parts:
        report["colour_on_noise"], images = measure_colour_on_noise(arguments.model / "text2image")
        write_png(arguments.folder / "colour_on_noise.png", make_grid([images[:16], images[16:32]], 16))
    if "round_trip" in arguments.parts:
        report["round_trip"] = measure_round_trip(arguments.model, arguments.folder / "round_trip")
    write_json(path, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
