"""From data sets to manifests: check every file; draw rows for validation, test and few-shot."""

import hashlib
import os
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from defaug_utils.core.guards import MAX_LISTED_PROBLEMS, raise_problems
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import SPLITS, make_manifest
from defaug_utils.core.origins import SCENARIOS, MixingError
from defaug_utils.data.flaws import (
    CHANGE_COLUMNS,
    CHANGES,
    EMPTY_MASK,
    EMPTY_MASKS,
    LEFT_OUT,
    NAMED,
    list_unknown,
    read_names,
)
from defaug_utils.data.layouts import DatasetError, list_files
from defaug_utils.data.public_sets import LICENCE, find_licence

DATA_FOLDER = "data"
MAX_WORKERS, AHEAD = 8, 4  # threads, and values taken ahead for each
ADVICE = "fix these files, or name their images in leave_out"
EMPTY_MASK_ADVICE = (
    "has no pixel above 0, but its image is listed as defective: draw the defect, set "
    "empty_masks to negative or skip, or name the image in leave_out"
)
FEW_SHOT_COUNT = 10  # defective images per type (AdaBLDM's protocol)


class DatasetWarning(UserWarning):
    """Something in a data set that should be looked at, although the data set can be used."""


def load_dataset(
    root: Path | str,
    layout: str = "auto",
    category: str = "",
    test_share: float = 0.3,
    seed: int = 0,
    on_image: Callable[[int], None] | None = None,
    leave_out: Iterable[str] | str | Path = (),
    empty_masks: str = "refuse",
) -> pd.DataFrame:
    """Read a data set with any known layout; every file is decoded once and checked.

    An image is positive if its mask has any pixel above 0. Files that don't belong to the layout (such as
    KSDD2's ` (copy)` files) are skipped, with one warning.

    Args:
        layout: "ksdd2", "mvtec", "btad" or "folder" (see `layouts`), or "auto" to detect it from the folders.
        category: the only category (product) to load, or empty for all; for MVTec AD and BTAD.
        test_share: share drawn for testing, by seed, if a plain folder has no test part.
        on_image: called with 1 for every checked image (such as `tqdm.update`).
        leave_out: names of images (or of masks, to skip both) to ignore, as in the columns `image` and
            `mask`; or a text file with one name per line.
        empty_masks: what to do with an image that is listed as defective but has an empty mask: "refuse" it,
            read it as "negative", or "skip" it.

    Returns:
        A manifest with paths relative to `root`, and with the columns `width`, `height` and `defect_pixels`
        of the originals, and `image_checksum` and `mask_checksum` of the files. Its `attrs["changes"]` lists
        what was left out or read differently: image, change and reason. Its `attrs["licence"]` is that of a
        recognised public data set, otherwise empty.

    Raises:
        FileNotFoundError: there is no such folder.
        DatasetError: empty or unreadable folder, unknown layout, or a list of every bad file and of every
            name in `leave_out` that is not in the data set.
    """
    if empty_masks not in EMPTY_MASKS:
        raise DatasetError(f"empty_masks {empty_masks!r} is not one of {', '.join(EMPTY_MASKS)}")
    names = read_names(leave_out)
    listing = list_files(root, layout, category, names)
    rows, problems = [], list_unknown(names, listing) + listing.problems
    changes = [(image, LEFT_OUT, NAMED) for image in dict.fromkeys(listing.left_out.values())]
    checked = map_in_threads(lambda row: _check_row(listing.root, row), listing.rows, on_image)
    for named, (row, found) in zip(listing.rows, checked, strict=True):
        problems += found
        is_emptied = named.get("label") == "positive" and row["label"] == "negative"
        if is_emptied and empty_masks == "refuse":
            problems.append(f"{row['mask']}: {EMPTY_MASK_ADVICE}")
        elif is_emptied:
            changes.append((row["image"], EMPTY_MASKS[empty_masks], EMPTY_MASK))
        if not (is_emptied and empty_masks == "skip"):
            rows.append(row)
    raise_problems(f"data set {root} ({ADVICE})", problems, DatasetError)
    if not rows:
        raise DatasetError(f"data set {root}: every image is left out: keep some")
    manifest = make_manifest(rows)
    manifest.attrs[LICENCE] = find_licence(listing)
    manifest.attrs[CHANGES] = [dict(zip(CHANGE_COLUMNS, change, strict=True)) for change in changes]
    if "test" not in set(manifest["split"]):
        manifest = draw_split(manifest, "test", test_share, seed)
    _warn_about(manifest, listing.skipped, root)
    return manifest


def map_in_threads(function: Callable, values: Iterable, on_image: Callable | None = None) -> Iterator:
    """Results in order, with a call of `on_image(1)` after each; after an error nothing new is started.

    Only a few values are read ahead, so that a long list costs no memory.
    """
    workers, values, begun = min(MAX_WORKERS, os.cpu_count() or 1), iter(values), deque()
    with ThreadPoolExecutor(workers) as executor:
        try:
            begun.extend(executor.submit(function, value) for value in islice(values, AHEAD * workers))
            while begun:
                yield begun.popleft().result()
                if on_image:
                    on_image(1)
                begun.extend(executor.submit(function, value) for value in islice(values, 1))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _check_row(root: Path, row: dict) -> tuple[dict, list[str]]:
    """Complete a row from its files, and list what is wrong with them."""
    try:
        height, width = read_image(root / row["image"]).shape[:2]
        mask = read_mask(root / row["mask"]) if row["mask"] else np.zeros((height, width), bool)
        checksums = {f"{column}_checksum": _hash_file(root, row[column]) for column in ("image", "mask")}
    except (OSError, ValueError) as error:
        return {"label": "", **row}, [str(error).replace(f"{root}{os.sep}", "", 1)]
    label = "positive" if mask.any() else "negative"
    problems = []
    if mask.shape != (height, width):
        found = f"is {mask.shape[1]} × {mask.shape[0]} pixels, its image is {width} × {height}"
        problems.append(f"{row['mask']}: {found}: export the mask at the image's size")
    measured = {"width": width, "height": height, "defect_pixels": int(mask.sum()), **checksums}
    defect_type = row.get("defect_type", "") if label == "positive" else ""
    return {**row, "label": label, "defect_type": defect_type, **measured}, problems


def _hash_file(root: Path, name: str) -> str:
    return hashlib.blake2b((root / name).read_bytes(), digest_size=16).hexdigest() if name else ""


def _warn_about(manifest: pd.DataFrame, skipped: list[str], root: Path | str) -> None:
    """Warn about skipped files, images in two splits or with both labels, and masks that look inverted."""
    if skipped:
        _warn(f"{root}: skipped {len(skipped)} file(s) that don't belong to the layout", skipped)
    twins = manifest[manifest.duplicated("image_checksum", keep=False)]
    leaks = [
        " = ".join(group["image"])
        for _, group in twins.groupby("image_checksum", sort=False)
        if len(group[["split", "label"]].drop_duplicates()) > 1
    ]
    if leaks:
        _warn(f"{root}: the same image is in more than one split, or has both labels", leaks)
    positives = manifest[manifest["label"] == "positive"]
    covered = positives["defect_pixels"] / (positives["width"] * positives["height"])
    if len(positives) and covered.median() > 0.5:
        _warn(f"{root}: most masks cover more than half of their image. Are they inverted?", [])


def _warn(what: str, names: list[str]) -> None:
    listed = names[:MAX_LISTED_PROBLEMS] + ["…"] * (len(names) > MAX_LISTED_PROBLEMS)
    warnings.warn(what + (": " if listed else "") + ", ".join(listed), DatasetWarning, stacklevel=4)


def draw_validation(manifest: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Move a share of the training images to `val`, see `draw_split`, unless there is a `val` part."""
    if "val" in set(manifest["split"]):
        return manifest.copy()
    return draw_split(manifest, "val", share, seed)


def draw_split(manifest: pd.DataFrame, split: str, share: float, seed: int) -> pd.DataFrame:
    """Move a share of the training images to `val` or `test`, evenly over labels and defect types.

    If the share is above 0, at least one image of every category and label is drawn, and at least one stays;
    a single image stays. The order of the rows doesn't matter.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share {share} of the training images for {split} must be in [0, 1)")
    drawn = manifest.copy()
    train = manifest[manifest["split"] == "train"]
    for (category, label), group in train.groupby(["category", "label"]):
        count = min(max(round(len(group) * share), 1), len(group) - 1) if share else 0
        stream = zlib.crc32(f"{split}/{category}/{label}".encode())
        drawn.loc[_draw_evenly(group, count, np.random.default_rng([seed, stream])), "split"] = split
    return drawn


def _draw_evenly(group: pd.DataFrame, count: int, rng: np.random.Generator) -> pd.Index:
    """Every (n / count)-th of the shuffled rows, ordered by defect type."""
    shuffled = group.sort_values("image").sample(frac=1, random_state=rng)
    by_type = shuffled.sort_values("defect_type", kind="stable")
    picks = (np.arange(count) + rng.random()) * len(group) / max(count, 1)
    return by_type.index[picks.astype(int)]


def draw_few_shot(
    dataset: pd.DataFrame,
    count: int = FEW_SHOT_COUNT,
    seed: int = 0,
    chosen: Iterable[str] = (),
    takes_all: bool = False,
) -> pd.DataFrame:
    """Move `count` defective test images of every category and type to the train split, or a given list.

    This is AdaBLDM's protocol for data sets without defects in training (MVTec AD, BTAD). With the same seed,
    a larger count draws the same images and more.

    Args:
        count: images per category and defect type; ignored if `chosen` is given.
        seed: of the draw; the order of the rows doesn't matter.
        chosen: `image` of the rows to move, any number; empty to draw them.
        takes_all: take all images of a type that has fewer, which leaves none for testing it (AdaBLDM's
            code); see `list_untested`.

    Raises:
        DatasetError: types with too few images (unless `takes_all`), a category without a defective image
            left for testing, defective images in train, or wrong names in the list.
    """
    if count < 1:
        raise ValueError(f"few-shot count {count} must be 1 or more")
    is_positive, is_test = dataset["label"] == "positive", dataset["split"] == "test"
    known = dataset.loc[is_positive & ~is_test, "image"]
    if len(known):
        raise DatasetError(
            f"few-shot: {len(known)} defective images are not in test (the first is "
            f"{known.iloc[0]}): this draw is for data sets whose training images are all good; for others, "
            "few-shot is a scenario of the training sets"
        )
    candidates = dataset[is_positive & is_test]
    images = list(chosen) or _draw_per_type(candidates, count, seed, takes_all)
    unknown = {*images} - {*candidates["image"]}
    wrong = [f"{name}: is not a defective test image of the data set" for name in unknown]
    wrong += [f"{name}: is listed twice" for name, times in Counter(images).items() if times > 1]
    raise_problems("few-shot list", sorted(wrong), DatasetError)
    left = candidates[~candidates["image"].isin(images)]
    bare = sorted({*dataset["category"]} - {*left["category"]})
    problems = [f"{category or 'defects'}: no defective image in test" for category in bare]
    what = f"few-shot: with {len(images)} image(s) for training, nothing is left for testing"
    raise_problems(what, problems, DatasetError)
    return dataset.assign(split=dataset["split"].mask(dataset["image"].isin(images), "train"))


def list_untested(manifest: pd.DataFrame) -> list[str]:
    """Defect types with images for training and none for testing: their names, after the category's."""
    positives = manifest[manifest["label"] == "positive"]
    names = positives["category"] + "/" + positives["defect_type"]
    in_test = set(names[positives["split"] == "test"])
    return sorted({name.strip("/") or "defects" for name in set(names) - in_test})


def _draw_per_type(candidates: pd.DataFrame, count: int, seed: int, takes_all: bool) -> list[str]:
    groups = {key: sorted(group["image"]) for key, group in candidates.groupby(["category", "defect_type"])}
    fewest = min(map(len, groups.values()), default=count)
    if fewest < count and not takes_all:
        listed = [
            f"{'/'.join(filter(None, key)) or 'defects'}: {len(images)} image(s)"
            + " (too few)" * (len(images) < count)
            for key, images in groups.items()
        ]
        what = (
            f"few-shot: {count} defective images of every type are requested; request at most {fewest}, "
            "give a list of images, leave out the types with fewer images, or take all of theirs "
            "(few_shot_takes_all)"
        )
        raise_problems(what, sorted(listed, key=lambda line: "too few" not in line), DatasetError)
    drawn = []
    for key, images in groups.items():
        generator = np.random.default_rng([seed, zlib.crc32("/".join(key).encode())])
        drawn += generator.permutation(images)[:count].tolist()
    return drawn


def summarise_dataset(manifest: pd.DataFrame) -> pd.DataFrame:
    """Number and sizes of images, and their defect pixels, by category, split, label and defect type."""
    keys = ["category", "split", "label", "defect_type"]
    table = manifest.assign(split=pd.Categorical(manifest["split"], SPLITS, ordered=True))
    spread = {"width": ("min", "max"), "height": ("min", "max"), "defect_pixels": ("min", "median", "max")}
    columns = {f"{how}_{column}": (column, how) for column, ways in spread.items() for how in ways}
    summary = table.groupby(keys, observed=True).agg(images=("image", "size"), **columns).round()
    return summary.astype(int).reset_index()


def shuffle_rows(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Shuffle by seed and image names only, so that draws are nested.

    If an image is rejected, the next one replaces it and all others stay. The original order doesn't matter.
    """
    keys = [hashlib.sha256(f"{seed} {data_key(image)}".encode()).hexdigest() for image in rows["image"]]
    return rows.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def data_key(image: str) -> str:
    """Name of an image as in `data/manifest.csv` and `source_image`."""
    return image.removeprefix(f"{DATA_FOLDER}/")


def choose_positives(
    data_manifest: pd.DataFrame, scenario: str, seed: int, few_shot_count: int = 5
) -> pd.DataFrame:
    """The real training positives that a scenario knows: none, `few_shot_count` drawn by seed, or all.

    A generator that is fine-tuned for few-shot uses the same call and gets the same images.

    Raises:
        MixingError: the scenario is unknown, or there are fewer positives than requested.
    """
    positives = data_manifest[(data_manifest["split"] == "train") & (data_manifest["label"] == "positive")]
    if scenario not in SCENARIOS:
        raise MixingError(f"scenario {scenario!r} is not one of {', '.join(SCENARIOS)}")
    if scenario == "few-shot" and not 1 <= few_shot_count <= len(positives):
        raise MixingError(
            f"few_shot_count is {few_shot_count}, expected 1 … {len(positives)}: "
            f"the train split has {len(positives)} positives (zero-shot is the scenario without any)"
        )
    known = {"zero-shot": 0, "few-shot": few_shot_count, "full-shot": len(positives)}[scenario]
    return shuffle_rows(positives, seed).iloc[:known]
