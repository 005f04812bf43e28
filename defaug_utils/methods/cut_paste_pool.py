"""A pool of cut-and-paste positives: AdaBLDM's training triples as they are, its simplest rival."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

import defaug_utils
from defaug_utils.core.pools import GeneratedImage, generate_pool
from defaug_utils.masks.trimaps import TripleSet, make_triple

VERSIONS = {"defaug_utils": defaug_utils.__version__, "numpy": np.__version__, "opencv": cv2.__version__}


def make_cut_paste_pool(
    folder: Path | str,
    triples: TripleSet,
    count: int,
    pool_seed: int,
    shard: int = 0,
    shard_count: int = 1,
    on_images: Callable[[int], None] | None = None,
) -> pd.DataFrame | None:
    """Write triples out: a real defect, turned and scaled, pasted into a good image, with its mask.

    Args:
        folder: where the pool goes, see `generate_pool`.
        triples: their defects, good images and settings; its own seed and count play no part.
        count: images of the whole pool.
        pool_seed: decides all images.
        shard: part to make, from 0.
        shard_count: number of parts.
        on_images: called with the number of images just finished.

    Returns:
        The pool's manifest, `source_image` the good one, with the further column `defect_source` (the
        image that the defect was cut out of); None while other shards are unfinished.

    Raises:
        ValueError: no turned defect fits into an object, or the folder holds a pool of other sources.
    """
    recipe = {
        "triples": {
            key: value for key, value in triples.describe().items() if key not in ("seed", "triples")
        },
        "versions": VERSIONS,
    }

    def make_batch(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        return [make_cut_paste_image(triples, seed) for seed in seeds]

    return generate_pool(
        folder,
        count,
        make_batch,
        "cut_paste",
        recipe,
        pool_seed,
        shard=shard,
        shard_count=shard_count,
        on_images=on_images,
    )


def make_cut_paste_image(triples: TripleSet, seed: int) -> GeneratedImage:
    """One image of the pool: a function of its seed and the triples' sources alone."""
    triple = make_triple(triples.defects, triples.goods, triples.settings, seed)
    (defect,) = {d[2:4] for d in triples.defects if d.name == triple.defect}
    row = {
        "source_image": triple.good,
        "category": defect[0],
        "defect_type": defect[1],
        "mask_source": "few_shot",
        "defect_source": triple.defect,
    }
    return GeneratedImage(triple.image_u8, triple.mask, row)
