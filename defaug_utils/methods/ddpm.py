"""DDPM pools: whole images made from text by a fine-tuned model (Capogrosso et al. 2024, section 3.2)."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

import defaug_utils
from defaug_utils.core.pools import GeneratedImage, generate_pool
from defaug_utils.core.prompts import Prompt, check_prompts, choose_prompt
from defaug_utils.core.sources import list_sources, read_dataset, survey_sources
from defaug_utils.diffusion.lora import merge_lora
from defaug_utils.diffusion.lora_files import load_lora
from defaug_utils.diffusion.text2image import TextJob, TextSettings, TextToImage, check_size, generate_images
from defaug_utils.diffusion.training_images import check_training_rows
from defaug_utils.methods.mask_estimates import NearestNegatives

REGULARISATION_COUNT = 200  # In&Out, section 4
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy", "pillow")


class AdapterError(ValueError):
    """An adapter that doesn't suit the base model, or was trained on what it must not know."""


class Adapter(NamedTuple):
    """A LoRA file and what is known about it.

    Attributes:
        path: the file.
        sha256: of its tensors' names, types, shapes and values; the file's header has them in any order.
        training: what `train_dreambooth` wrote into it; empty for a file from elsewhere.
    """

    path: Path
    sha256: str
    training: dict

    def describe(self, share: float) -> dict:
        """The adapter in the recipe of a pool, merged at a share."""
        return {"sha256": self.sha256, "share": share, "training": self.training or "unknown"}


def open_adapter(path: Path | str, model: TextToImage, dataset: pd.DataFrame) -> Adapter:
    """Look at a LoRA file before it is used.

    Args:
        path: from `train_dreambooth`, or from elsewhere.
        model: the base model that it will be merged into.
        dataset: manifest of the prepared data set.

    Raises:
        AdapterError: it is missing or damaged, or was trained on another base model.
        DreamBoothError: it was trained on images that are not in the train split; lists them.
    """
    path = Path(path)
    if not path.is_file():
        raise AdapterError(f"no adapter at {path}: run notebook 03_lora_finetune first")
    try:
        with safe_open(path, "pt") as opened:
            metadata, digest = opened.metadata() or {}, hashlib.sha256()
            for key in sorted(opened.keys()):
                tensor = opened.get_tensor(key).contiguous()
                digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    except SafetensorError as error:
        raise AdapterError(
            f"{path} is no readable safetensors file ({error}): train or copy it again"
        ) from error
    training = json.loads(metadata.get("training", "{}"))
    base = model.describe()["fingerprint"]
    if training and training["base"] != base:
        raise AdapterError(
            f"{path} was trained on the base model {training['base']}, {model.model} is {base}: load the "
            "model that it belongs to"
        )
    if training:
        check_training_rows(pd.DataFrame({"image": training["trained_on"]["instances"]}), dataset)
    return Adapter(path, digest.hexdigest(), training)


@contextmanager
def merge_adapter(model: TextToImage, adapter: Path | str | None, share: float) -> Iterator[None]:
    """Merge a LoRA file into a copy of the networks while the block runs; the model itself never changes.

    Args:
        model: as it was loaded, without an adapter.
        adapter: the file; None for none.
        share: α, the merge weight; 0 is the base model.
    """
    if adapter is None:
        yield
        return
    pipeline = model.pipeline
    before = pipeline.unet, pipeline.text_encoder
    try:
        pipeline.unet, pipeline.text_encoder = deepcopy(before)
        load_lora(adapter, pipeline.unet, pipeline.text_encoder)
        merge_lora(pipeline.unet, pipeline.text_encoder, share)
        yield
    finally:
        pipeline.unet, pipeline.text_encoder = before


def make_ddpm_pool(
    folder: Path | str,
    data_folder: Path | str,
    count: int,
    model: TextToImage,
    lora: Path | str | None,
    share: float,
    prompts: Sequence[Prompt],
    settings: TextSettings,
    pool_seed: int = 0,
    batch_size: int = 4,
    with_mask_estimate: bool = False,
    shard: int = 0,
    shard_count: int = 1,
    on_images: Callable[[int], None] | None = None,
) -> pd.DataFrame | None:
    """Generate whole positives from text.

    Images are made in fixed groups of `batch_size`, which is part of the recipe: shards and restarts then
    give the same bytes on a CPU.

    Args:
        folder: where the pool goes, see `generate_pool`.
        data_folder: folder of the prepared data set, with its `manifest.csv`.
        count: images of the whole pool.
        model: the base model as it was loaded.
        lora: file of the adapter; None for the untuned model.
        share: α, see `merge_adapter`.
        prompts: the board, see `make_prompts`.
        settings: size, steps, guidance.
        pool_seed: decides all images.
        batch_size: images made at once.
        with_mask_estimate: store where an image differs from its nearest real negative as if it were its
            mask. It is a guess; without it there is no mask.
        shard: part to make, from 0.
        shard_count: number of parts.
        on_images: called with the number of images just finished.

    Returns:
        The pool's manifest; `mask` and `source_image` are empty. None while other shards are unfinished.

    Raises:
        FileNotFoundError: there is no prepared data set.
        AdapterError: see `open_adapter`.
        DreamBoothError: the adapter knows images that are not in the train split.
        ValueError: texts, sizes or share don't suit, or the folder holds a pool of other settings.
    """
    dataset = read_dataset(data_folder)
    adapter = None if lora is None else open_adapter(lora, model, dataset)
    recipe = {"adapter": adapter.describe(share) if adapter else "none", "masks": "none"}
    estimates = None
    if with_mask_estimate:
        sources = list_sources(dataset)
        estimates = NearestNegatives(sources["image"], data_folder, settings.size)
        recipe |= {"masks": estimates.word, "sources": survey_sources(sources, data_folder)}

    def describe_image(image_u8: np.ndarray, row: dict) -> GeneratedImage:
        if estimates is None:
            return GeneratedImage(image_u8, None, row)
        mask, nearest = estimates.estimate(image_u8)
        return GeneratedImage(image_u8, mask, row | {"mask_source": estimates.word, "mask_nearest": nearest})

    with merge_adapter(model, lora, share):
        return _make_text_pool(
            folder, count, model, prompts, settings, recipe, describe_image, pool_seed, batch_size,
            shard, shard_count, on_images,
        )  # fmt: skip


def make_regularisation_pool(
    folder: Path | str,
    model: TextToImage,
    class_prompt: str,
    settings: TextSettings,
    count: int = REGULARISATION_COUNT,
    pool_seed: int = 0,
    batch_size: int = 4,
    shard: int = 0,
    shard_count: int = 1,
    on_images: Callable[[int], None] | None = None,
) -> pd.DataFrame | None:
    """Generate DreamBooth's regularisation images from the class prompt by the untuned model, once.

    Args:
        folder: where the pool goes, see `generate_pool`; not a folder that training sets draw from.
        model: the base model as it was loaded.
        class_prompt: see `DreamBoothSettings`.
        settings: size, steps, guidance.
        count: images.
        pool_seed: decides all images.
        batch_size: images made at once.
        shard: part to make, from 0.
        shard_count: number of parts.
        on_images: called with the number of images just finished.

    Returns:
        The pool's manifest, all rows negative; None while other shards are unfinished.
    """

    def describe_image(image_u8: np.ndarray, row: dict) -> GeneratedImage:
        return GeneratedImage(image_u8, None, row | {"label": "negative"})

    return _make_text_pool(
        folder, count, model, [Prompt(class_prompt)], settings, {"adapter": "none", "use": "regularisation"},
        describe_image, pool_seed, batch_size, shard, shard_count, on_images,
    )  # fmt: skip


def _make_text_pool(
    folder: Path | str,
    count: int,
    model: TextToImage,
    prompts: Sequence[Prompt],
    settings: TextSettings,
    recipe: dict,
    describe_image: Callable[..., GeneratedImage],
    pool_seed: int,
    batch_size: int,
    shard: int,
    shard_count: int,
    on_images: Callable[[int], None] | None,
) -> pd.DataFrame | None:
    check_size(model, settings.size)
    check_prompts(model, [text for prompt in prompts for text in (prompt.text, prompt.negative or "-")])

    def make_batch(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        chosen = [choose_prompt(prompts, index) for index in indices]
        jobs = [TextJob(p.text, p.negative, seed) for p, seed in zip(chosen, seeds, strict=True)]
        return [
            describe_image(image_u8, {"prompt": job.prompt, "negative_prompt": job.negative_prompt})
            for image_u8, job in zip(generate_images(model, jobs, settings), jobs, strict=True)
        ]

    return generate_pool(
        folder,
        count,
        make_batch,
        "ddpm",
        {
            "model": model.describe(),
            "settings": asdict(settings),
            "prompts": [prompt._asdict() for prompt in prompts],
            "batch_size": batch_size,
            "versions": {"defaug_utils": defaug_utils.__version__}
            | {name: version(name) for name in LIBRARIES},
            **recipe,
        },
        pool_seed,
        shard=shard,
        shard_count=shard_count,
        on_images=on_images,
        group_size=batch_size,
    )
