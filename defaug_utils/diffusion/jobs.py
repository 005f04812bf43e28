"""What is asked of an inpainting model for one image, and what became of it, the original put back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from defaug_utils.core.guards import raise_problems
from defaug_utils.core.images import is_grey
from defaug_utils.diffusion.compositing import Box, add_detail, composite, paste_back


class InpaintJob(NamedTuple):
    """One image to make: a negative (height, width, 3) uint8, a mask (bool), texts and the noise's seed."""

    image_u8: np.ndarray
    mask: np.ndarray
    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True)
class InpaintedImage:
    """What became of a job; images are (height, width, 3), uint8."""

    image_u8: np.ndarray  #: finished; the original's own pixels outside the mask
    painted_u8: np.ndarray  #: what the model made, before the original was put back
    is_finite: bool  #: false where the model gave values that are no numbers
    latent_cells: int  #: cells of the latent grid that the mask touched; below some ten, expect little
    further: Mapping[str, object] = field(default_factory=dict)  #: columns for the image's row


def check_jobs(jobs: Sequence[InpaintJob]) -> None:
    """Refuse masks that are not bool, of another size than their image, empty or full, all in one message."""
    problems = []
    for number, job in enumerate(jobs):
        shape = job.image_u8.shape
        if job.mask.dtype != bool:
            problems.append(f"job {number}: mask of {job.mask.dtype}, expected bool (read_mask gives that)")
        elif job.mask.shape != shape[:2]:
            problems.append(f"job {number}: mask {job.mask.shape} on an image {shape[:2]}; use fit_mask")
        elif not job.mask.any():
            problems.append(f"job {number}: the mask is empty, there is nothing to paint")
        elif job.mask.all():
            problems.append(f"job {number}: the mask covers everything, nothing of the part would be left")
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
    """Put `pixels` (height, width, 3), in [0, 1], back into the image of a job, under its mask.

    On a grey image (its three channels are exactly equal) what was painted loses its colour: each pixel
    becomes the mean of its channels, so that a colour never tells a generated defect of a grey camera.
    With `keep_detail`, `returned` are the pixels of the working picture as the autoencoder gives it back.
    """

    def put_back(values: np.ndarray) -> np.ndarray:
        if is_grey(job.image_u8):
            values = values.mean(axis=2, keepdims=True).repeat(3, axis=2)
        values_u8 = np.rint(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)
        return paste_back(job.image_u8, values_u8, box)

    painted_u8 = put_back(pixels)
    if keep_detail:
        painted_u8 = add_detail(job.image_u8, painted_u8, put_back(returned), keep_detail)
    finished_u8 = composite(job.image_u8, painted_u8, job.mask, feather)
    return InpaintedImage(finished_u8, painted_u8, bool(np.isfinite(pixels).all()), cells, further or {})
