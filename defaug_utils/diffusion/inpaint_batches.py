"""Painting defects in batches: every image by its own seed, the original kept outside its mask."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from defaug_utils.core.prompts import check_prompts
from defaug_utils.diffusion.compositing import Box, choose_box, composite, cover_cells, cut_out, paste_back
from defaug_utils.diffusion.inpaint import Inpainter
from defaug_utils.diffusion.inpaint_settings import InpaintSettings
from defaug_utils.training.memory import run_in_parts


class InpaintJob(NamedTuple):
    """One image to make: a negative (height, width, 3) uint8, a mask (bool), texts and the noise's seed."""

    image_u8: np.ndarray
    mask: np.ndarray
    prompt: str
    negative_prompt: str
    seed: int


class InpaintedImage(NamedTuple):
    """What became of a job.

    Attributes:
        image_u8: finished, shape (height, width, 3), uint8; the original's own pixels outside the mask.
        painted_u8: what the model made, before the original was put back.
        is_finite: false where the model gave values that are no numbers.
        latent_cells: cells of the latent grid that the mask touched; below some ten, expect little.
        further: columns that the method adds to the image's row.
    """

    image_u8: np.ndarray
    painted_u8: np.ndarray
    is_finite: bool
    latent_cells: int
    further: Mapping[str, object] = MappingProxyType({})


def inpaint_batch(
    inpainter: Inpainter,
    jobs: Sequence[InpaintJob],
    settings: InpaintSettings,
    on_images: Callable[[int], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[InpaintedImage]:
    """Paint all jobs at once; when memory does not suffice, in halves.

    Each image has a CPU generator of its own seed. On one machine an image is the same whatever its place
    among as many others; among fewer or more, the last bits of floating point may differ.

    Args:
        inpainter: the model.
        jobs: what to paint; images of any size.
        settings: steps, guidance, strength, sizes.
        on_images: called with the number of images just painted.
        on_step: called after every denoising step; what it raises ends the painting there and is passed on.

    Returns:
        One result a job, in order.

    Raises:
        ValueError: a mask is empty, full, not bool or of another size; a text is empty or too long; the
            working size does not suit the model.
        MemoryError: not even one image fits.
    """
    settings.check_size(inpainter.cell)
    check_jobs(jobs)
    check_prompts(inpainter, [job.prompt for job in jobs])
    check_prompts(inpainter, [job.negative_prompt for job in jobs if job.negative_prompt])
    return run_in_parts(
        jobs, lambda part: _paint(inpainter, part, settings, on_step), inpainter, settings.size, on_images
    )


def check_jobs(jobs: Sequence[InpaintJob]) -> None:
    """Refuse masks that make no sense, all in one message.

    Raises:
        ValueError: lists every job whose mask is not bool, of another size than its image, empty or full.
    """
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
    if problems:
        raise ValueError("inpainting: " + "; ".join(problems))


def _paint(
    inpainter: Inpainter,
    jobs: Sequence[InpaintJob],
    settings: InpaintSettings,
    on_step: Callable[[], None] | None = None,
) -> list[InpaintedImage]:
    """One call of the pipeline, and its pictures put back under their masks."""
    boxes = [choose_box(job.mask, settings.size, settings.padding_mask_crop) for job in jobs]
    cuts = [cut_out(job.image_u8, job.mask, box, settings.size) for job, box in zip(jobs, boxes, strict=True)]
    covers = [cover_cells(mask, inpainter.cell) for _, mask in cuts]
    masks = covers if settings.cover_cells else [mask for _, mask in cuts]
    images = torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image, _ in cuts]).float() / 255
    with inpainter.lock, torch.inference_mode():
        painted = inpainter.pipeline(
            image=images,
            mask_image=torch.from_numpy(np.stack(masks)[:, None]).float(),
            width=settings.size[0],
            height=settings.size[1],
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            strength=settings.strength,
            generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
            output_type="pt",
            callback_on_step_end=_as_callback(on_step),
            **embed_texts(inpainter, jobs, settings),
        ).images.float()
    painted = painted.permute(0, 2, 3, 1).cpu().numpy()
    return [
        finish_image(job, box, pixels, int(cover.sum()) // inpainter.cell**2, settings.feather)
        for job, box, pixels, cover in zip(jobs, boxes, painted, covers, strict=True)
    ]


def _as_callback(on_step: Callable[[], None] | None) -> Callable[..., dict] | None:
    """A callback as diffusers' pipelines ask for it, which changes nothing in them."""
    if on_step is None:
        return None

    def call(pipeline: object, step: int, timestep: object, tensors: dict) -> dict:
        on_step()
        return tensors

    return call


def finish_image(
    job: InpaintJob, box: Box, pixels: np.ndarray, cells: int, feather: int = 0, further: dict | None = None
) -> InpaintedImage:
    """Put what was painted back into its image, under the mask only.

    Args:
        job: what was asked for.
        box: the part that was worked on.
        pixels: shape (height, width, 3) at the working size, in [0, 1].
        cells: of the latent grid that the mask touched.
        feather: see `composite`.
        further: columns that the method adds to the image's row.
    """
    is_finite = bool(np.isfinite(pixels).all())
    pixels_u8 = np.rint(255 * np.clip(np.nan_to_num(pixels), 0, 1)).astype(np.uint8)
    painted_u8 = paste_back(job.image_u8, pixels_u8, box)
    finished_u8 = composite(job.image_u8, painted_u8, job.mask, feather)
    return InpaintedImage(finished_u8, painted_u8, is_finite, cells, further or {})


def embed_texts(
    inpainter: Inpainter, jobs: Sequence[InpaintJob], settings: InpaintSettings
) -> dict[str, torch.Tensor]:
    """The pipeline's text arguments for some jobs, each pair of texts encoded once."""
    for pair in {(job.prompt, job.negative_prompt) for job in jobs} - set(inpainter.embeddings):
        inpainter.embeddings[pair] = _embed_pair(inpainter, *pair)
    per_job = [inpainter.embeddings[job.prompt, job.negative_prompt] for job in jobs]
    names = [name for name in per_job[0] if settings.guidance > 1 or not name.startswith("negative")]
    return {name: torch.cat([embedded[name] for embedded in per_job]) for name in names}


def _embed_pair(inpainter: Inpainter, prompt: str, negative_prompt: str) -> dict[str, torch.Tensor]:
    names = [
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ]
    with torch.inference_mode():
        tensors = inpainter.pipeline.encode_prompt(
            prompt=prompt,
            device=inpainter.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative_prompt,
        )
    return dict(zip(names[: len(tensors)], tensors, strict=True))
