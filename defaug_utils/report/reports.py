"""Results as a reader sees them: tables in the papers' layout, with captions."""

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from defaug_utils.protocol.mixing import LEAK_MARK, LEAK_NOTE, mark_label
from defaug_utils.report.result_plots import label_arm, style_arms
from defaug_utils.report.results import GROUP, OTHER_DETECTORS

RUN_COLUMNS = [
    *(*GROUP, "seed"),
    *("ap", "ap_low", "ap_high", "auroc"),
    *("paper_precision", "paper_recall", "validation_precision", "validation_recall"),
    "leak",
]
PAPER_PROTOCOL = {"AP": "ap", "precision": "paper_precision", "recall": "paper_recall"}
VALIDATION_PROTOCOL = {"AP": "ap", "precision": "validation_precision", "recall": "validation_recall"}
PUBLISHED = {"AP": "ap", "precision": "precision", "recall": "recall"}
PUBLISHED_ON = "published: KSDD2"
NOTHING = "–"


def format_spread(mean: float, deviation: float = math.nan, n: float = math.nan) -> str:
    """Write "0.712 ± 0.034 (n = 4)"; what is NaN is left out, a missing mean is a dash."""
    if pd.isna(mean):
        return NOTHING
    spread = "" if pd.isna(deviation) else f" ± {deviation:.3f}"
    return f"{mean:.3f}{spread}" + ("" if pd.isna(n) else f" (n = {int(n)})")


def format_difference(mean: float, deviation: float = math.nan) -> str:
    """Write "+0.079 ± 0.114" or "−0.033 ± 0.124"; what is NaN is left out, a missing mean is a dash."""
    sign = "" if pd.isna(mean) else "+" if mean >= 0 else "−"
    return sign + format_spread(abs(mean), deviation)


def label_method(arm: str) -> str:
    """An arm's or another detector's name in words."""
    return OTHER_DETECTORS.get(arm) or label_arm(arm)


def layout_results(rows: pd.DataFrame, columns: Mapping[str, str], mark_cells: bool = False) -> pd.DataFrame:
    """Lay results out as the papers do: rows are methods and N_aug, cells are mean ± std.

    Args:
        rows: of `summarise_results` or `published_results`, of one scenario.
        columns: heading → metric, such as `PAPER_PROTOCOL`, `VALIDATION_PROTOCOL` or `PUBLISHED`.
        mark_cells: put the mark of a leak into the row's cells instead of behind the method.

    Returns:
        Text cells; the index has the levels method and N_aug. The last column is n where it is known.
        Where the rows tell of a leak, it is marked.
    """
    cells = {
        heading: [
            mark_label(format_spread(mean, deviation), leak if mark_cells else "")
            for mean, deviation, leak in zip(
                rows[metric], rows[f"{metric}_std"], _list_leaks(rows), strict=True
            )
        ]
        for heading, metric in columns.items()
    }
    counts = {"n": rows["n"].to_numpy()} if "n" in rows else {}
    index = _index_methods(rows.drop(columns="leak", errors="ignore") if mark_cells else rows)
    return pd.DataFrame(cells | counts, index=index)


def _list_leaks(rows: pd.DataFrame) -> list[str]:
    return rows["leak"].tolist() if "leak" in rows else [""] * len(rows)


def name_setup(runs: pd.DataFrame, run_folder: Path | str, data_name: str = "") -> str:
    """What runs were measured on and with, such as "procedural surfaces, resnet50".

    Args:
        runs: as `gather_results` returns it.
        run_folder: where they are; its folder `surfaces` tells that the data set was drawn.
        data_name: what to call the data set; if empty, told by the folder.
    """
    own = "procedural surfaces" if (Path(run_folder) / "surfaces").is_dir() else "own data set"
    backbone = [str(runs["backbone"].iloc[0])] if "backbone" in runs else []
    return ", ".join([data_name or own, *backbone])


def compare_protocols(rows: pd.DataFrame) -> pd.DataFrame:
    """Precision and recall by the papers' threshold and by the validation threshold, side by side.

    Args:
        rows: of `summarise_results`, of one scenario.

    Returns:
        Text cells; the index has the levels method and N_aug, the columns protocol and metric.
    """
    protocols = {"papers' threshold (test)": PAPER_PROTOCOL, "validation threshold": VALIDATION_PROTOCOL}
    parts = {heading: layout_results(rows, columns) for heading, columns in protocols.items()}
    return pd.concat({heading: part[["precision", "recall"]] for heading, part in parts.items()}, axis=1)


def compare_with_papers(
    summary: pd.DataFrame, published: pd.DataFrame, scenario: str, ours: str
) -> pd.DataFrame:
    """Ours and the papers' side by side: never in one column, each under a heading that says whose it is.

    Args:
        summary: as `summarise_results` returns it.
        published: as `published_results` returns it.
        scenario: which one to show.
        ours: what ours was measured on and with, such as "procedural surfaces, resnet50".

    Returns:
        Text cells; the index has the levels method and N_aug, the columns whose and what.
    """
    own = layout_results(summary[summary["scenario"] == scenario], PAPER_PROTOCOL, mark_cells=True)
    chosen = published[published["scenario"] == scenario]
    printed = layout_results(chosen, PUBLISHED, mark_cells=True)
    printed["in"] = [_name_table(*row) for row in zip(chosen["source"], chosen["table"], strict=True)]
    both = pd.concat({f"ours: {ours}": own.astype(object), PUBLISHED_ON: printed}, axis=1)
    arms = style_arms([*summary["arm"], *chosen["arm"]])
    order = [label_method(arm) for arm in arms]
    both = both.sort_index(key=lambda level: level.map(order.index) if level.name == "method" else level)
    return both.fillna(NOTHING)


def _name_table(source: str, table: int) -> str:
    return source if pd.isna(table) else f"{source}, table {table}"


def layout_differences(differences: pd.DataFrame) -> pd.DataFrame:
    """Show `paired_differences`: signed mean ± std, and in how many seeds the arm is above."""
    sizes = [format_difference(*row) for row in differences[["difference", "difference_std"]].to_numpy()]
    higher = [f"{above} of {n}" for above, n in differences[["n_higher", "n"]].to_numpy()]
    index = _index_methods(differences, "scenario")
    return pd.DataFrame({"difference": sizes, "higher in seeds": higher}, index=index)


def layout_spreads(spreads: pd.DataFrame) -> pd.DataFrame:
    """Show `compare_spreads`: standard deviation over seeds beside the bootstrap's half width."""
    names = {"n": "n", "ap_std": "std over seeds", "half_width": "± test images"}
    return spreads[list(names)].rename(columns=names).set_axis(_index_methods(spreads, "scenario"))


def _index_methods(rows: pd.DataFrame, *first: str) -> pd.MultiIndex:
    pairs = zip(rows["arm"], _list_leaks(rows), strict=True)
    methods = [mark_label(label_method(arm), leak) for arm, leak in pairs]
    levels = [*(rows[name] for name in first), methods, rows["n_aug"].astype(int)]
    return pd.MultiIndex.from_arrays(levels, names=[*first, "method", "N_aug"])


def style_table(table: pd.DataFrame, caption: str, max_height: str = "") -> Styler:
    """Show a table with a caption above it; one that is wider than the page scrolls on its own.

    Args:
        table: numbers are shown with three digits, missing values as a dash.
        caption: what it shows, and whose numbers they are; where a cell carries the mark of a leak, what
            the mark means is said behind it.
        max_height: a CSS length such as "24em" beyond which the rows scroll too.
    """
    shown = table if isinstance(table.index, pd.RangeIndex) else _index_to_columns(table)
    texts = [place for place, kind in enumerate(shown.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    if any(shown.iloc[:, place].astype(str).str.contains(LEAK_MARK).any() for place in texts):
        caption = f"{caption} {LEAK_NOTE}"
    rules = [
        {
            "selector": "caption",
            "props": "caption-side: top; text-align: left; padding: 0.4em 0; max-width: 85vw",
        },
        {"selector": "th, td", "props": "white-space: nowrap; padding: 0.2em 0.7em; text-align: right"},
        {"selector": "thead tr:not(:last-child) th", "props": "text-align: center"},
        *({"selector": f".col{place}", "props": "text-align: left"} for place in texts),
    ]
    style = "display: block; margin: 1em 0; font-size: 0.85em; max-width: 100%; overflow: auto"
    style += f"; max-height: {max_height}" if max_height else ""
    name = f"{zlib.crc32(caption.encode()):08x}"  # not by chance, so that a rerun gives the same page
    styled = Styler(shown, caption=caption, uuid=name, cell_ids=False).format(precision=3, na_rep=NOTHING)
    styled = styled.set_table_attributes(f'class="dataframe" style="{style}"').set_table_styles(rules)
    return styled.hide(axis="index")


def _index_to_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Make the index's levels the first columns, their names in the lowest row of the heading."""
    index = table.index.to_frame(index=False)
    if table.columns.nlevels == 2:
        index.columns = pd.MultiIndex.from_product([[""], index.columns])
    return pd.concat([index, table.reset_index(drop=True)], axis=1)
