"""The quality of a run's pools as a reader sees it: a table, and a sentence computed from its numbers."""

import pandas as pd

from defaug_utils.evaluation.pool_quality import REAL, UNTOUCHED
from defaug_utils.protocol.mixing import mark_label
from defaug_utils.report.reports import NOTHING

KD_FACTOR = 1000  # kernel distances are small numbers
MOST_NAMED = 6  # pools in a sentence; the table has them all


def format_digits(mean: float, deviation: float = float("nan")) -> str:
    """Write a number with three digits that count, and its spread with as many places."""
    if pd.isna(mean):
        return NOTHING
    return f"{mean:.3g}" + ("" if pd.isna(deviation) else f" ± {deviation:.2g}")


def layout_quality(quality: pd.DataFrame) -> pd.DataFrame:
    """Lay the quality of pools out: rows are sets of images, columns layers and measures.

    Args:
        quality: as `measure_pools` returns it.

    Returns:
        Text cells; the index has the levels set, masks and n; the columns layer and measure. The name of a
        pool whose masks leak into a scenario is marked.
    """
    parts = {}
    for layer, rows in quality.groupby("layer", sort=False):
        first = rows.iloc[0]
        equal, real = f"{first['n_equal']} + {first['n_equal']}", f"n + {first['n_real']}"
        heading = f"{layer} of the side, {first['channels']} channels"
        cells = {
            f"{first['fd_name']} ({real})": rows["fd"].map(format_digits),
            f"{first['fd_name']} ({equal})": _format_spreads(rows, "fd_equal"),
            f"{first['kd_name']} · {KD_FACTOR} ({equal})": _format_spreads(rows, "kd", KD_FACTOR),
            "diversity": rows["diversity"].map(format_digits),
        }
        parts[heading] = pd.DataFrame(cells).set_axis(_index_sets(rows))
    return pd.concat(parts, axis=1)


def _format_spreads(rows: pd.DataFrame, name: str, factor: int = 1) -> list[str]:
    values = factor * rows[[name, f"{name}_std"]]
    return [format_digits(*row) for row in values.to_numpy()]


def _index_sets(rows: pd.DataFrame) -> pd.MultiIndex:
    names = [mark_label(*row) for row in zip(rows["set"], rows["leaks_in"], strict=True)]
    masks = rows["masks"].replace("", NOTHING)
    return pd.MultiIndex.from_arrays([names, masks, rows["n"]], names=["set", "masks", "n"])


def describe_quality(quality: pd.DataFrame) -> str:
    """Say which pool lies nearest to the real positives, and whether the distance sees defects at all.

    Args:
        quality: as `measure_pools` returns it; its last layer is read.
    """
    rows = quality[quality["layer"] == quality["layer"].iloc[-1]].set_index("set")
    pools = rows.drop(index=[REAL, UNTOUCHED], errors="ignore").dropna(subset="fd_equal")
    floor, untouched = (rows["fd_equal"].get(name, float("nan")) for name in (REAL, UNTOUCHED))
    if pools.empty or pd.isna(floor) or pd.isna(untouched):
        return "No pool, or too few images for a comparison at equal numbers: no distance is read here."
    first = rows.iloc[0]
    near = pools.sort_values("fd_equal")
    values = [
        f"{mark_label(name, row['leaks_in'])} {format_digits(row['fd_equal'], row['fd_equal_std'])}"
        for name, row in near.iterrows()
    ]
    if len(values) > MOST_NAMED:
        values = [*values[: MOST_NAMED - 1], "…", values[-1]]
    farther = int((pools["fd_equal"] > untouched).sum())
    text = (
        f"{first['fd_name']} at {first['layer']} of the side, {first['n_equal']} images on either side, "
        f"from the nearest pool on: {', '.join(values)}. Two parts of the real positives lie "
        f"{format_digits(floor)} apart, untouched negatives {format_digits(untouched)} from real positives. "
    )
    if farther:
        text += (
            f"Untouched negatives are nearer than {farther} of {len(pools)} pools: over a whole image this "
            "distance sees the surface before it sees the defect, and a pool that paints nothing would win."
        )
    else:
        text += "Every pool is nearer to the real positives than untouched negatives are."
    return text
