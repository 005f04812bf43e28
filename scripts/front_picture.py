"""Draw the picture of the landing page: one good surface, and the same surface with a defect by each method.

python scripts/front_picture.py runs/workshop

DDPM draws whole images, so its surface is one of the run's pool.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from defaug_utils.book.profiles import read_defaults
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import read_manifest
from defaug_utils.data.surfaces import draw_surface
from defaug_utils.diffusion.autoencoder import AdaptationSettings
from defaug_utils.diffusion.controlnet import load_trimap_model
from defaug_utils.diffusion.inpainting import InpaintSettings, inpaint_batch, load_inpainter
from defaug_utils.diffusion.jobs import InpaintJob
from defaug_utils.diffusion.text2image import load_text2image
from defaug_utils.masks.shapes import ShapePriors, draw_shape
from defaug_utils.methods.adabldm import blend_batch
from defaug_utils.methods.blending import BlendSettings
from defaug_utils.methods.memseg import simulate_anomaly
from defaug_utils.methods.textures import open_textures
from defaug_utils.report.pictures import show_images

ROOT = Path(__file__).parents[1]
SIZE = (128, 384)


@dataclass(frozen=True)
class Choice:
    """What the picture shows: a choice, so that every method is seen at its work."""

    surface: int = 3  #: seed of the surface
    mask: int = 5  #: seed of the masks
    noise: int = 1  #: seed of the noise
    row: int = 0  #: of DDPM's pool


def draw_defects(run: Path, choice: Choice) -> dict[str, np.ndarray]:
    """Title → image (height, width, 3), uint8."""
    good_u8 = draw_surface(choice.surface).image_u8
    generator = np.random.default_rng(choice.mask)
    crack = draw_shape("crack", SIZE, ShapePriors(length=(0.7, 0.9), width=(4.0, 6.0)), generator)
    scratch = draw_shape("scratch", SIZE, ShapePriors(length=(0.7, 0.9), width=(4.0, 7.0)), generator)
    ddpm, further = run / "ddpm" / "few-shot-seed0", ("smooth, plain", choice.noise)
    return {
        "good": good_u8,
        "its own defect": draw_surface(choice.surface, "scratch", severity=0.8).image_u8,
        "MemSeg": simulate_anomaly(good_u8, open_textures(), np.random.default_rng(choice.noise)).image_u8,
        "DIAG": paint_by_diag(InpaintJob(good_u8, crack, "background cracked", *further)),
        "AdaBLDM": blend_by_adabldm(run, InpaintJob(good_u8, scratch, "background with a scratch", *further)),
        "DDPM": read_image(ddpm / read_manifest(ddpm / "manifest.csv")["image"].iloc[choice.row]),
    }


def paint_by_diag(job: InpaintJob) -> np.ndarray:
    """As in chapter 4."""
    given = read_defaults("04_diag_inpainting", ROOT / "notebooks")
    settings = InpaintSettings(SIZE, given["steps"], given["guidance"], given["strength"], None)
    return inpaint_batch(load_inpainter(ROOT / given["model"]), [job], settings)[0].image_u8


def blend_by_adabldm(run: Path, job: InpaintJob) -> np.ndarray:
    """As in chapter 5, with the run's ControlNet."""
    given = read_defaults("05_adabldm", ROOT / "notebooks")
    model = load_text2image(ROOT / given["model"], clip_skip=given["clip_skip"])
    steered = load_trimap_model(run / "controlnet" / "few-shot-seed0" / "controlnet", model)
    editing = (tuple(given["latent_editing"]), tuple(given["image_editing"]))
    settings = BlendSettings(SIZE, given["steps"], given["guidance"], *editing, given["dilation"])
    names = ("adapted_parameters", "adaptation_steps", "adaptation_rate", "background_weight")
    adaptation = AdaptationSettings(*(given[name] for name in names))
    return blend_batch(steered, [job], settings, adaptation)[0].image_u8


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run of the workshop's profile, such as runs/workshop")
    parser.add_argument("--target", type=Path, default=ROOT / "book" / "_static" / "front.png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    drawn = draw_defects(given.run, Choice())
    figure = show_images(list(drawn.values()), list(drawn), columns=len(drawn), width=7.5)
    figure.savefig(given.target, dpi=110, bbox_inches="tight")
    Image.open(given.target).convert("RGB").quantize(256).save(given.target, optimize=True)


if __name__ == "__main__":
    main()
