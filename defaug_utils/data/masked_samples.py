"""A training set with masks in memory: what a detector that marks pixels learns from."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from defaug_utils.core.images import fit_mask, read_mask
from defaug_utils.core.manifest import raise_problems
from defaug_utils.data.samples import Samples, hash_samples, load_samples


class MaskedSamples(NamedTuple):
    """Images and masks of a training set's manifest, row by row.

    Attributes:
        samples: the images with their labels and rows.
        masks: shape (images, height, width), bool, true on the defect; all false for negatives.
    """

    samples: Samples
    masks: Tensor


def load_masked_samples(
    manifest: pd.DataFrame, folder: Path | str, input_size: tuple[int, int] = (0, 0)
) -> MaskedSamples:
    """Decode every image and mask of a manifest into memory, at one size.

    A mask pixel is positive when any source pixel that it covers is.

    Args:
        manifest: rows of the splits train and test, such as `compose_training_set` returns; rows of val
            are kept, though no threshold is chosen.
        folder: what the manifest's paths are relative to.
        input_size: (width, height) of the detector's input; (0, 0) for that of the stored real images.

    Returns:
        The images with their masks.

    Raises:
        ManifestError: lists every positive without mask, or every mask that can't be read or is empty; or
            see `load_samples`.
    """
    is_positive = manifest["label"] == "positive"
    raise_problems(
        "a detector of pixels learns from masks: leave these positives out, or take a pool with masks",
        [
            f"{row.image}: is positive ({row.origin}, {row.split}) and has no mask"
            for row in manifest[is_positive & (manifest["mask"] == "")].itertuples()
        ],
    )
    samples = load_samples(manifest, folder, input_size, needs_validation=False)
    size = (samples.images_u8.shape[2], samples.images_u8.shape[1])
    masks, problems = np.zeros(samples.images_u8.shape[:3], bool), []
    for index, row in samples.table[is_positive.to_numpy()].iterrows():
        try:
            masks[index] = _read_mask(Path(folder) / row["mask"], size)
        except ValueError as error:
            problems.append(str(error))
    raise_problems(f"masks in {folder}", problems)
    return MaskedSamples(samples, torch.from_numpy(masks))


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    mask = read_mask(path)
    if not mask.any():
        raise ValueError(f"{path}: the mask is empty, but its image is positive")
    return mask if mask.shape == size[::-1] else fit_mask(mask, size)


def hash_masked_samples(masked: MaskedSamples, split: str) -> str:
    """First 16 hex digits of the SHA-256 over a split's pixels, labels and masks, in order."""
    digest = hashlib.sha256(hash_samples(masked.samples, split).encode())
    for index in masked.samples.indices(split):
        digest.update(np.packbits(masked.masks[index].numpy()).tobytes())
    return digest.hexdigest()[:16]
