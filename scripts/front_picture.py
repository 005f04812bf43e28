"""Draw the picture of the landing page: a good surface, and the same surface with a defect by each method.

python scripts/front_picture.py runs/workshop

The surface is that of an image in AdaBLDM's pool. DDPM draws whole images, so its surface is another one.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from defaug_utils.book.profiles import read_defaults
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import image_seed, read_manifest
from defaug_utils.data.surfaces import DEFAULT_SIZE, draw_surface
from defaug_utils.diffusion.inpainting import InpaintSettings, inpaint_batch, load_inpainter
from defaug_utils.diffusion.jobs import InpaintJob
from defaug_utils.masks.shapes import ShapePriors, draw_shape
from defaug_utils.methods.memseg import simulate_anomaly
from defaug_utils.methods.textures import open_textures
from defaug_utils.report.pictures import show_images

ROOT = Path(__file__).parents[1]
POOL = "few-shot-seed0"
BLENDED, GENERATED = 15, 10  # images of AdaBLDM's pool and of DDPM's
MASK, NOISE, MEMSEG = 2, 1, 12  # seeds


def draw_defects(run: Path) -> dict[str, np.ndarray]:
    """Title → image (height, width, 3), uint8."""
    blended = read_manifest(run / "adabldm" / POOL / "manifest.csv").iloc[BLENDED]
    good_u8 = read_image(run / "data" / blended["source_image"])
    seed = image_seed(0, int(Path(blended["source_image"]).stem.removeprefix("train-")))
    if not np.array_equal(draw_surface(seed).image_u8, good_u8):
        raise SystemExit(f"{run} was not made by `make book` with the workshop's drawn surfaces")
    generated = read_manifest(run / "ddpm" / POOL / "manifest.csv").iloc[GENERATED]
    return {
        "good": good_u8,
        "its own defect": draw_surface(seed, "crack", severity=1.0).image_u8,
        "MemSeg": simulate_anomaly(good_u8, open_textures(), np.random.default_rng(MEMSEG)).image_u8,
        "DIAG": paint_by_diag(good_u8),
        "AdaBLDM": read_image(run / "adabldm" / POOL / blended["image"]),
        "DDPM": read_image(run / "ddpm" / POOL / generated["image"]),
    }


def paint_by_diag(good_u8: np.ndarray) -> np.ndarray:
    """A crack, painted as in chapter 4."""
    given = read_defaults("04_diag_inpainting", ROOT / "notebooks")
    priors = ShapePriors(length=(0.6, 0.9), width=(4.0, 7.0))
    mask = draw_shape("crack", DEFAULT_SIZE, priors, np.random.default_rng(MASK))
    settings = InpaintSettings(DEFAULT_SIZE, given["steps"], given["guidance"], given["strength"], None)
    job = InpaintJob(good_u8, mask, "background cracked", given["negative_prompt"], NOISE)
    return inpaint_batch(load_inpainter(ROOT / given["model"]), [job], settings)[0].image_u8


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, help="a finished run of the workshop's profile, such as runs/workshop"
    )
    parser.add_argument("--target", type=Path, default=ROOT / "book" / "_static" / "front.png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    drawn = draw_defects(given.run)
    figure = show_images(list(drawn.values()), list(drawn), columns=len(drawn), width=7.5)
    figure.savefig(given.target, dpi=110, bbox_inches="tight")
    Image.open(given.target).convert("RGB").quantize(256).save(given.target, optimize=True)


if __name__ == "__main__":
    main()
