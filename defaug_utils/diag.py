"""DIAG: defects painted into good parts by a text prompt, without training (Girella et al., CBMI 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import defaug_utils
from defaug_utils.changes import Check, CheckLimits, check_image
from defaug_utils.images import read_image
from defaug_utils.inpaint import Inpainter
from defaug_utils.inpaint_batches import InpaintedImage, InpaintJob, inpaint_batch
from defaug_utils.inpaint_settings import InpaintSettings
from defaug_utils.manifest import check_sources, image_seed
from defaug_utils.masks import MaskSource
from defaug_utils.pools import GeneratedImage, find_failed, generate_pool
from defaug_utils.prompts import Prompt, check_prompts, choose_prompt
from defaug_utils.sources import list_sources, read_dataset, survey_sources

MODEL = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"  # DIAG, section 4
PROMPTS = ("white marks on the wall", "copper metal scratches")  # DIAG, section 4
NEGATIVE_PROMPT = "smooth, plain, black, dark, shadow"  # DIAG, section 4
IMAGES_PER_PROMPT = 50  # DIAG, section 4
OUTPUT_SIZE = (224, 632)  # width and height of the images stored (DIAG, section 4)
PAPER_SETTINGS = InpaintSettings()  # 30 steps, guidance 20, strength 0.99, crop 2, 1024² (DIAG's code)
MAX_ATTEMPTS = 3  # pictures painted for one image of the pool until one passes the checks
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "opencv-python-headless", "pillow")


class DiagPlan(NamedTuple):
    """What one image of a pool is made of, before the model sees it."""

    job: InpaintJob
    row: dict


class DiagResult(NamedTuple):
    """The picture that was kept, its checks, and the attempt (from 0) that it was."""

    painted: InpaintedImage
    check: Check
    attempt: int


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
) -> DiagPlan:
    """Choose the negative and the mask by the image's seed, and the prompt by its place in the pool.

    Args:
        index: place in the pool; prompts take turns by their weights, so that each gets its exact share.
        seed: the image's own.
        sources: training negatives, see `list_sources`.
        data_folder: folder of their manifest.
        prompts: the board.
        mask_source: see `open_mask_source`.

    Returns:
        The job and the row's columns so far.
    """
    generator = np.random.default_rng(seed)
    source = sources.iloc[int(generator.integers(len(sources)))]
    image_u8 = read_image(Path(data_folder) / source["image"])
    drawn = mask_source.draw(int(generator.integers(2**63)), (image_u8.shape[1], image_u8.shape[0]))
    prompt = choose_prompt(prompts, index)
    row = {
        "source_image": source["image"],
        "category": source["category"],
        "mask_source": mask_source.word,
        "mask_name": drawn.name,
        "prompt": prompt.text,
        "negative_prompt": prompt.negative,
    }
    return DiagPlan(InpaintJob(image_u8, drawn.mask, prompt.text, prompt.negative, seed), row)


def paint_until_passed(
    inpainter: Inpainter,
    jobs: Sequence[InpaintJob],
    settings: InpaintSettings,
    limits: CheckLimits,
    max_attempts: int = MAX_ATTEMPTS,
) -> list[DiagResult]:
    """Paint jobs together, and those that fail their checks again with their next seeds.

    Args:
        inpainter: the model.
        jobs: negatives, masks and texts, which stay; only the noise is drawn anew.
        settings: of the inpainting.
        limits: of the checks.
        max_attempts: pictures painted for one job at most.

    Returns:
        One result a job: the first that passed, else the one with the strongest contrast.
    """
    best: dict[int, DiagResult] = {}
    for attempt in range(max_attempts):
        failed = [
            number for number in range(len(jobs)) if number not in best or not best[number].check.passed
        ]
        if not failed:
            break
        asked = [jobs[number]._replace(seed=attempt_seed(jobs[number].seed, attempt)) for number in failed]
        for number, job, painted in zip(
            failed, asked, inpaint_batch(inpainter, asked, settings), strict=True
        ):
            check = check_image(
                job.image_u8, painted.painted_u8, painted.image_u8, job.mask, limits, painted.is_finite
            )
            result = DiagResult(painted, check, attempt)
            best[number] = max(best.get(number, result), result, key=_rank)
    return [best[number] for number in range(len(jobs))]


def _rank(result: DiagResult) -> tuple[bool, bool, float]:
    return result.check.passed, result.painted.is_finite, result.check.contrast


def make_diag_pool(
    folder: Path | str,
    data_folder: Path | str,
    count: int,
    inpainter: Inpainter,
    prompts: Sequence[Prompt],
    mask_source: MaskSource,
    settings: InpaintSettings = PAPER_SETTINGS,
    limits: CheckLimits | None = None,
    pool_seed: int = 0,
    batch_size: int = 4,
    max_attempts: int = MAX_ATTEMPTS,
    shard: int = 0,
    shard_count: int = 1,
    on_images: Callable[[int], None] | None = None,
) -> pd.DataFrame | None:
    """Paint defects into training negatives drawn with replacement.

    The last bits of a picture depend on how many are painted at once, so images are made in fixed groups
    of `batch_size`, which is part of the recipe; shards and restarts then give the same bytes on a CPU.

    Args:
        folder: where the pool goes, see `generate_pool`.
        data_folder: folder of the prepared data set, with its `manifest.csv`.
        count: images of the whole pool.
        inpainter: from `load_inpainter`.
        prompts: the board, see `make_prompts`.
        mask_source: from `open_mask_source`.
        settings: of the inpainting; the paper's when not given.
        limits: of the automatic checks.
        pool_seed: decides all images.
        batch_size: images painted at once.
        max_attempts: pictures painted for one image until one passes the checks.
        shard: part to make, from 0.
        shard_count: number of parts.
        on_images: called with the number of images just finished.

    Returns:
        The pool's manifest with further columns: `mask_name`, `negative_prompt`, `attempt`, `latent_cells`
        and `check_…`; images that never passed stay, with `check_passed` false. None while other shards
        are unfinished.

    Raises:
        FileNotFoundError: there is no prepared data set.
        ManifestError: it has no training negative, or some can't be used.
        ValueError: texts, sizes or masks don't suit, or the folder holds a pool of other settings.
    """
    limits, dataset = limits or CheckLimits(), read_dataset(data_folder)
    if max_attempts < 1:
        raise ValueError(f"max_attempts {max_attempts} must be 1 or more")
    sources = list_sources(dataset)
    settings.check_size(inpainter.cell)
    check_prompts(inpainter, [text for prompt in prompts for text in (prompt.text, prompt.negative) if text])

    def make_batch(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        plans = [
            plan_image(index, seed, sources, data_folder, prompts, mask_source)
            for index, seed in zip(indices, seeds, strict=True)
        ]
        return make_group(inpainter, plans, settings, limits, max_attempts)

    pool = generate_pool(
        folder,
        count,
        make_batch,
        "diag",
        {
            "model": inpainter.describe(),
            "settings": {**asdict(settings), "effective_steps": settings.effective_steps},
            "checks": {**asdict(limits), "max_attempts": max_attempts},
            "prompts": [prompt._asdict() for prompt in prompts],
            "batch_size": batch_size,
            "sources": survey_sources(sources, data_folder),
            "versions": {"defaug_utils": defaug_utils.__version__}
            | {name: version(name) for name in LIBRARIES},
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


def make_group(
    inpainter: Inpainter,
    plans: Sequence[DiagPlan],
    settings: InpaintSettings,
    limits: CheckLimits,
    max_attempts: int = MAX_ATTEMPTS,
) -> list[GeneratedImage]:
    """Images of the pool that are painted at once, with their masks and rows; see `paint_until_passed`."""
    results = paint_until_passed(inpainter, [plan.job for plan in plans], settings, limits, max_attempts)
    return [_describe_image(plan, result) for plan, result in zip(plans, results, strict=True)]


def _describe_image(plan: DiagPlan, result: DiagResult) -> GeneratedImage:
    row = plan.row | result.check.as_row()
    row |= {"attempt": result.attempt, "latent_cells": result.painted.latent_cells}
    return GeneratedImage(result.painted.image_u8, plan.job.mask, row)


def list_failures(pool: pd.DataFrame) -> pd.DataFrame:
    """The images of a pool that passed no attempt, with the reasons.

    Args:
        pool: of `make_diag_pool`.

    Returns:
        The columns `image`, `prompt`, `mask_name`, `attempt` and `check_reason` of these rows.
    """
    columns = ["image", "prompt", "mask_name", "attempt", "check_reason"]
    return pool.loc[find_failed(pool), columns]
