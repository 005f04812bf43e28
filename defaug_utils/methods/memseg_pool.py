"""A pool of MemSeg positives: training negatives with simulated anomalies, each made again by its seed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import PIL

import defaug_utils
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import check_sources
from defaug_utils.core.pools import GeneratedImage, generate_pool
from defaug_utils.core.sources import list_sources, read_dataset, survey_sources
from defaug_utils.masks.objects import ObjectFinder
from defaug_utils.methods.memseg import MemSegSettings, simulate_anomaly
from defaug_utils.methods.textures import TextureCollection

VERSIONS = {  # of what may change a pixel
    "defaug_utils": defaug_utils.__version__,
    "numpy": np.__version__,
    "opencv": cv2.__version__,
    "pillow": PIL.__version__,
}


def describe_recipe(settings: MemSegSettings, textures: TextureCollection, survey: dict) -> dict:
    """Everything besides the seed on which an image of the pool depends, as JSON values."""
    return {
        "settings": asdict(settings),
        "textures": textures.describe(),
        "sources": survey,
        "versions": VERSIONS,
    }


def make_memseg_pool(
    folder: Path | str,
    data_folder: Path | str,
    count: int,
    textures: TextureCollection,
    pool_seed: int,
    settings: MemSegSettings | None = None,
    shard: int = 0,
    shard_count: int = 1,
    on_images: Callable[[int], None] | None = None,
    find_object: ObjectFinder | None = None,
) -> pd.DataFrame | None:
    """Simulate anomalies on training negatives drawn with replacement.

    Args:
        folder: where the pool goes, see `generate_pool`.
        data_folder: folder of the prepared data set, with its `manifest.csv`.
        count: images of the whole pool.
        textures: from `open_textures`.
        pool_seed: decides all images.
        settings: the paper's when None.
        shard: part to make, from 0.
        shard_count: number of parts.
        on_images: called with the number of images just finished.
        find_object: for objects that grey levels don't tell from their background; in place of the
            settings' word.

    Returns:
        The pool's manifest with the further columns of `make_memseg_image`; None while other shards are
        unfinished.

    Raises:
        FileNotFoundError: there is no prepared data set.
        ManifestError: it has no training negative, or some can't be used.
        ValueError: the folder holds a pool of other settings, textures or data, see `generate_pool`.
    """
    settings, data_folder = settings or MemSegSettings(), Path(data_folder)
    dataset = read_dataset(data_folder)
    sources = list_sources(dataset)

    def make_batch(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        return [
            make_memseg_image(data_folder, sources, textures, settings, seed, find_object) for seed in seeds
        ]

    survey = survey_sources(sources, data_folder, "whole" if find_object else settings.foreground)
    found = {"find_object": find_object.describe()} if find_object else {}
    pool = generate_pool(
        folder,
        count,
        make_batch,
        "memseg",
        describe_recipe(settings, textures, survey) | found,
        pool_seed,
        shard=shard,
        shard_count=shard_count,
        on_images=on_images,
    )
    if pool is not None:
        check_sources(pool, dataset)
    return pool


def make_memseg_image(
    data_folder: Path | str,
    sources: pd.DataFrame,
    textures: TextureCollection,
    settings: MemSegSettings,
    seed: int,
    find_object: Callable[[np.ndarray], np.ndarray] | None = None,
) -> GeneratedImage:
    """One image of the pool: a function of its seed and the recipe alone.

    Args:
        data_folder: folder of the prepared data set.
        sources: its rows that may be drawn, see `list_sources`.
        textures: from `open_textures`.
        settings: MemSeg's.
        seed: the image's own.
        find_object: see `make_memseg_pool`.

    Returns:
        The image, its mask and its row, with the further columns `texture` (the source's kind and name),
        `opacity`, and `change` (mean absolute difference inside the mask, in grey levels).

    Raises:
        ValueError: no mask can be drawn on the source that the message names.
    """
    generator = np.random.default_rng(seed)
    source = sources.iloc[int(generator.integers(len(sources)))]
    image_u8 = read_image(Path(data_folder) / source["image"])
    try:
        anomaly = simulate_anomaly(image_u8, textures, generator, settings, find_object)
    except ValueError as error:
        raise ValueError(f"{source['image']}: {error}") from error
    row = {
        "source_image": source["image"],
        "category": source["category"],
        "mask_source": "perlin",
        "texture": f"{anomaly.source.kind}: {anomaly.source.name}",
        "opacity": round(anomaly.opacity, 4),
        "change": round(float(cv2.absdiff(image_u8, anomaly.image_u8)[anomaly.mask].mean()), 3),
    }
    return GeneratedImage(anomaly.image_u8, anomaly.mask, row)
