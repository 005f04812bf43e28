"""Masks drawn by hand on training negatives: a folder of PNG files with their manifest."""

from pathlib import Path

import numpy as np
import pandas as pd

from defaug_utils.core.files import explain_read_only, write_atomically, write_png
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import ManifestError, make_manifest, read_manifest, write_manifest
from defaug_utils.core.sources import is_source, read_dataset


def mask_file_name(source_image: str) -> str:
    """Name of an image's mask in the folder: "train/good/000.png" gives "train-good-000.png"."""
    return "-".join(Path(source_image).with_suffix(".png").parts)


def read_drawn(folder: Path | str) -> pd.DataFrame:
    """The manifest of a folder of drawn masks, empty if there is none; a broken one is refused."""
    path = Path(folder) / "manifest.csv"
    return read_manifest(path, check_files=True) if path.is_file() else make_manifest([])


def load_drawn(folder: Path | str, source_image: str) -> np.ndarray | None:
    """The stored mask of an image, shape (height, width), bool, or None."""
    path = Path(folder) / mask_file_name(source_image)
    return read_mask(path) if path.is_file() else None


def save_drawn(folder: Path | str, data_folder: Path | str, source_image: str, mask: np.ndarray) -> Path:
    """Store a mask, a copy of its image and then their row, each atomically; return the mask's path.

    Args:
        folder: where `open_masks("drawn", folder)` finds the masks; created if missing.
        data_folder: folder of the data set's manifest.
        source_image: the image's name in that manifest; a training negative.
        mask: shape (height, width), bool, not empty and not full.

    Raises:
        ManifestError: the image is not a training negative, another image's mask has the same file name, or
            the manifest is broken.
        ValueError: the mask is empty, full or differs in size from its image, or the image can't be read.
        PermissionError: the folder can't be written to.
    """
    folder, image = Path(folder), Path(data_folder) / source_image
    dataset = read_dataset(data_folder)
    source = dataset[dataset["image"] == source_image]
    if not is_source(source).any():
        raise ManifestError(f"{source_image} is not a training negative: masks are drawn only on those")
    _check_mask(mask, read_image(image), source_image)
    name, listed = mask_file_name(source_image), read_drawn(folder)
    others = set(listed.loc[listed["mask"] == name, "source_image"]) - {source_image}
    if others:
        raise ManifestError(f"{folder / name} is the mask of {others.pop()}: use another folder")
    row = {"image": f"images/{name.removesuffix('.png')}{image.suffix}", "mask": name}
    row |= {"label": "negative", "split": "train", "origin": "real", "mask_source": "drawn"}
    row |= {"source_image": source_image, "category": source["category"].iloc[0]}
    with explain_read_only(folder, f"the mask of {source_image} was not saved"):
        write_png(folder / name, mask.astype(bool))
        with write_atomically(folder / row["image"]) as temporary:
            temporary.write_bytes(image.read_bytes())
        kept = listed[listed["mask"] != name].to_dict("records")
        write_manifest(make_manifest([*kept, row]), folder / "manifest.csv")
    return folder / name


def delete_drawn(folder: Path | str, source_image: str) -> bool:
    """Delete an image's mask, first its row, then its files; return whether there was one."""
    folder, name = Path(folder), mask_file_name(source_image)
    if not (folder / name).is_file():
        return False
    listed = read_drawn(folder)
    is_its = (listed["mask"] == name) & (listed["source_image"] == source_image)
    with explain_read_only(folder, f"the mask of {source_image} was not deleted"):
        if is_its.any():
            write_manifest(listed[~is_its], folder / "manifest.csv")
        for path in [*listed.loc[is_its, "image"], name]:
            (folder / path).unlink(missing_ok=True)
    return True


def _check_mask(mask: np.ndarray, image_u8: np.ndarray, source_image: str) -> None:
    if mask.shape != image_u8.shape[:2]:
        sizes = [f"{shape[1]} × {shape[0]}" for shape in (mask.shape, image_u8.shape)]
        raise ValueError(f"the mask of {source_image} has {sizes[0]} pixels, but the image {sizes[1]}")
    if not mask.any():
        raise ValueError(f"the mask of {source_image} is empty: draw where the defect goes, then save")
    if mask.all():
        raise ValueError(f"the mask of {source_image} covers everything: nothing of the part would be left")
