"""AdaBLDM pools: defects blended into training negatives by trimap and prompt (Li et al. 2024, section 3)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from defaug_utils.core.manifest import raise_problems
from defaug_utils.core.pools import GeneratedImage
from defaug_utils.core.prompts import Prompt, check_prompts
from defaug_utils.core.sources import read_dataset
from defaug_utils.diffusion.autoencoder import AdaptationSettings
from defaug_utils.diffusion.controlnet import TrimapModel
from defaug_utils.diffusion.inpainting import InpaintedImage, InpaintJob
from defaug_utils.diffusion.text2image import check_size
from defaug_utils.masks.patches import move_inside
from defaug_utils.masks.sources import MaskSource
from defaug_utils.masks.trimaps import FindForeground
from defaug_utils.methods.adabldm import BlendSettings
from defaug_utils.methods.adabldm_batches import LatentStore, blend_batch, find_everything
from defaug_utils.methods.changes import CheckLimits
from defaug_utils.methods.painted_pools import MAX_ATTEMPTS, FitMask, Paint, make_painted_pool
from defaug_utils.methods.painted_recipes import read_settings, remake_painted_image


def check_training(trimap_model: TrimapModel, dataset: pd.DataFrame) -> None:
    """Refuse a ControlNet that has seen test or validation images.

    Args:
        trimap_model: with what is known of its training.
        dataset: manifest of the prepared data set.

    Raises:
        ManifestError: lists every image that it learned from and that is not in the train split.
    """
    split_of = dict(zip(dataset["image"], dataset["split"], strict=True))
    names = [name for part in trimap_model.training.get("trained_on", {}).values() for name in part]
    problems = [
        f"{name} is {split_of.get(name, 'unknown to the data set')}, only train images may be learned from"
        for name in names
        if split_of.get(name) != "train"
    ]
    raise_problems("images that the ControlNet learned from", problems)


def make_painter(
    trimap_model: TrimapModel,
    settings: BlendSettings,
    adaptation: AdaptationSettings | None,
    find_foreground: FindForeground,
    store: LatentStore | None = None,
) -> Paint:
    """Blending as `painted_pools` asks for it: jobs in, one result each out."""

    def paint(jobs: Sequence[InpaintJob]) -> list[InpaintedImage]:
        return blend_batch(trimap_model, jobs, settings, adaptation, find_foreground, store=store)

    return paint


def make_mask_fitter(find_foreground: FindForeground) -> FitMask:
    """Moves drawn masks that leave an image's object inside it; see `plan_image`."""

    def fit(image_u8: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
        return move_inside(mask, find_foreground(image_u8), generator)

    return fit


def make_adabldm_pool(
    folder: Path | str,
    data_folder: Path | str,
    count: int,
    trimap_model: TrimapModel,
    prompts: Sequence[Prompt],
    mask_source: MaskSource,
    settings: BlendSettings | None = None,
    adaptation: AdaptationSettings | None = None,
    limits: CheckLimits | None = None,
    pool_seed: int = 0,
    batch_size: int = 4,
    max_attempts: int = MAX_ATTEMPTS,
    find_foreground: FindForeground | None = None,
    foreground: str = "whole",
    shard: int = 0,
    shard_count: int = 1,
    on_images: Callable[[int], None] | None = None,
    store: LatentStore | None = None,
) -> pd.DataFrame | None:
    """Blend defects into training negatives drawn with replacement.

    The pool's origin is "adabldm"; without adaptation of the decoder it is "adabldm_plain".

    The last bits of a picture depend on how many are blended at once, so images are made in fixed groups
    of `batch_size`, which is part of the recipe; shards and restarts then give the same bytes on a CPU.

    Args:
        folder: where the pool goes, see `generate_pool`.
        data_folder: folder of the prepared data set, with its `manifest.csv`.
        count: images of the whole pool.
        trimap_model: the model and its ControlNet.
        prompts: the board, see `make_prompts`.
        mask_source: from `open_masks`.
        settings: of the blending; the paper's when None.
        adaptation: of the decoder, such as `AdaptationSettings()`; None leaves it out.
        limits: of the automatic checks.
        pool_seed: decides all images.
        batch_size: images blended at once.
        max_attempts: pictures made for one image until one passes the checks.
        find_foreground: tells where the object is, and masks are moved into it; None for textures.
        foreground: in words, for the recipe, what `find_foreground` does.
        shard: part to make, from 0.
        shard_count: number of parts.
        on_images: called with the number of images just finished.
        store: of this model and these settings: what one pool blends, a second one of the same seed, with or
            without adaptation, only decodes.

    Returns:
        The pool's manifest with further columns: those of `make_diag_pool`, and with adaptation
        `adaptation_before` and `adaptation_after` (losses), `adaptation_steps` and `adaptation_problem`
        (where it diverged, and the model's own decoder's image was taken). None while other shards are
        unfinished.

    Raises:
        FileNotFoundError: there is no prepared data set.
        ManifestError: it has no training negative, or some can't be used; or the ControlNet learned from
            images that are not in its train split.
        ValueError: texts, sizes or masks don't suit, or the folder holds a pool of other settings.
    """
    settings, find = settings or BlendSettings(), find_foreground or find_everything
    check_training(trimap_model, read_dataset(data_folder))
    check_size(trimap_model.model, settings.size)
    texts = [text for prompt in prompts for text in (prompt.text, prompt.negative) if text]
    check_prompts(trimap_model.model, texts)
    recipe = {
        "model": trimap_model.describe(),
        "settings": asdict(settings),
        "adaptation": asdict(adaptation) if adaptation else None,
        "foreground": foreground,
    }

    return make_painted_pool(
        folder,
        data_folder,
        count,
        make_painter(trimap_model, settings, adaptation, find, store),
        "adabldm" if adaptation else "adabldm_plain",
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
        make_mask_fitter(find) if find_foreground else None,
    )


def remake_image(
    row: dict,
    recipe: dict,
    data_folder: Path | str,
    trimap_model: TrimapModel,
    mask_source: MaskSource | None = None,
    find_foreground: FindForeground | None = None,
) -> GeneratedImage:
    """Make one image of a pool again, see `remake_painted_image`.

    Args:
        row: of the pool's manifest.
        recipe: from `read_recipe`.
        data_folder: folder of the prepared data set.
        trimap_model: the models that made the pool.
        mask_source: where masks come from files; procedural ones are drawn by the recipe's priors.
        find_foreground: as the pool had it.

    Returns:
        The image, its mask and its row.

    Raises:
        ValueError: models, data or masks are not those of the recipe.
    """
    settings, adaptation = BlendSettings(**read_settings(recipe["settings"])), recipe["adaptation"]
    find = find_foreground or find_everything
    return remake_painted_image(
        row,
        recipe,
        data_folder,
        make_painter(trimap_model, settings, AdaptationSettings(**adaptation) if adaptation else None, find),
        {"model": trimap_model.describe()},
        mask_source,
        make_mask_fitter(find) if find_foreground else None,
    )
