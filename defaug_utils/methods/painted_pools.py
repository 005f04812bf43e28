"""Pools of defects painted into training negatives by a diffusion model, whatever the method."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import defaug_utils
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import check_sources, image_seed
from defaug_utils.core.pools import GeneratedImage, find_failed, generate_pool
from defaug_utils.core.prompts import Prompt, choose_prompt
from defaug_utils.core.sources import list_sources, read_dataset, survey_sources
from defaug_utils.diffusion.inpainting import InpaintedImage, InpaintJob
from defaug_utils.masks.sources import MaskDraw, MaskSource
from defaug_utils.methods.changes import Check, CheckLimits, check_image

MAX_ATTEMPTS = 3  # pictures painted for one image of the pool until one passes the checks
MAX_DRAWS = 50  # masks drawn for one image until one fits into its object
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "opencv-python-headless", "pillow")

Paint = Callable[[Sequence[InpaintJob]], Sequence[InpaintedImage]]
# Takes an image (height, width, 3), uint8, a mask and a generator; the mask moved, None if it fits nowhere.
FitMask = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray | None]


class PaintPlan(NamedTuple):
    """What one image of a pool is made of, before the model sees it."""

    job: InpaintJob
    row: dict


class PaintResult(NamedTuple):
    """The picture that was kept, its checks, and the attempt (from 0) that it was."""

    painted: InpaintedImage
    check: Check
    attempt: int


def list_versions() -> dict[str, str]:
    """Versions of what a picture depends on, as they stand in a recipe."""
    return {"defaug_utils": defaug_utils.__version__} | {name: version(name) for name in LIBRARIES}


def attempt_seed(seed: int, attempt: int) -> int:
    """Seed of the noise: an image's own at first, then one derived from it for each further attempt."""
    return seed if attempt == 0 else image_seed(seed, attempt)


def plan_image(
    index: int,
    seed: int,
    sources: pd.DataFrame,
    data_folder: Path | str,
    prompts: Sequence[Prompt],
    mask_source: MaskSource,
    fit_mask: FitMask | None = None,
) -> PaintPlan:
    """Choose the negative and the mask by the image's seed, and the prompt by its place in the pool.

    A mask that was cut from a known defect brings the prompt of that defect along.

    Args:
        index: place in the pool; prompts take turns by their weights, so that each gets its exact share.
        seed: the image's own.
        sources: training negatives, see `list_sources`.
        data_folder: folder of their manifest.
        prompts: the board.
        mask_source: see `open_masks`.
        fit_mask: moves a drawn mask to where it may lie; None leaves it where it was drawn.

    Returns:
        The job and the row's columns so far.

    Raises:
        ValueError: no mask of 50 draws fits into the negative.
    """
    generator = np.random.default_rng(seed)
    source = sources.iloc[int(generator.integers(len(sources)))]
    image_u8 = read_image(Path(data_folder) / source["image"])
    mask, name, text = _draw_mask(image_u8, source["image"], mask_source, generator, fit_mask)
    fitting = [prompt for prompt in prompts if prompt.text == text]
    prompt = fitting[0] if fitting else choose_prompt(prompts, index)
    row = {
        "source_image": source["image"],
        "category": source["category"],
        "mask_source": mask_source.word,
        "mask_name": name,
        "prompt": prompt.text,
        "negative_prompt": prompt.negative,
    }
    return PaintPlan(InpaintJob(image_u8, mask, prompt.text, prompt.negative, seed), row)


def _draw_mask(
    image_u8: np.ndarray,
    image: str,
    mask_source: MaskSource,
    generator: np.random.Generator,
    fit_mask: FitMask | None,
) -> MaskDraw:
    """A mask with what is known of it; drawn again while it fits nowhere."""
    for _ in range(MAX_DRAWS):
        drawn = mask_source.draw(int(generator.integers(2**63)), (image_u8.shape[1], image_u8.shape[0]))
        mask = fit_mask(image_u8, drawn.mask, generator) if fit_mask else drawn.mask
        if mask is not None:
            return drawn._replace(mask=mask)
    raise ValueError(
        f"{image}: none of {MAX_DRAWS} masks ({mask_source.word}) fits into its object; the last one "
        f"({drawn.name}) has {np.count_nonzero(drawn.mask)} pixels: use smaller masks, or another foreground"
    )


def paint_until_passed(
    paint: Paint, jobs: Sequence[InpaintJob], limits: CheckLimits, max_attempts: int = MAX_ATTEMPTS
) -> list[PaintResult]:
    """Paint jobs together, and those that fail their checks again with their next seeds.

    Args:
        paint: the method; one result a job.
        jobs: negatives, masks and texts, which stay; only the noise is drawn anew.
        limits: of the checks.
        max_attempts: pictures painted for one job at most.

    Returns:
        One result a job: the first that passed, else the one with the strongest contrast.
    """
    best: dict[int, PaintResult] = {}
    for attempt in range(max_attempts):
        failed = [
            number for number in range(len(jobs)) if number not in best or not best[number].check.passed
        ]
        if not failed:
            break
        asked = [jobs[number]._replace(seed=attempt_seed(jobs[number].seed, attempt)) for number in failed]
        for number, job, painted in zip(failed, asked, paint(asked), strict=True):
            check = check_image(
                job.image_u8, painted.painted_u8, painted.image_u8, job.mask, limits, painted.is_finite
            )
            result = PaintResult(painted, check, attempt)
            best[number] = max(best.get(number, result), result, key=_rank)
    return [best[number] for number in range(len(jobs))]


def _rank(result: PaintResult) -> tuple[bool, bool, float]:
    return result.check.passed, result.painted.is_finite, result.check.contrast


def make_group(
    paint: Paint, plans: Sequence[PaintPlan], limits: CheckLimits, max_attempts: int = MAX_ATTEMPTS
) -> list[GeneratedImage]:
    """Images of a pool that are painted at once, with their masks and rows; see `paint_until_passed`."""
    results = paint_until_passed(paint, [plan.job for plan in plans], limits, max_attempts)
    return [_describe_image(plan, result) for plan, result in zip(plans, results, strict=True)]


def _describe_image(plan: PaintPlan, result: PaintResult) -> GeneratedImage:
    row = plan.row | result.check.as_row()
    row |= {"attempt": result.attempt, "latent_cells": result.painted.latent_cells}
    return GeneratedImage(result.painted.image_u8, plan.job.mask, row | dict(result.painted.further))


def make_painted_pool(
    folder: Path | str,
    data_folder: Path | str,
    count: int,
    paint: Paint,
    origin: str,
    recipe: dict,
    prompts: Sequence[Prompt],
    mask_source: MaskSource,
    limits: CheckLimits,
    pool_seed: int,
    batch_size: int,
    max_attempts: int,
    shard: int = 0,
    shard_count: int = 1,
    on_images: Callable[[int], None] | None = None,
    fit_mask: FitMask | None = None,
) -> pd.DataFrame | None:
    """Paint defects into training negatives drawn with replacement.

    Args:
        folder: where the pool goes, see `generate_pool`.
        data_folder: folder of the prepared data set, with its `manifest.csv`.
        count: images of the whole pool.
        paint: the method; must depend on its jobs and the recipe alone.
        origin: the method's word in the manifest.
        recipe: model and settings, as JSON values; all else is added here.
        prompts: the board.
        mask_source: from `open_masks`.
        limits: of the automatic checks.
        pool_seed: decides all images.
        batch_size: images painted at once, always the same ones.
        max_attempts: pictures painted for one image until one passes the checks.
        shard: part to make, from 0.
        shard_count: number of parts.
        on_images: called with the number of images just finished.
        fit_mask: see `plan_image`.

    Returns:
        The pool's manifest; None while other shards are unfinished.

    Raises:
        FileNotFoundError: there is no prepared data set.
        ManifestError: it has no training negative, or some can't be used.
        ValueError: masks don't suit, or the folder holds a pool of other settings.
    """
    dataset = read_dataset(data_folder)
    if max_attempts < 1:
        raise ValueError(f"max_attempts {max_attempts} must be 1 or more")
    sources = list_sources(dataset)

    def make_batch(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        plans = [
            plan_image(index, seed, sources, data_folder, prompts, mask_source, fit_mask)
            for index, seed in zip(indices, seeds, strict=True)
        ]
        return make_group(paint, plans, limits, max_attempts)

    pool = generate_pool(
        folder,
        count,
        make_batch,
        origin,
        {
            **recipe,
            "checks": {**asdict(limits), "max_attempts": max_attempts},
            "prompts": [prompt._asdict() for prompt in prompts],
            "batch_size": batch_size,
            "sources": survey_sources(sources, data_folder),
            "versions": list_versions(),
            **mask_source.describe(),
        },
        pool_seed,
        shard=shard,
        shard_count=shard_count,
        on_images=on_images,
        group_size=batch_size,
    )
    if pool is not None:
        check_sources(pool, dataset)
    return pool


def list_failures(pool: pd.DataFrame) -> pd.DataFrame:
    """The images of a pool that passed no attempt, with the reasons.

    Args:
        pool: of `make_painted_pool`.

    Returns:
        The columns `image`, `prompt`, `mask_name`, `attempt` and `check_reason` of these rows.
    """
    columns = ["image", "prompt", "mask_name", "attempt", "check_reason"]
    return pool.loc[find_failed(pool), columns]
