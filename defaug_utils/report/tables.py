"""Tables of results in the papers' layout, with captions."""

import math
import re
import zlib
from collections.abc import Mapping
from html import escape
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from defaug_utils.data.datasets import DATA_FOLDER
from defaug_utils.data.flaws import count_changes, read_changes
from defaug_utils.evaluation.metrics import NO_VALIDATION
from defaug_utils.protocol.mixing import LEAK_MARK, LEAK_NOTE, mark_label
from defaug_utils.report.results import GROUP, VALIDATION_METRICS, label_arm

RUN_COLUMNS = [
    *(*GROUP, "seed"),
    *("ap", "ap_low", "ap_high", "auroc"),
    *("paper_precision", "paper_recall", "validation_precision", "validation_recall"),
    "leak",
]
PAPER_PROTOCOL = {"AP": "ap", "precision": "paper_precision", "recall": "paper_recall"}
VALIDATION_PROTOCOL = {"AP": "ap", "precision": "validation_precision", "recall": "validation_recall"}
PUBLISHED = {"AP": "ap", "precision": "precision", "recall": "recall"}
NOTHING = "–"
TABLE_CLASS = "dataframe tex2jax_ignore mathjax_ignore"  # a $ in a cell starts no formula
KD_FACTOR = 1000  # kernel distances are small numbers
PRINTED_PLACES = 3  # decimals of the papers
HEADS = {"ap": "AP", "auroc": "AUROC", "n_aug": "N_aug", "ap_low": "AP from", "ap_high": "AP to"}
WORDS = re.compile(r"[a-z0-9]+(?:[_ ][a-z0-9]+)*")  # a name of Python's, or several
NARROW = 14  # letters: texts up to this length stay in one line


def format_spread(mean: float, deviation: float = math.nan, sign: str = "", places: int = -1) -> str:
    """Write "0.712 ± 0.034" or "0.71 ± 0.14"; a NaN deviation is omitted, a missing mean is a dash.

    Without `places`, a number has as many decimals as its spread supports, three at most.
    """
    if pd.isna(mean):
        return NOTHING
    places = min(3, count_places(deviation)) if places < 0 else places
    return f"{mean:{sign}.{places}f}" + ("" if pd.isna(deviation) else f" ± {deviation:.{places}f}")


def count_places(deviation: float) -> int:
    """Decimals that a spread supports: they show two of its digits that count; 3 where it is not known."""
    return max(0, 1 - math.floor(math.log10(deviation))) if deviation > 0 else 3


def format_difference(mean: float, deviation: float = math.nan) -> str:
    """Write "+0.08 ± 0.11" or "−0.033 ± 0.024", otherwise as `format_spread`."""
    return format_spread(mean + 0.0, deviation, "+").replace("-", "−")  # no −0


def format_digits(mean: float, deviation: float = math.nan) -> str:
    """Write a number with as many decimals as show two digits of its spread, or with three digits."""
    if pd.isna(mean) or not deviation > 0:
        return NOTHING if pd.isna(mean) else f"{mean:.3g}"
    return format_spread(mean, deviation, places=count_places(deviation))


def name_setup(runs: pd.DataFrame, run_folder: Path | str, data_name: str = "") -> str:
    """What runs were measured on and with, such as "KSDD2, 3 left out, resnet50, random weights, recipe …".

    Without `data_name`, the run's folder `surfaces` shows that its data were drawn. Also says what was left
    out or read differently, and if there is no validation part.
    """
    changes = count_changes(read_changes(Path(run_folder) / DATA_FOLDER))
    lacking = [NO_VALIDATION] if _lacks_validation(runs) else []
    own = "procedural surfaces" if (Path(run_folder) / "surfaces").is_dir() else "own data set"
    network = [
        *runs.get("backbone", [])[:1],
        *map(name_weights, runs.get("weights", [])[:1]),
        *(f"recipe {name}" for name in runs.get("recipe", [])[:1]),
    ]
    return ", ".join([data_name or own, *changes, *lacking, *network])


def name_weights(weights: str) -> str:
    """A network's initial weights, for a caption: a hub id, a file or folder, or "random weights"."""
    if not weights or pd.isna(weights):
        return "random weights"
    return f"weights {Path(weights).name if Path(weights).is_absolute() else weights}"


def list_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The columns of `gather_results` to show; a missing validation part is stated instead of its values."""
    shown = runs[RUN_COLUMNS].assign(arm=runs["arm"].map(label_arm))
    if _lacks_validation(runs):
        shown[[name for name in VALIDATION_METRICS if name in shown]] = NO_VALIDATION
    return shown


def _lacks_validation(rows: pd.DataFrame) -> bool:
    """Whether no row has a metric at a validation threshold."""
    return "validation_f1" in rows and len(rows) > 0 and bool(rows["validation_f1"].isna().all())


def layout_results(rows: pd.DataFrame, columns: Mapping[str, str], mark_cells: bool = False) -> pd.DataFrame:
    """Arrange results as in the papers: rows are methods and N_aug, cells are mean ± std, then n if known.

    What papers published keeps its printed digits.

    Args:
        rows: from `summarise_results` or `published_results`, for one scenario.
        columns: heading → metric, such as `PAPER_PROTOCOL`, `VALIDATION_PROTOCOL` or `PUBLISHED`.
        mark_cells: mark a leak in the row's cells instead of after the method.
    """
    leaks = rows["leak"] if "leak" in rows else [""] * len(rows)
    cells = {}
    for heading, metric in columns.items():
        texts = [
            format_spread(mean, deviation, places=PRINTED_PLACES if "source" in rows else -1)
            for mean, deviation in rows[[metric, f"{metric}_std"]].to_numpy()
        ]
        cells[heading] = list(map(mark_label, texts, leaks)) if mark_cells else texts
    counts = {"n": rows["n"].to_numpy()} if "n" in rows else {}
    index = _index_methods(rows.drop(columns="leak", errors="ignore") if mark_cells else rows)
    return pd.DataFrame(cells | counts, index=index)


def _index_methods(rows: pd.DataFrame, *first: str) -> pd.MultiIndex:
    """Levels: the columns in `first`, methods (with leaks marked, if known) and N_aug."""
    methods = map(label_arm, rows["arm"])
    methods = map(mark_label, methods, rows["leak"]) if "leak" in rows else methods
    levels = [*(rows[name] for name in first), list(methods), rows["n_aug"].astype(int)]
    return pd.MultiIndex.from_arrays(levels, names=[*first, "method", "N_aug"])


def compare_protocols(rows: pd.DataFrame) -> pd.DataFrame:
    """Precision and recall of one scenario by the papers' threshold and by the validation threshold.

    If there is no validation part, the cells say so.
    """
    protocols = {"papers' threshold (test)": PAPER_PROTOCOL, "validation threshold": VALIDATION_PROTOCOL}
    wanted = ["precision", "recall"]
    parts = {heading: layout_results(rows, columns)[wanted] for heading, columns in protocols.items()}
    if _lacks_validation(rows):
        parts["validation threshold"][wanted] = NO_VALIDATION
    return pd.concat(parts, axis=1)


def layout_differences(differences: pd.DataFrame) -> pd.DataFrame:
    """Show `paired_differences`: signed mean ± std, and the number of seeds in which the arm is higher."""
    sizes = list(map(format_difference, differences["difference"], differences["difference_std"]))
    higher = [f"{above} of {n}" for above, n in differences[["n_higher", "n"]].to_numpy()]
    index = _index_methods(differences, "scenario")
    return pd.DataFrame({"difference": sizes, "higher in seeds": higher}, index=index)


def layout_spreads(spreads: pd.DataFrame) -> pd.DataFrame:
    """Show `compare_spreads`: standard deviation over seeds next to the bootstrap's half width."""
    names = {"n": "n", "ap_std": "std over seeds", "half_width": "± test images"}
    return spreads[list(names)].rename(columns=names).set_axis(_index_methods(spreads, "scenario"))


def layout_quality(rows: pd.DataFrame) -> pd.DataFrame:
    """Show one layer of `measure_pools`: rows are sets of images, columns measures; leaks are marked."""
    first = rows.iloc[0]
    equal, distance = f"{first['n_equal']} + {first['n_equal']}", first["fd_name"]
    kernel = KD_FACTOR * rows[["kd", "kd_std"]]
    cells = {
        f"{distance} (n + {first['n_real']})": rows["fd"].map(format_digits),
        f"{distance} ({equal})": list(map(format_digits, rows["fd_equal"], rows["fd_equal_std"])),
        f"{first['kd_name']} · {KD_FACTOR} ({equal})": list(
            map(format_digits, kernel["kd"], kernel["kd_std"])
        ),
        "diversity": rows["diversity"].map(format_digits),
    }
    names = list(map(mark_label, rows["set"], rows["leaks_in"]))
    levels = [names, rows["masks"].replace("", NOTHING), rows["n"]]
    index = pd.MultiIndex.from_arrays(levels, names=["set", "masks", "n"])
    return pd.DataFrame(cells).set_axis(index)


def name_layer(rows: pd.DataFrame) -> str:
    """The layer that rows of `measure_pools` were measured at, such as "quarter of the side, 16 channels"."""
    return f"{rows['layer'].iloc[0]} of the side, {rows['channels'].iloc[0]} channels"


def name_head(name: object) -> object:
    """A column's header in words, such as "defect type" for `defect_type`; other names stay as they are."""
    if not isinstance(name, str) or not WORDS.fullmatch(name):
        return name
    return HEADS.get(name, name.replace("_", " "))


def style_table(table: pd.DataFrame, caption: str, max_height: str = "") -> Styler:
    """Show a table with a caption above it; a table wider than the page scrolls separately.

    Headers are words (`name_head`), and long texts are wrapped. Cells, headers and caption are plain text:
    HTML or formulas in file names or notes are shown literally.

    Args:
        table: numbers are shown with three digits, missing values as a dash, the index as the first columns.
        caption: what the table shows and whose numbers they are; the meaning of a leak's mark is added.
        max_height: a CSS length such as "24em" beyond which the rows scroll too.
    """
    shown = table if isinstance(table.index, pd.RangeIndex) else table.reset_index(col_level=-1)
    shown = shown.rename(columns=name_head)
    texts = [place for place, kind in enumerate(shown.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    long = [place for place in texts if shown.iloc[:, place].astype(str).str.len().max() > NARROW]
    if any(shown.iloc[:, place].astype(str).str.contains(LEAK_MARK).any() for place in texts):
        caption = f"{caption} {LEAK_NOTE}"
    rules = {
        "caption": "display: block; text-align: left; padding: 0.4em 0; max-width: 85vw",
        "th, td": "padding: 0.2em 0.35em; text-align: right",
        "td": "white-space: nowrap",
        "thead tr:not(:last-child) th": "text-align: center",
    }
    rules |= {f".col{place}": "text-align: left" for place in texts}
    rules |= {f"td.col{place}": "white-space: normal" for place in long}
    style = "display: block; margin: 1em 0; font-size: 0.85em; max-width: 100%; overflow: auto"
    style += f"; max-height: {max_height}" if max_height else ""
    name = f"{zlib.crc32(caption.encode()):08x}"  # not random, so that a rerun gives the same page
    styled = Styler(shown, caption=escape(caption, quote=False), uuid=name, cell_ids=False)
    styled = styled.format(precision=3, na_rep=NOTHING, escape="html").format_index(escape="html", axis=1)
    styled = styled.set_table_attributes(f'class="{TABLE_CLASS}" style="{style}"').hide(axis="index")
    return styled.set_table_styles([{"selector": part, "props": rule} for part, rule in rules.items()])
