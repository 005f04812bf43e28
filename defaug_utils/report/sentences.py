"""Sentences that read a run's results: computed, so that they are true whatever the numbers are."""

from collections.abc import Sequence

import pandas as pd

from defaug_utils.protocol.mixing import UNKNOWN, is_marked, mark_label
from defaug_utils.report.reports import format_difference, format_spread, label_method
from defaug_utils.report.results import compare_spreads, measure_optimism

MAX_LISTED = 12  # names of runs in a sentence


def describe_runs(runs: pd.DataFrame) -> str:
    """How much there is: runs, arms, seeds, test images."""
    seeds = runs.groupby(["scenario", "arm", "n_aug"])["seed"].nunique()
    several = "" if seeds.min() == seeds.max() else f"{seeds.min()} to "
    first = runs.iloc[0]
    counts = [_count(runs[name].nunique(), name) for name in ("scenario", "arm")]
    return (
        f"Finished: {_count(len(runs), 'run')}, in {' and '.join(counts)}, with {several}"
        f"{_count(seeds.max(), 'seed')} each. The test set holds {first['n_test']} images, of which "
        f"{first['n_test_positive']} are positive: one positive more or less found moves recall by "
        f"{1 / max(1, first['n_test_positive']):.3f}."
    )


def describe_unfinished(unfinished: Sequence[str], missing: pd.DataFrame) -> str:
    """Name the runs that are still to come and, by scenario, the papers' arms without a finished run.

    Args:
        unfinished: as `list_unfinished` returns it.
        missing: as `list_missing_arms` returns it.
    """
    runs = ", ".join(f"`{name}`" for name in unfinished[:MAX_LISTED])
    more = f" and {len(unfinished) - MAX_LISTED} more" if len(unfinished) > MAX_LISTED else ""
    text = f"Not finished yet: {runs}{more}." if unfinished else "Every planned run has finished."
    lines = [
        f"- **{scenario}**: the papers have {', '.join(map(label_method, rows['arm']))}; this run has not."
        for scenario, rows in missing.groupby("scenario", sort=False)
    ]
    return "\n".join([text, "", *(lines or ["- Every arm that the papers print has a finished run."])])


def describe_leaks(runs: pd.DataFrame) -> str:
    """Name the arms whose runs knew real defects that their scenario may not know.

    Args:
        runs: as `gather_results` returns it.
    """
    marked = runs[runs["leak"].map(is_marked)]
    parts = [
        f"{mark_label(label_method(arm), leak)} in {scenario} ({_count(len(rows), 'run')}, masks: {leak})"
        for (scenario, arm, leak), rows in marked.groupby(["scenario", "arm", "leak"], sort=False)
    ]
    text = "No finished run is known to have learnt from real defects that its scenario may not know."
    if parts:
        text = (
            f"**Leaks:** {'; '.join(parts)}. These masks show where real defects lie and how large they are, "
            "which nobody knows in that scenario: compare them with no other arm there."
        )
    unknown = int((runs["leak"] == UNKNOWN).sum())
    gone = f" Of {_count(unknown, 'run')} the training set is gone: whether it leaks is unknown."
    return text + gone * bool(unknown)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_scenarios(summary: pd.DataFrame, metric: str = "ap", name: str = "AP") -> str:
    """Say for every scenario which arm has the highest and which the lowest mean, as a Markdown list."""
    lines = []
    for scenario, rows in summary.dropna(subset=metric).groupby("scenario", sort=False):
        high, low = rows.loc[rows[metric].idxmax()], rows.loc[rows[metric].idxmin()]
        line = f"- **{scenario}**: the highest mean {name} is {_describe_cell(high, metric)}"
        if len(rows) > 1:
            line += f", the lowest {_describe_cell(low, metric)}"
        lines.append(line + ".")
    return "\n".join(lines)


def _describe_cell(row: pd.Series, metric: str) -> str:
    return f"{format_spread(row[metric], row[f'{metric}_std'], row['n'])} of {_name_arm(row)}"


def _name_arm(row: pd.Series) -> str:
    label = mark_label(label_method(row["arm"]), row.get("leak"))
    return label if row["arm"] == "none" else f"{label} with N_aug = {row['n_aug']}"


def describe_differences(*tables: pd.DataFrame, name: str = "AP") -> str:
    """Say what the arms gained over each baseline, and how far so few seeds carry, as paragraphs.

    Args:
        tables: as `paired_differences` returns them, each with one baseline.
        name: of the metric.
    """
    paragraphs = [_describe_baseline(table, name) for table in tables if not table.empty]
    nothing = "No two arms share a scenario and a seed yet: there is no difference to show."
    return "\n\n".join(paragraphs) or nothing


def _describe_baseline(differences: pd.DataFrame, name: str) -> str:
    n, comparisons = int(differences["n"].max()), _count(len(differences), "comparison")
    above = int((differences["difference"] > 0).sum())
    agreeing = int((differences[["n_higher", "n_lower"]].max(axis=1) == differences["n"]).sum())
    high = differences.loc[differences["difference"].idxmax()]
    low = differences.loc[differences["difference"].idxmin()]
    baseline = label_method(high["baseline"])
    text = f"In {above} of {comparisons} the mean {name} lies above that of **{baseline}**. "
    text += f"The most favourable: {_describe_difference(high)}. "
    if len(differences) > 1:
        text += f"The least favourable: {_describe_difference(low)}. "
    return (
        f"{text}All seeds agree in direction in {agreeing} of {comparisons}; with {_count(n, 'seed')}, two "
        "arms that are worth the same would do so by chance alone in "
        f"{min(1.0, 2 / 2**n):.1%} of comparisons."
    )


def _describe_difference(row: pd.Series) -> str:
    difference = format_difference(row["difference"], row["difference_std"])
    higher = f"higher in {row['n_higher']} of {_count(row['n'], 'seed')}"
    return f"{row['scenario']}, {_name_arm(row)}: {difference}, {higher}"


def describe_spreads(runs: pd.DataFrame) -> str:
    """Compare the doubt from few test images with the doubt from few seeds."""
    spreads = compare_spreads(runs)
    width, deviation = spreads["half_width"].mean(), spreads["ap_std"].mean()
    text = f"Drawing other test images would move a run's AP by about ± {width:.3f} (bootstrap)"
    if pd.isna(deviation):
        return f"{text}; with one seed each, the spread over seeds is unknown."
    which = "test images" if width > 1.96 * deviation else "seeds"
    return (
        f"{text}, training with another seed by about ± {1.96 * deviation:.3f} (1.96 standard "
        f"deviations): here the choice of {which} is the larger doubt. All arms share the test images, "
        "so part of the first doubt cancels in a difference between arms; the second does not."
    )


def describe_optimism(runs: pd.DataFrame) -> str:
    """How much F1 the papers' protocol gains by choosing the threshold on the test set."""
    gain = measure_optimism(runs)
    return (
        "Choosing the threshold on the test set lifts F1 over the threshold from the validation part by "
        f"{gain.mean():.3f} on average and by {gain.max():.3f} at most, over {_count(len(gain), 'run')}."
    )
