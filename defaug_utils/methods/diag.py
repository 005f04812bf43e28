"""DIAG: defects painted into good parts by a text prompt, without training (Girella et al., CBMI 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from defaug_utils.core.prompts import Prompt, check_prompts
from defaug_utils.diffusion.inpainting import (
    InpaintedImage,
    Inpainter,
    InpaintJob,
    InpaintSettings,
    inpaint_batch,
)
from defaug_utils.masks.sources import MaskSource
from defaug_utils.methods.changes import CheckLimits
from defaug_utils.methods.painted_pools import MAX_ATTEMPTS, Paint, make_painted_pool

MODEL = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"  # DIAG, section 4
PROMPTS = ("white marks on the wall", "copper metal scratches")  # DIAG, section 4
NEGATIVE_PROMPT = "smooth, plain, black, dark, shadow"  # DIAG, section 4
IMAGES_PER_PROMPT = 50  # DIAG, section 4
OUTPUT_SIZE = (224, 632)  # width and height of the images stored (DIAG, section 4)
PAPER_SETTINGS = InpaintSettings()  # 30 steps, guidance 20, strength 0.99, crop 2, 1024² (DIAG's code)


def make_painter(inpainter: Inpainter, settings: InpaintSettings) -> Paint:
    """Inpainting as `painted_pools` asks for it: jobs in, one result each out."""

    def paint(jobs: Sequence[InpaintJob]) -> list[InpaintedImage]:
        return inpaint_batch(inpainter, jobs, settings)

    return paint


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
        mask_source: from `open_masks`.
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
    settings.check_size(inpainter.cell)
    check_prompts(inpainter, [text for prompt in prompts for text in (prompt.text, prompt.negative) if text])
    recipe = {
        "model": inpainter.describe(),
        "settings": {**asdict(settings), "effective_steps": settings.effective_steps},
    }
    return make_painted_pool(
        folder,
        data_folder,
        count,
        make_painter(inpainter, settings),
        "diag",
        recipe,
        prompts,
        mask_source,
        limits or CheckLimits(),
        pool_seed,
        batch_size,
        max_attempts,
        shard,
        shard_count,
        on_images,
    )
