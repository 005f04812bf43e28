"""A training set in memory: every image and, if requested, every mask, decoded once."""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from defaug_utils.core.guards import collect_problems, raise_problems
from defaug_utils.core.images import fit_image, fit_mask, read_image, read_mask
from defaug_utils.core.manifest import LABELS, SPLITS, ManifestError
from defaug_utils.data.datasets import map_in_threads


class Samples(NamedTuple):
    """All images of a training set's manifest, row by row."""

    images_u8: Tensor  #: shape (images, height, width, 3), uint8
    labels: Tensor  #: shape (images,), float32, 1 for positive
    table: pd.DataFrame  #: the manifest's rows
    masks: Tensor | None = None  #: from `load_masked_samples`: (images, height, width), bool, true on defects

    def indices(self, split: str) -> np.ndarray:
        """Positions of a split's images."""
        return np.flatnonzero(self.table["split"] == split)


def load_samples(
    manifest: pd.DataFrame,
    folder: Path | str,
    input_size: tuple[int, int] = (0, 0),
    known: Sequence[str] = LABELS,
) -> Samples:
    """Decode every image of a manifest into memory, at one size.

    Args:
        manifest: rows of the splits train, val (optional) and test, with paths relative to `folder`.
        input_size: (width, height) that images are resized to; (0, 0) for the size of the real images.
        known: labels that the train split must contain.

    Raises:
        ManifestError: a split lacks a required class; images can't be read (all are listed); or no size was
            given and the real images have different sizes.
    """
    check_classes(manifest, known)
    folder = Path(folder)
    width, height = input_size if min(input_size) > 0 else _common_size(manifest, folder)
    images_u8 = np.empty((len(manifest), height, width, 3), np.uint8)

    def load(index: int) -> list[str]:
        with collect_problems(problems := []):
            image_u8 = read_image(folder / manifest["image"].iloc[index])
            images_u8[index] = fit_image(image_u8, (width, height))
        return problems

    problems = list(chain.from_iterable(map_in_threads(load, range(len(manifest)))))
    raise_problems(f"training set in {folder}", problems, ManifestError)
    labels = torch.tensor((manifest["label"] == "positive").to_numpy(np.float32))
    return Samples(torch.from_numpy(images_u8), labels, manifest.reset_index(drop=True))


def select_samples(samples: Samples, images: Iterable[str]) -> Samples:
    """The samples of some images, in the order that they have, without decoding them again.

    Raises a ManifestError that lists all names that the samples lack.
    """
    wanted = list(images)
    missing = sorted(set(wanted) - set(samples.table["image"]))
    raise_problems("samples", [f"{name} is not among them" for name in missing], ManifestError)
    places = np.flatnonzero(samples.table["image"].isin(wanted))
    masks = None if samples.masks is None else samples.masks[places]
    table = samples.table.iloc[places].reset_index(drop=True)
    return Samples(samples.images_u8[places], samples.labels[places], table, masks)


def check_classes(manifest: pd.DataFrame, known: Sequence[str] = LABELS) -> None:
    """Refuse a split that lacks a class: train needs `known`, test both, val negatives if it has images."""
    counts = count_samples(manifest)
    needed = {"train": known, "test": LABELS} | ({"val": ("negative",)} if counts.loc["val"].any() else {})
    problems = [
        f"split {split} has no {label} image ({counts.loc[split].sum()} images in all)"
        for split, labels in needed.items()
        for label in labels
        if counts.loc[split, label] == 0
    ]
    raise_problems("this training set can't be used to train and evaluate a model", problems, ManifestError)


def count_samples(manifest: pd.DataFrame) -> pd.DataFrame:
    """Number of images by split (rows: train, val, test) and label (columns)."""
    counts = pd.crosstab(manifest["split"], manifest["label"])
    return counts.reindex(index=list(SPLITS), columns=list(LABELS), fill_value=0)


def _common_size(manifest: pd.DataFrame, folder: Path) -> tuple[int, int]:
    """(width, height) of the real images, read from the files' headers."""
    sizes: dict[tuple[int, int], str] = {}
    for image in manifest["image"][manifest["origin"] == "real"]:
        with suppress(OSError), Image.open(folder / image) as opened:  # load_samples lists unreadable files
            sizes.setdefault(opened.size, image)
    if len(sizes) == 1:
        return next(iter(sizes))
    if not sizes:
        raise ManifestError(f"training set in {folder}: no real image can be read")
    listed = ", ".join(f"{width} × {height} ({image})" for (width, height), image in list(sizes.items())[:5])
    raise ManifestError(
        f"training set in {folder}: the real images have {len(sizes)} sizes, such as {listed}; "
        "set the classifier's input width and height"
    )


def load_masked_samples(
    manifest: pd.DataFrame, folder: Path | str, input_size: tuple[int, int] = (0, 0)
) -> Samples:
    """Decode images and masks, see `load_samples`.

    Raises a ManifestError that lists every positive without mask, or every mask that is unreadable or empty.
    """
    is_positive = manifest["label"] == "positive"
    unmasked = [
        f"{row.image}: is positive ({row.origin}, {row.split}) but has no mask"
        for row in manifest[is_positive & (manifest["mask"] == "")].itertuples()
    ]
    advice = "leave these positives out, or use a pool with masks"
    raise_problems(f"a pixel-level detector needs masks: {advice}", unmasked, ManifestError)
    samples = load_samples(manifest, folder, input_size)
    size = (samples.images_u8.shape[2], samples.images_u8.shape[1])
    masks, problems = np.zeros(samples.images_u8.shape[:3], bool), []
    for index, name in samples.table.loc[is_positive.to_numpy(), "mask"].items():
        with collect_problems(problems):
            mask = read_mask(Path(folder) / name)
            if not mask.any():
                problems.append(f"{Path(folder) / name}: the mask is empty, but its image is positive")
            masks[index] = fit_mask(mask, size)
    raise_problems(f"masks in {folder}", problems, ManifestError)
    return samples._replace(masks=torch.from_numpy(masks))


def list_scored(samples: Samples, splits: Sequence[str] = ("val", "test")) -> tuple[np.ndarray, pd.DataFrame]:
    """Positions of all images of some splits, and their columns image, split, label for a table of scores."""
    indices = np.concatenate([samples.indices(split) for split in splits])
    return indices, samples.table.loc[indices, ["image", "split", "label"]].reset_index(drop=True)


def hash_samples(samples: Samples, split: str) -> str:
    """First 16 hex digits of the SHA-256 over a split's pixels, labels and masks, in order."""
    indices = samples.indices(split)
    digest = hashlib.sha256(str(tuple(samples.images_u8.shape[1:])).encode())
    digest.update(samples.labels[indices].numpy().tobytes())
    for index in indices:
        digest.update(samples.images_u8[index].numpy().tobytes())
    if samples.masks is not None:
        digest = hashlib.sha256(digest.hexdigest()[:16].encode())
        for index in indices:
            digest.update(np.packbits(samples.masks[index].numpy()).tobytes())
    return digest.hexdigest()[:16]
