"""AdaBLDM's few-shot protocol: some defective images of every type move from test to training."""

import zlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from defaug_utils.core.manifest import raise_problems
from defaug_utils.data.layouts import DatasetError

FEW_SHOT_COUNT = 10  # defective images a type (AdaBLDM's protocol)
KEYS = ["category", "defect_type"]


def draw_few_shot(
    dataset: pd.DataFrame,
    count: int = FEW_SHOT_COUNT,
    seed: int = 0,
    chosen: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Move `count` defective test images of every category and type to the train split, or a given list.

    For data sets whose training part has no defect (MVTec AD, BTAD). All other test images stay, and all
    good training images are used. A larger count of the same seed draws the same images and more.

    Args:
        dataset: of `load_dataset`.
        count: images a category and defect type; not used with a list.
        seed: decides the draw; the order of the rows does not.
        chosen: `image` of the rows to move; how many of a type is then the list's business.

    Returns:
        A copy with the drawn rows' `split` changed.

    Raises:
        DatasetError: types with fewer images than asked for (all are listed with all that there are), a
            category without any defective image, one whose test part would have no defective image left,
            defective images in train already, or names in the list that are no defective test image.
        ValueError: the count is below 1.
    """
    if count < 1:
        raise ValueError(f"few-shot count {count} must be 1 or more")
    _refuse_known_defects(dataset)
    candidates = dataset[(dataset["split"] == "test") & (dataset["label"] == "positive")]
    if chosen is None:
        images = _draw(candidates, count, seed)
    else:
        images = list(chosen)
        raise_problems("few-shot list", _find_wrong_names(images, candidates), DatasetError)
    _refuse_empty_test(dataset, candidates[~candidates["image"].isin(images)], len(images))
    drawn = dataset.copy()
    drawn.loc[drawn["image"].isin(images), "split"] = "train"
    return drawn


def _draw(candidates: pd.DataFrame, count: int, seed: int) -> list[str]:
    sizes = candidates.groupby(KEYS).size()
    if (sizes < count).any():
        listed = [
            f"{_name_type(*key)}: {size} image(s)" + " (too few)" * (size < count)
            for key, size in sizes.items()
        ]
        raise_problems(
            f"few-shot: {count} defective images of every type are asked for; ask for at most {sizes.min()}, "
            "give a list of images, or leave the types with fewer out of the data set",
            sorted(listed, key=lambda line: "too few" not in line),
            DatasetError,
        )
    images = []
    for key, group in candidates.groupby(KEYS):
        generator = np.random.default_rng([seed, zlib.crc32("/".join(key).encode())])
        images += generator.permutation(sorted(group["image"]))[:count].tolist()
    return images


def _name_type(category: str, defect_type: str) -> str:
    return "/".join(filter(None, (category, defect_type))) or "defects"


def _find_wrong_names(images: list[str], candidates: pd.DataFrame) -> list[str]:
    known = set(candidates["image"])
    problems = [
        f"{image}: is no defective test image of the data set" for image in images if image not in known
    ]
    problems += [f"{image}: is listed twice" for image in sorted({i for i in images if images.count(i) > 1})]
    return problems if images else ["the list is empty"]


def _refuse_known_defects(dataset: pd.DataFrame) -> None:
    is_known = (dataset["split"] != "test") & (dataset["label"] == "positive")
    if is_known.any():
        raise DatasetError(
            f"few-shot: {is_known.sum()} defective images are outside of test already (the first is "
            f"{dataset.loc[is_known, 'image'].iloc[0]}): the draw is for data sets whose training images are "
            "all good; for others, few-shot is a scenario of the training sets"
        )


def _refuse_empty_test(dataset: pd.DataFrame, left: pd.DataFrame, moved: int) -> None:
    missing = sorted(set(dataset["category"]) - set(left["category"]))
    raise_problems(
        f"few-shot: with {moved} image(s) for training nothing is left to be judged on",
        [f"{_name_type(category, '')}: no defective image in test" for category in missing],
        DatasetError,
    )


def count_few_shot(dataset: pd.DataFrame) -> pd.DataFrame:
    """Defective images for training and for test, one row a category and type.

    Args:
        dataset: of `draw_few_shot`.

    Returns:
        The columns category, defect_type, train and test.
    """
    positives = dataset[dataset["label"] == "positive"]
    counts = positives.pivot_table(index=KEYS, columns="split", aggfunc="size", fill_value=0)
    return counts.reindex(columns=["train", "test"], fill_value=0).rename_axis(columns=None).reset_index()
