"""The prepared data set, and the negatives that generated images may start from."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pandas as pd

from defaug_utils.core.files import stamp_file
from defaug_utils.core.guards import collect_problems, raise_problems
from defaug_utils.core.images import find_foreground, is_grey, read_image
from defaug_utils.core.manifest import ManifestError, read_manifest, stamp_manifest


def read_dataset(data_folder: Path | str) -> pd.DataFrame:
    """The prepared data set's manifest; if it is missing, the error names the notebook that makes it.

    It is read again only if it has changed.
    """
    path = Path(data_folder) / "manifest.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no data set at {path}: run notebook 01_data_prep with this run_dir first")
    return _read_dataset(path.resolve(), stamp_manifest(path)).copy()


@lru_cache(maxsize=2)
def _read_dataset(path: Path, stamp: tuple[int, ...]) -> pd.DataFrame:
    return read_manifest(path)


def is_source(dataset: pd.DataFrame) -> pd.Series:
    """Whether each row may be a source of generated images: real, without a defect, in the train split."""
    is_known = (dataset["split"] == "train") & (dataset["label"] == "negative")
    return is_known & (dataset["origin"] == "real")


def list_sources(dataset: pd.DataFrame) -> pd.DataFrame:
    """The only rows that may be sources of generated images, see `is_source`, sorted."""
    sources = dataset[is_source(dataset)]
    if sources.empty:
        raise ManifestError(f"none of the {len(dataset)} rows of the data set is a training negative")
    return sources.sort_values("image", ignore_index=True)


def check_learned_from(names: Iterable[str], dataset: pd.DataFrame, what: str) -> None:
    """Refuse images outside the train split for a generator; a ManifestError, headed `what`, lists them."""
    split_of = dict(zip(dataset["image"], dataset["split"], strict=True))
    splits = {name: split_of.get(name, "unknown to the data set") for name in names}
    problems = [
        f"{name} is {split}, but it may learn only from train images"
        for name, split in splits.items()
        if split != "train"
    ]
    raise_problems(what, problems, ManifestError)


def survey_sources(sources: pd.DataFrame, data_folder: Path | str, foreground: str = "whole") -> dict:
    """Read every source (see `list_sources`), once until its file changes; for recipes and to find bad files.

    Returns their number, sizes (such as "128 × 384", width × height) and a hash of names and pixels. Raises a
    ManifestError that lists every image that can't be read or shows no object, see `find_foreground`.
    """
    digest, sizes, problems, folder = hashlib.sha256(), set(), [], Path(data_folder).resolve()
    for name in sources["image"]:
        path = str(folder / name)
        with collect_problems(problems):
            size, sha256, has_object, _ = _survey_image(path, stamp_file(path), foreground)
            if not has_object:
                problems.append(f"{name}: foreground {foreground!r} finds no object; surfaces need 'whole'")
            digest.update(f"{name}\n{size}\n".encode() + sha256)
            sizes.add(size)
    raise_problems(f"training negatives in {data_folder}", problems, ManifestError)
    return {"count": len(sources), "sizes": sorted(sizes), "sha256": digest.hexdigest()}


def count_grey(sources: pd.DataFrame, data_folder: Path | str) -> int:
    """Number of sources (see `list_sources`) that are grey, see `is_grey`; each file is read once."""
    folder = Path(data_folder).resolve()
    paths = [str(folder / name) for name in sources["image"]]
    return sum(_survey_image(path, stamp_file(path), "whole")[3] for path in paths)


@lru_cache(maxsize=2**17)
def _survey_image(path: str, stamp: tuple[int, ...], foreground: str) -> tuple[str, bytes, bool, bool]:
    """Size, hash of pixels, whether there is an object, whether it is grey; cached by the file's stamp."""
    image_u8 = read_image(path)
    has_object = bool(find_foreground(image_u8, foreground).any())
    size = f"{image_u8.shape[1]} × {image_u8.shape[0]}"
    return size, hashlib.sha256(image_u8).digest(), has_object, is_grey(image_u8)
