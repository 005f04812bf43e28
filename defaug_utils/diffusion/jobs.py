"""Jobs of an inpainting model, and their results with the original restored outside the mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from defaug_utils.core.guards import raise_problems
from defaug_utils.core.images import is_grey, make_grey
from defaug_utils.diffusion.compositing import Box, add_detail, composite, paste_back


class InpaintJob(NamedTuple):
    """One image to make: a negative (height, width, 3), uint8, a mask (bool), prompts and a noise seed."""

    image_u8: np.ndarray
    mask: np.ndarray
    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True)
class InpaintedImage:
    """The result of a job; images are (height, width, 3), uint8."""

    image_u8: np.ndarray  #: finished; outside the mask it has the original's pixels if `is_restored`
    painted_u8: np.ndarray  #: the model's output, before the original is restored
    is_finite: bool  #: false if the model produced non-finite values
    latent_cells: int  #: latent cells that the mask touched; below about ten, expect little
    further: Mapping[str, object] = field(default_factory=dict)  #: columns for the image's row
    is_restored: bool = True  #: false if the finished image is the whole of the model's output


def check_jobs(jobs: Sequence[InpaintJob]) -> None:
    """Refuse masks that are not bool, not of their image's size, empty or full, all in one message."""
    problems = []
    for number, job in enumerate(jobs):
        shape = job.image_u8.shape
        if job.mask.dtype != bool:
            problems.append(f"job {number}: mask of {job.mask.dtype}, expected bool (use read_mask)")
        elif job.mask.shape != shape[:2]:
            problems.append(f"job {number}: mask {job.mask.shape} on an image {shape[:2]}; use fit_mask")
        elif not job.mask.any():
            problems.append(f"job {number}: the mask is empty, so there is nothing to paint")
        elif job.mask.all():
            problems.append(f"job {number}: the mask covers everything, so nothing of the part would be left")
    raise_problems("inpainting", problems)


def as_pixels(images: torch.Tensor) -> np.ndarray:
    """Images (batch, 3, height, width) as float32 of shape (batch, height, width, 3)."""
    return images.float().permute(0, 2, 3, 1).cpu().numpy()


def finish_image(
    job: InpaintJob,
    box: Box,
    pixels: np.ndarray,
    cells: int,
    returned: np.ndarray | None = None,
    feather: int = 0,
    keep_detail: float = 0.0,
    further: dict | None = None,
) -> InpaintedImage:
    """Paste `pixels` (height, width, 3), in [0, 1], into the image of a job, under its mask.

    If the image is grey (its three channels are exactly equal), each painted pixel becomes the mean of its
    channels, so that no trace of colour gives a generated defect away. With `keep_detail`, `returned` holds
    the pixels of the working image after a round trip through the autoencoder.
    """

    def paste(values: np.ndarray) -> np.ndarray:
        if is_grey(job.image_u8):
            values = make_grey(values)
        values_u8 = np.rint(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)
        return paste_back(job.image_u8, values_u8, box)

    painted_u8 = paste(pixels)
    if keep_detail:
        painted_u8 = add_detail(job.image_u8, painted_u8, paste(returned), keep_detail)
    finished_u8 = composite(job.image_u8, painted_u8, job.mask, feather)
    return InpaintedImage(finished_u8, painted_u8, bool(np.isfinite(pixels).all()), cells, further or {})
