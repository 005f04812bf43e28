"""What a run knows: the negatives that generated images may start from, the positives of a scenario."""

import hashlib
from functools import lru_cache
from pathlib import Path

import pandas as pd

from defaug_utils.core.files import stamp_file
from defaug_utils.core.guards import collect_problems, raise_problems
from defaug_utils.core.images import find_foreground, read_image, read_mask
from defaug_utils.core.manifest import ManifestError, read_manifest
from defaug_utils.core.origins import SCENARIOS, MixingError

DATA_FOLDER = "data"


def read_dataset(data_folder: Path | str) -> pd.DataFrame:
    """The prepared data set's manifest; where it is missing, the error names the notebook that makes it."""
    path = Path(data_folder) / "manifest.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no data set at {path}: run notebook 01_data_prep with this run_dir first")
    return read_manifest(path)


def list_sources(dataset: pd.DataFrame) -> pd.DataFrame:
    """The only rows that anomalies may start from, sorted: real, without defect, of the train split."""
    is_source = (dataset["split"] == "train") & (dataset["label"] == "negative")
    sources = dataset[is_source & (dataset["origin"] == "real")]
    if sources.empty:
        raise ManifestError(f"none of {len(dataset)} rows of the data set is a training negative to paint on")
    return sources.sort_values("image", ignore_index=True)


def survey_sources(sources: pd.DataFrame, data_folder: Path | str, foreground: str = "whole") -> dict:
    """Read every source (see `list_sources`), once until its file changes: for recipes, and to find bad ones.

    Returns:
        The number of images, their sizes (as "128 × 384", width × height) and a hash of names and pixels.

    Raises:
        ManifestError: lists every image that can't be read or shows no object, see `find_foreground`.
    """
    digest, sizes, problems = hashlib.sha256(), set(), []
    for name in sources["image"]:
        path = (Path(data_folder) / name).resolve()
        with collect_problems(problems):
            size, sha256, has_object = _survey_image(path, stamp_file(path), foreground)
            if not has_object:
                problems.append(f"{name}: foreground {foreground!r} finds no object; use 'whole' on surfaces")
            digest.update(f"{name}\n{size}\n".encode() + sha256)
            sizes.add(size)
    raise_problems(f"training negatives in {data_folder}", problems, ManifestError)
    return {"count": len(sources), "sizes": sorted(sizes), "sha256": digest.hexdigest()}


@lru_cache(maxsize=2**17)
def _survey_image(path: Path, stamp: tuple[int, ...], foreground: str) -> tuple[str, bytes, bool]:
    """Size, hash of the pixels, and whether there is an object; a file of another stamp is another file."""
    image_u8 = read_image(path)
    has_object = bool(find_foreground(image_u8, foreground).any())
    size = f"{image_u8.shape[1]} × {image_u8.shape[0]}"
    return size, hashlib.sha256(image_u8).digest(), has_object


def shuffle_rows(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """An order that depends on the seed and the images' names only, so that draws are nested.

    A rejected image is replaced by the next one and all others stay; the rows' own order plays no part.
    """
    keys = [hashlib.sha256(f"{seed} {data_key(image)}".encode()).hexdigest() for image in rows["image"]]
    return rows.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def data_key(image: str) -> str:
    """Name of an image as `data/manifest.csv` and `source_image` have it."""
    return image.removeprefix(f"{DATA_FOLDER}/")


def choose_positives(
    data_manifest: pd.DataFrame, scenario: str, seed: int, few_shot_count: int = 5
) -> pd.DataFrame:
    """The real training positives that a scenario knows: none, `few_shot_count` drawn by seed, or all.

    A generator that is fine-tuned for few-shot takes the same ones by the same call.

    Raises:
        MixingError: the scenario is unknown, or there are fewer positives than asked for.
    """
    positives = data_manifest[(data_manifest["split"] == "train") & (data_manifest["label"] == "positive")]
    if scenario not in SCENARIOS:
        raise MixingError(f"scenario {scenario!r} is none of {', '.join(SCENARIOS)}")
    if scenario == "few-shot" and not 1 <= few_shot_count <= len(positives):
        raise MixingError(
            f"few_shot_count is {few_shot_count}, expected 1 … {len(positives)}: "
            f"the train split has {len(positives)} positives (zero-shot is the scenario without any)"
        )
    known = {"zero-shot": 0, "few-shot": few_shot_count, "full-shot": len(positives)}[scenario]
    return shuffle_rows(positives, seed).iloc[:known]


def check_pool(folder: Path | str, pool: pd.DataFrame, data_folder: Path | str, looked: int = 20) -> None:
    """Check a finished pool: positives only, made from training negatives, unchanged outside their masks.

    The first `looked` rows have their pixels compared with their source's, in the folder of the data set.

    Raises:
        ManifestError: lists every row that fails.
    """
    known = set(list_sources(read_dataset(data_folder))["image"])
    problems = []
    for place, row in enumerate(pool.to_dict("records")):
        if row["label"] != "positive":
            problems.append(f"{row['image']}: label {row['label']!r}, expected 'positive'")
        if row["source_image"] and row["source_image"] not in known:
            problems.append(f"{row['image']}: its source {row['source_image']} is no training negative")
        elif row["source_image"] and row["mask"] and place < looked:
            problems += _compare_outside(Path(folder), row, Path(data_folder))
    raise_problems(f"pool {folder}", problems, ManifestError)


def _compare_outside(folder: Path, row: dict, data_folder: Path) -> list[str]:
    before_u8, after_u8 = read_image(data_folder / row["source_image"]), read_image(folder / row["image"])
    mask = read_mask(folder / row["mask"])
    if before_u8.shape != after_u8.shape or mask.shape != after_u8.shape[:2]:
        return [f"{row['image']}: image, mask and source {row['source_image']} differ in size"]
    if not mask.any() or mask.all():
        return [f"{row['image']}: its mask is {'full' if mask.any() else 'empty'}"]
    changed = int((before_u8[~mask] != after_u8[~mask]).any(axis=-1).sum())
    return [f"{row['image']}: {changed} pixels changed outside its mask"] if changed else []
