"""What generated images may start from: real training negatives, and nothing else."""

import hashlib
from pathlib import Path

import pandas as pd

from defaug_utils.foreground import find_foreground
from defaug_utils.images import read_image
from defaug_utils.manifest import ManifestError, raise_problems, read_manifest


def read_dataset(data_folder: Path | str) -> pd.DataFrame:
    """The prepared data set's manifest; where it is missing, the error names the notebook that makes it."""
    path = Path(data_folder) / "manifest.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no data set at {path}: run notebook 01_data_prep with this run_dir first")
    return read_manifest(path)


def list_sources(dataset: pd.DataFrame) -> pd.DataFrame:
    """The only rows that anomalies may start from: real, without defect, of the train split.

    Args:
        dataset: manifest of the prepared data set.

    Returns:
        These rows in the order of their `image`, counted from 0.

    Raises:
        ManifestError: there is none.
    """
    is_source = (dataset["split"] == "train") & (dataset["label"] == "negative")
    sources = dataset[is_source & (dataset["origin"] == "real")]
    if sources.empty:
        raise ManifestError(
            f"none of the data set's {len(dataset)} rows is a training negative to put an anomaly on"
        )
    return sources.sort_values("image", ignore_index=True)


def survey_sources(sources: pd.DataFrame, data_folder: Path | str, foreground: str = "whole") -> dict:
    """Read every source once, one at a time, to find broken ones now and to tell this data from other.

    Args:
        sources: rows of the data set, see `list_sources`.
        data_folder: folder of its manifest.
        foreground: as `find_foreground`; an image without any object is a problem.

    Returns:
        The number of images, their sizes (as "128 × 384", width × height) and a hash of names and pixels.

    Raises:
        ManifestError: lists every image that can't be read or shows no object.
    """
    digest, sizes, problems = hashlib.sha256(), set(), []
    for name in sources["image"]:
        try:
            image_u8 = read_image(Path(data_folder) / name)
        except ValueError as error:
            problems.append(str(error))
            continue
        if not find_foreground(image_u8, foreground).any():
            problems.append(f"{name}: foreground {foreground!r} finds no object; use 'whole' for surfaces")
        size = f"{image_u8.shape[1]} × {image_u8.shape[0]}"
        digest.update(f"{name}\n{size}\n".encode() + hashlib.sha256(image_u8).digest())
        sizes.add(size)
    raise_problems(f"training negatives in {data_folder}", problems)
    return {"count": len(sources), "sizes": sorted(sizes), "sha256": digest.hexdigest()}
