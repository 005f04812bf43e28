"""A pool of MemSeg positives: training negatives with simulated anomalies, each made again by its seed."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from defaug_utils.images import read_image
from defaug_utils.manifest import check_sources, read_manifest
from defaug_utils.memseg import MemSegSettings, simulate_anomaly
from defaug_utils.pools import GeneratedImage, generate_pool
from defaug_utils.textures import TextureCollection


def describe_recipe(settings: MemSegSettings, textures: TextureCollection, sources: Sequence[str]) -> dict:
    """Everything besides the seed on which an image of the pool depends, as JSON values."""
    return {
        "settings": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(settings).items()
        },
        "textures": textures.describe(),
        "sources": {"count": len(sources), "sha256": hashlib.sha256("\n".join(sources).encode()).hexdigest()},
        "versions": {package: version(package) for package in ("numpy", "opencv-python-headless", "pillow")},
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

    Returns:
        The pool's manifest with the further columns `texture` (source's kind and name) and `opacity`;
        None while other shards are unfinished.

    Raises:
        ValueError: the data set has no training negative, or see `generate_pool`.
    """
    settings, data_folder = settings or MemSegSettings(), Path(data_folder)
    dataset = read_manifest(data_folder / "manifest.csv")
    is_source = (dataset["split"] == "train") & (dataset["label"] == "negative")
    sources = sorted(dataset.loc[is_source, "image"])
    if not sources:
        raise ValueError(f"{data_folder}: no training negative to put an anomaly on")

    def make_batch(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        return [make_memseg_image(data_folder, sources, textures, settings, seed) for seed in seeds]

    recipe = describe_recipe(settings, textures, sources)
    pool = generate_pool(
        folder,
        count,
        make_batch,
        "memseg",
        recipe,
        pool_seed,
        shard=shard,
        shard_count=shard_count,
        on_images=on_images,
    )
    if pool is not None:
        check_sources(pool, dataset)
    return pool


def make_memseg_image(
    data_folder: Path,
    sources: Sequence[str],
    textures: TextureCollection,
    settings: MemSegSettings,
    seed: int,
) -> GeneratedImage:
    """One image of the pool: a function of its seed and the recipe alone."""
    generator = np.random.default_rng(seed)
    source = sources[int(generator.integers(len(sources)))]
    anomaly = simulate_anomaly(read_image(data_folder / source), textures, generator, settings)
    row = {
        "source_image": source,
        "mask_source": "perlin",
        "texture": f"{anomaly.source.kind}: {anomaly.source.name}",
        "opacity": round(anomaly.opacity, 4),
    }
    return GeneratedImage(anomaly.image_u8, anomaly.mask, row)
