"""AdaBLDM's sampling in three stages, and decoding with adapted decoders (Li et al. 2024, section 3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from defaug_utils.core.guards import check_demands, describe_settings
from defaug_utils.diffusion import autoencoder
from defaug_utils.diffusion.autoencoder import AdaptationSettings, decode_latents, draw_noise, encode_images
from defaug_utils.diffusion.compositing import Box

STEPS = 50  # of DDIM, eta 0 (AdaBLDM's code)
GUIDANCE = 9.0  # AdaBLDM's code
LATENT_EDITING = (26, 46)  # first step and one past the last (AdaBLDM's code)
IMAGE_EDITING = (45, 50)  # first step and one past the last (AdaBLDM's code)
DILATION = 5  # latent cells, side of the box (AdaBLDM's code)


@dataclass(frozen=True)
class BlendSettings:
    """How a defect is blended into a good part; the defaults are AdaBLDM's.

    Before each step of latent editing, latents outside the defect are replaced by the good image's; after
    each step of image editing, pixels are. Ranges are (first step, one past the last), or None for no
    editing.
    """

    size: tuple[int, int] = (256, 256)  #: working size (width, height); images are stretched to it
    steps: int = STEPS
    guidance: float = GUIDANCE  #: weight of the prompt against the negative prompt; 1 is none
    latent_editing: tuple[int, int] | None = LATENT_EDITING
    image_editing: tuple[int, int] | None = IMAGE_EDITING
    dilation: int = DILATION  #: odd; side of the box that grows the defect in latent editing
    keep_detail: float = 0.0  #: see `InpaintSettings`; the paper adapts decoders instead
    paste_back: bool = True  #: restore the original outside the mask; AdaBLDM's code saves the whole output

    def __post_init__(self) -> None:
        latent, image = self.latent_editing, self.image_editing
        demands = {
            f"size {self.size} must be (width, height) of at least 8 × 8": min(self.size) >= 8,
            f"steps {self.steps} must be 1 or more": self.steps >= 1,
            f"guidance {self.guidance} must be in 1 … 100": 1 <= self.guidance <= 100,
            f"dilation {self.dilation} must be odd and 1 or more": self.dilation >= 1 and self.dilation % 2,
            f"keep_detail {self.keep_detail} must be in 0 … 1": 0 <= self.keep_detail <= 1,
            f"image_editing {image} must not begin or end before latent_editing {latent}": (
                not (latent and image) or (latent[0] <= image[0] and latent[1] <= image[1])
            ),
        }
        for name, borders in (("latent_editing", latent), ("image_editing", image)):
            demands[
                f"{name} {borders} must be None or (first step, one past the last) in order, within "
                f"0 … {self.steps}"
            ] = borders is None or (len(borders) == 2 and 0 <= borders[0] < borders[1] <= self.steps)
        check_demands("blend settings", demands)

    def describe(self) -> dict:
        """For the recipe of a pool."""
        return describe_settings(self, "keep_detail", "paste_back")

    def edits_latents(self, index: int) -> bool:
        """Whether latents are edited before step `index`."""
        return self.latent_editing is not None and index in range(*self.latent_editing)

    def edits_images(self, index: int) -> bool:
        """Whether the image is edited after step `index`."""
        return self.image_editing is not None and index in range(*self.image_editing)

    def name_stage(self, index: int) -> str:
        """The stage of step `index`; the later one if two overlap."""
        if self.edits_images(index):
            return "image editing"
        return "latent editing" if self.edits_latents(index) else "free"


class BlendStep(NamedTuple):
    """A step for callbacks: its number (from 0), its stage, and the clean latents that it predicts."""

    index: int
    stage: str
    clean_latents: Tensor


@torch.no_grad()
def blend_latents(
    images: Tensor,
    masks: Tensor,
    seeds: Sequence[int],
    denoise: autoencoder.Denoise,
    vae: nn.Module,
    scheduler: Any,
    settings: BlendSettings,
    on_step: Callable[[BlendStep], None] | None = None,
) -> Tensor:
    """Grow defects from noise and blend them into good images, in three stages (AdaBLDM, section 3.3).

    A defect forms freely, then is fitted to the good part's latents, then to its pixels. After a step the
    latents belong to the next time, to which an edited image is noised; after the last step it stays clean.

    Args:
        images: good ones at the working size, shape (batch, 3, height, width) in [-1, 1].
        masks: shape (batch, 1, height, width), bool, true on the defect.
        seeds: one per image, for its initial noise and the noise of its edits.
        denoise: the network: maps latents and time to its (guided) prediction.
        scheduler: diffusers' DDIMScheduler; it converts predicted noise or velocity to clean latents.
        on_step: called after every step.

    Returns:
        Clean latents, shape (batch, 4, height / cell, width / cell).
    """
    good = encode_images(vae, images)
    cells = autoencoder.cover_latent_cells(masks, images.shape[-1] // good.shape[-1], settings.dilation)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    scheduler.set_timesteps(settings.steps, device=images.device)
    latents = draw_noise(generators, good) * scheduler.init_noise_sigma
    for index, time in enumerate(scheduler.timesteps):
        if settings.edits_latents(index):
            noised = scheduler.add_noise(good, draw_noise(generators, good), time.repeat(len(good)))
            latents = torch.where(cells, latents, noised)
        latents, clean = scheduler.step(denoise(latents, time), time, latents, return_dict=False)
        if settings.edits_images(index):
            clean = encode_images(vae, torch.where(masks, decode_latents(vae, clean), images))
            latents = clean
            if index + 1 < len(scheduler.timesteps):
                following = scheduler.timesteps[index + 1].repeat(len(good))
                latents = scheduler.add_noise(clean, draw_noise(generators, good), following)
        if on_step:
            on_step(BlendStep(index, settings.name_stage(index), clean))
    return latents


def watch_images(
    vae: nn.Module, steps: Sequence[int], on_images: Callable[[int, str, list], None]
) -> Callable[[BlendStep], None]:
    """A callback for `blend_latents` that calls `on_images` with number, stage and images of some steps."""

    def watch(step: BlendStep) -> None:
        if step.index in steps:
            with torch.no_grad():
                on_images(step.index, step.stage, autoencoder.to_u8(decode_latents(vae, step.clean_latents)))

    return watch


class Blend(NamedTuple):
    """Jobs at the working size, and their clean latents; shapes as in `blend_latents`."""

    boxes: list[Box]  #: the processed part of each image
    images: Tensor
    masks: Tensor
    latents: Tensor


def adapt_each(
    vae: nn.Module, blend: Blend, settings: AdaptationSettings | None
) -> Iterator[autoencoder.Adaptation]:
    """Decode image by image, each with its own adapted decoder; the autoencoder stays unchanged."""
    for one in zip(*(part.split(1) for part in (blend.latents, blend.images, blend.masks)), strict=True):
        yield autoencoder.adapt_decoder(vae, *one, settings)


def decode_adapted(
    vae: nn.Module, blend: Blend, adaptation: AdaptationSettings | None
) -> list[tuple[np.ndarray, dict]]:
    """Decode a batch: each image's pixels (height, width, 3), roughly in [0, 1], and columns of its row."""
    if adaptation is None:
        with torch.no_grad():
            return [(_to_pixels(image), {}) for image in decode_latents(vae, blend.latents)]
    decoded = []
    for adapted in adapt_each(vae, blend, adaptation):
        before, after = (float(f"{adapted.losses[end]:.4g}") for end in (0, -1))
        are_finite = bool(np.isfinite([before, after]).all())
        further = {
            "adaptation_before": before if are_finite else None,
            "adaptation_after": after if are_finite else None,
            "adaptation_steps": len(adapted.losses) - 1,
            "adaptation_problem": adapted.problem,
        }
        decoded.append((_to_pixels(adapted.image[0]), further))
    return decoded


def _to_pixels(image: Tensor) -> np.ndarray:
    return (image.detach().float() / 2 + 0.5).permute(1, 2, 0).cpu().numpy()


class DecoderComparison(NamedTuple):
    """One image, decoded with the model's own decoder and with the adapted one, with errors in grey levels.

    The original is not restored outside the mask. Losses and problem are those of `Adaptation`.
    """

    own_u8: np.ndarray
    adapted_u8: np.ndarray
    mask: np.ndarray
    own: autoencoder.BackgroundError
    adapted: autoencoder.BackgroundError
    losses: list[float]
    problem: str


def compare_decoders(
    vae: nn.Module,
    blend: Blend,
    settings: AdaptationSettings | None = None,
    on_images: Callable[[int], None] | None = None,
) -> list[DecoderComparison]:
    """Decode every image of a batch both ways, and measure the errors outside the mask."""
    comparisons = []
    for good, mask, adapted in zip(blend.images, blend.masks, adapt_each(vae, blend, settings), strict=True):
        pair = (adapted.own_image, adapted.image)
        (own_u8,), (adapted_u8,) = map(autoencoder.to_u8, pair)
        errors = [autoencoder.measure_background(image, good[None], mask[None]) for image in pair]
        further = (mask[0].cpu().numpy(), *errors, adapted.losses, adapted.problem)
        comparisons.append(DecoderComparison(own_u8, adapted_u8, *further))
        if on_images:
            on_images(1)
    return comparisons


def tabulate_errors(comparisons: Sequence[DecoderComparison]) -> pd.DataFrame:
    """Errors in grey levels: image (from 0), place ("outside the mask" or "at its border"), before, after."""
    places = ("outside the mask", "at its border")
    rows = [
        (number, *told)
        for number, compared in enumerate(comparisons)
        for told in zip(places, compared.own, compared.adapted, strict=True)
    ]
    return pd.DataFrame(rows, columns=["image", "place", "before", "after"])
