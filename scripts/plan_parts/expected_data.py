"""The images that a run will use, by split and label, before they are prepared."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from defaug_utils.core.manifest import read_manifest
from defaug_utils.data.datasets import draw_few_shot, draw_validation, load_dataset
from defaug_utils.data.preparation import list_boxes
from defaug_utils.data.surfaces import DEFAULT_SIZE, POSITIVE_SHARE, plan_surfaces

# Approximate size (width, height), and images by split, label and defect type, of data that is missing
KSDD2 = (  # Božič et al. 2021
    (230, 630),
    {("train", "negative", ""): 2085, ("train", "positive", ""): 246}
    | {("test", "negative", ""): 894, ("test", "positive", ""): 110},
)
GRID = (  # of MVTec AD (Bergmann et al. 2019)
    (1024, 1024),
    {("train", "negative", ""): 264, ("test", "negative", ""): 21}
    | {("test", "positive", kind): 12 for kind in ("bent", "broken")}
    | {("test", "positive", kind): 11 for kind in ("glue", "metal_contamination", "thread")},
)


def list_data(p: Mapping[str, object], run: Path | str) -> tuple[pd.DataFrame, str]:
    """The rows of a run's data set, and a phrase that says where their numbers come from.

    `p` are the parameters of 01_data_prep. The sources, in this order, are the run's prepared data, the
    published numbers of a missing data set, the folder `data_root`, and drawn surfaces.
    """
    prepared, root = Path(run) / "data" / "manifest.csv", Path(p["data_root"])
    if prepared.is_file():
        return read_manifest(prepared), f"as {run} has prepared them"
    if p["few_shot_per_type"] and not p["data_root"]:
        table, told = make_published(*GRID), "as published of MVTec AD's grid: give DATA= to count yours"
    elif root.name == "KolektorSDD2" and not root.exists():
        table, told = make_published(*KSDD2), f"as published of KSDD2: {root} is not there"
    elif p["data_root"]:
        names = ("layout", "category", "test_share", "seed")
        further = {name: p[name] for name in ("leave_out", "empty_masks")}
        table, told = load_dataset(root, *(p[name] for name in names), **further), f"of {root}"
    else:
        table, told = plan_drawn(p), "drawn surfaces"
    if p["few_shot_per_type"]:
        table = draw_few_shot(
            table, p["few_shot_per_type"], p["seed"], p["few_shot_images"], p["few_shot_takes_all"]
        )
    table = draw_validation(table, p["validation_share"], p["seed"])
    sizes, size = table[["width", "height"]].itertuples(index=False), (p["image_width"], p["image_height"])
    crops = [len(list_boxes(*sides, size, p["fit"])) for sides in sizes]
    return table.loc[table.index.repeat(crops)].reset_index(drop=True), told


def make_published(size: tuple[int, int], counts: Mapping[tuple[str, str, str], int]) -> pd.DataFrame:
    """Rows of a data set of which only the counts are known."""
    columns = ["split", "label", "defect_type", "image"]
    rows = [(*key, f"{' '.join(key)} {number}") for key, count in counts.items() for number in range(count)]
    return pd.DataFrame(rows, columns=columns).assign(category="", width=size[0], height=size[1])


def plan_drawn(p: Mapping[str, object]) -> pd.DataFrame:
    """Rows of the surfaces that 01_data_prep draws."""
    counts = {"train": p["surfaces_train"], "test": p["surfaces_test"]}
    rows = [
        row | {"split": split}
        for split, count in counts.items()
        for row in plan_surfaces(split, count, POSITIVE_SHARE, p["seed"])
    ]
    table = pd.DataFrame(rows).assign(category="", width=DEFAULT_SIZE[0], height=DEFAULT_SIZE[1])
    return table.assign(label=np.where(table["defect_type"] != "", "positive", "negative"))
