"""Sentences that a decision hangs on: computed, so that they are true whatever the numbers are."""

from collections.abc import Sequence

import pandas as pd

from defaug_utils.core.origins import run_name
from defaug_utils.core.texts import escape_markdown
from defaug_utils.evaluation.metrics import NO_VALIDATION
from defaug_utils.evaluation.pool_quality import REAL, UNTOUCHED
from defaug_utils.protocol.mixing import UNKNOWN, is_marked, mark_label
from defaug_utils.report.papers import FAILS, HOLDS, LEAST_SEEDS, OPEN, STANDARD_ERRORS
from defaug_utils.report.results import GROUP, compare_spreads, label_arm, measure_optimism
from defaug_utils.report.tables import format_difference, format_digits

MAX_LISTED = 12  # names of runs in a sentence
RULE = (
    "The rule: for each seed the difference is taken between two arms with the same N_aug, and averaged over "
    "the N_aug that both have; then its mean over the seeds and its standard deviation s. Beyond "
    f"{STANDARD_ERRORS} standard errors s / √n a claim **{HOLDS}** or, with the other sign, **{FAILS}**; "
    f"within them, and with fewer than {LEAST_SEEDS} seeds, it **{OPEN}**. A claim of several differences "
    "holds when all hold, and fails when one fails. Runs with a leak don't count."
)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _name_arm(arm: str) -> str:
    return escape_markdown(label_arm(arm))


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
    """Name the runs that are still to come (`list_unfinished`) and the papers' arms without one."""
    runs = ", ".join(map(escape_markdown, unfinished[:MAX_LISTED]))
    more = f" and {len(unfinished) - MAX_LISTED} more" if len(unfinished) > MAX_LISTED else ""
    text = f"Not finished yet: {runs}{more}." if unfinished else "Every planned run has finished."
    lines = [
        f"- **{scenario}**: the papers have {', '.join(map(_name_arm, rows['arm']))}; this run has not."
        for scenario, rows in missing.groupby("scenario", sort=False)
    ]
    return "\n".join([text, "", *(lines or ["- Every arm that the papers print has a finished run."])])


def describe_leaks(runs: pd.DataFrame) -> str:
    """Name the arms whose runs knew real defects that their scenario may not know."""
    marked = runs[runs["leak"].map(is_marked)]
    parts = [
        f"{mark_label(_name_arm(arm), leak)} in {scenario} ({_count(len(rows), 'run')}, masks: "
        f"{escape_markdown(leak)})"
        for (scenario, arm, leak), rows in marked.groupby(["scenario", "arm", "leak"], sort=False)
    ]
    text = "No finished run is known to have learnt from real defects that its scenario may not know."
    if parts:
        text = (
            f"**Leaks:** {'; '.join(parts)}. These masks show where real defects lie and how large they are, "
            "which nobody knows in that scenario: compare them with no other arm there."
        )
    if unknown := (runs["leak"] == UNKNOWN).sum():
        text += f" Of {_count(unknown, 'run')} the training set is gone: whether it leaks is unknown."
    return text


def describe_chance(runs: pd.DataFrame) -> str:
    """Name the runs whose training learned nothing (`stayed_at_chance`)."""
    stuck = runs[runs["at_chance"].eq(True)] if "at_chance" in runs else runs[:0]
    if stuck.empty:
        return "Every training learned to tell its own training images apart."
    rows = stuck[[*GROUP, "seed"]].itertuples(index=False)
    names = ", ".join(escape_markdown(run_name(*row)) for row in rows)
    return f"**At chance:** {names} learned nothing. Their numbers are part of the means below."


def describe_differences(*tables: pd.DataFrame, name: str = "AP") -> str:
    """Say of `paired_differences`, a paragraph a baseline, how often seeds agree and would by chance."""
    paragraphs = [_describe_baseline(table, name) for table in tables if not table.empty]
    nothing = "No two arms share a scenario and a seed yet: there is no difference to show."
    return "\n\n".join(paragraphs or [nothing])


def _describe_baseline(differences: pd.DataFrame, name: str) -> str:
    n, comparisons = int(differences["n"].max()), _count(len(differences), "comparison")
    above = int((differences["difference"] > 0).sum())
    agreeing = int((differences[["n_higher", "n_lower"]].max(axis=1) == differences["n"]).sum())
    return (
        f"In {above} of {comparisons} the mean {name} lies above that of "
        f"**{_name_arm(differences['baseline'].iloc[0])}**. All seeds agree in direction in {agreeing} of "
        f"{comparisons}; with {_count(n, 'seed')}, two arms that are worth the same would do so by chance "
        f"alone in {min(1.0, 2 / 2**n):.1%} of comparisons."
    )


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
    if gain.empty:
        return f"There is {NO_VALIDATION}, so no threshold was chosen without looking at the test set."
    return (
        "Choosing the threshold on the test set lifts F1 over the threshold from the validation part by "
        f"{gain.mean():.3f} on average and by {gain.max():.3f} at most, over {_count(len(gain), 'run')}."
    )


def describe_quality(quality: pd.DataFrame) -> str:
    """Say, by the last layer of `measure_pools`, whether the distance sees defects at all."""
    last = quality.iloc[-1]
    rows = quality[quality["layer"] == last["layer"]].set_index("set")["fd_equal"]
    pools = rows.drop(index=[REAL, UNTOUCHED], errors="ignore").dropna()
    floor, untouched = (rows.get(name, float("nan")) for name in (REAL, UNTOUCHED))
    if pools.empty or pd.isna(floor) or pd.isna(untouched):
        return "No pool, or too few images for a comparison at equal numbers: no distance is read here."
    text = (
        f"By {last['fd_name']} at {last['layer']} of the side, {last['n_equal']} images on either side, two "
        f"parts of the real positives lie {format_digits(floor)} apart, untouched negatives "
        f"{format_digits(untouched)} from real positives. "
    )
    if farther := int((pools > untouched).sum()):
        return text + (
            f"Untouched negatives are nearer than {farther} of {len(pools)} pools: over a whole image this "
            "distance sees the surface before it sees the defect, and a pool that paints nothing would win."
        )
    return text + "Every pool is nearer to the real positives than untouched negatives are."


def describe_claims(claims: pd.DataFrame) -> str:
    """Say plainly, with the numbers of `judge_claims`, which claims hold: the rule, then a Markdown list."""
    lines = []
    for (claim, scenario), rows in claims.groupby(["claim", "scenario"], sort=False):
        parts = "; ".join(_describe_comparison(row) for _, row in rows.iterrows())
        verdicts = set(rows["verdict"])
        verdict = FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} else OPEN
        lines.append(f"- **{claim}**, {scenario}: **{verdict}**. {parts}.")
    return "\n".join([RULE, "", *lines])


def _describe_comparison(row: pd.Series) -> str:
    names = f"{_name_arm(row['arm'])} − {_name_arm(row['other'])}"
    printed = f"the paper's own means: {format_difference(row['printed'])}"
    if not row["n"]:
        return f"{names}: no seed has finished runs of both ({printed})"
    difference = format_difference(row["difference"], row["difference_std"])
    return f"{names}: {difference}, {row['n_agree']} of {_count(row['n'], 'seed')} agree ({printed})"
