"""Sentences that conclusions depend on, computed so that they are true whatever the numbers are."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pandas as pd

from defaug_utils.core.origins import SCENARIOS, generates_images, run_name, takes_images
from defaug_utils.core.pools import find_unrestored
from defaug_utils.core.texts import escape_markdown
from defaug_utils.evaluation.metrics import NO_VALIDATION
from defaug_utils.evaluation.pool_quality import REAL, UNTOUCHED
from defaug_utils.protocol.mixing import UNKNOWN, is_marked, mark_label
from defaug_utils.report.papers import FAILS, HOLDS, LEAST_SEEDS, OPEN, STANDARD_ERRORS
from defaug_utils.report.results import (
    GROUP,
    compare_spreads,
    label_arm,
    measure_optimism,
    summarise_results,
)
from defaug_utils.report.tables import format_difference, format_digits

MAX_LISTED = 12  # names of runs in a sentence
RULE = (
    "The rule: for each seed, take the difference of two arms at the same N_aug, averaged over all N_aug "
    "that both have; then compute its mean and standard deviation s over the seeds. If the mean exceeds "
    f"{STANDARD_ERRORS} standard errors s / √n, the claim **{HOLDS}** or, with the opposite sign, "
    f"**{FAILS}**. Otherwise, and with fewer than {LEAST_SEEDS} seeds, it **{OPEN}**. A claim of several "
    "differences holds if all hold, and fails if one fails. Runs with a leak are not counted."
)


def count_of(number: int, noun: str) -> str:
    """A number with its noun: "1 seed", "4 seeds"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _name_arm(arm: str) -> str:
    return escape_markdown(label_arm(arm))


def describe_runs(runs: pd.DataFrame) -> str:
    """The amount of results: runs, arms, seeds, test images."""
    seeds = runs.groupby(["scenario", "arm", "n_aug"])["seed"].nunique()
    several = "" if seeds.min() == seeds.max() else f"{seeds.min()} to "
    first = runs.iloc[0]
    counts = [count_of(runs[name].nunique(), name) for name in ("scenario", "arm")]
    return (
        f"Finished: {count_of(len(runs), 'run')}, in {' and '.join(counts)}, with {several}"
        f"{count_of(seeds.max(), 'seed')} each. The test set has {first['n_test']} images, of which "
        f"{first['n_test_positive']} are positive: finding one positive more or less changes recall by "
        f"{1 / max(1, first['n_test_positive']):.3f}."
    )


def describe_unfinished(unfinished: Sequence[str], missing: pd.DataFrame) -> str:
    """Name unfinished runs (`list_unfinished`) and the papers' arms without a run."""
    runs = ", ".join(map(escape_markdown, unfinished[:MAX_LISTED]))
    more = f" and {len(unfinished) - MAX_LISTED} more" if len(unfinished) > MAX_LISTED else ""
    text = f"Not finished yet: {runs}{more}." if unfinished else "Every planned run has finished."
    lines = [
        f"- **{scenario}**: the papers have {', '.join(map(_name_arm, rows['arm']))}; this run doesn't."
        for scenario, rows in missing.groupby("scenario", sort=False)
    ]
    return "\n".join([text, "", *(lines or ["- Every arm in the papers has a finished run."])])


def describe_findings(runs: pd.DataFrame, pixels: pd.DataFrame | None = None) -> str:
    """What generated images gain, which method leads, and what they are worth for marking pixels, as a list.

    Runs with a leak are not counted. A finding that the runs can't show is left out.

    Args:
        runs: from `gather_results`.
        pixels: from `read_pixel_runs`, or None.
    """
    counted = runs[~runs["leak"].map(is_marked)]
    if counted.empty:
        return ""
    summary = summarise_results(counted, ["ap"])
    generated = summary[summary["arm"].map(generates_images)]
    findings = [_tell_gains(summary, generated), _tell_leaders(generated), _tell_pixels(pixels)]
    return "\n".join(f"- {finding}" for finding in findings if finding)


def _tell_gains(summary: pd.DataFrame, generated: pd.DataFrame) -> str:
    """The best arm of each scenario that also has runs without augmentation."""
    gains, parts = [], []
    for scenario in SCENARIOS:
        plain = summary[(summary["scenario"] == scenario) & (summary["arm"] == "none")]
        arms = generated[generated["scenario"] == scenario]
        if len(plain) and len(arms):
            before, best = plain.iloc[0], arms.loc[arms["ap"].idxmax()]
            gains.append(best["ap"] - before["ap"])
            change = f"from {_write_mean(before, 'ap')} to {_write_mean(best, 'ap')}"
            parts.append(f"in {scenario} {change} ({_name_arm(best['arm'])}, {best['n_aug']} images)")
    is_falling = len(gains) > 1 and all(first > second for first, second in pairwise(gains))
    headline = "The fewer real defects are known, the more generated ones help."
    told = f"At best, AP changes {' and '.join(parts)}."
    return f"**{headline}** {told}" if is_falling else told if parts else ""


def _tell_leaders(generated: pd.DataFrame) -> str:
    """In how many scenarios MemSeg leads, with the largest and the smallest number of images."""
    if "memseg" not in set(generated["arm"]):
        return ""
    counts = {}
    for number in sorted(generated["n_aug"].unique(), reverse=True):
        arms = generated[generated["n_aug"] == number].set_index("arm")
        leaders = arms.groupby("scenario")["ap"].idxmax()
        counts[number] = f"{(leaders == 'memseg').sum()} of {count_of(len(leaders), 'scenario')}"
    (most, led), *further = counts.items()
    told = (
        f"With {most} generated images, MemSeg, which has no neural network, has the highest mean AP in {led}"
    )
    return f"**{told}**" + "".join(f"; with {number}, in {led}" for number, led in further[-1:]) + "."


def _tell_pixels(pixels: pd.DataFrame | None) -> str:
    """The best arm of the detectors of defect pixels, and whether its gain is larger than the spread."""
    if pixels is None:
        return ""
    summary = summarise_results(pixels, ["pixel_ap"])
    plain, arms = summary[summary["arm"] == "none"], summary[summary["arm"].map(takes_images)]
    if plain.empty or arms.empty:
        return ""
    before, best = plain.iloc[0], arms.loc[arms["pixel_ap"].idxmax()]
    gain, spread = best["pixel_ap"] - before["pixel_ap"], max(before["pixel_ap_std"], best["pixel_ap_std"])
    size = "larger" if gain > spread else "no larger"
    return (
        f"**For marking defect pixels, the best gain is {size} than the spread over seeds.** Pixel AP is "
        f"{_write_mean(before, 'pixel_ap')} without augmentation and {_write_mean(best, 'pixel_ap')} with "
        f"{best['n_aug']} images ({_name_arm(best['arm'])})."
    )


def _write_mean(row: pd.Series, metric: str) -> str:
    return format_digits(row[metric], row[f"{metric}_std"]).replace(
        " ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
    )


def describe_leaks(runs: pd.DataFrame) -> str:
    """Name the arms whose runs used real defects that their scenario must not know."""
    marked = runs[runs["leak"].map(is_marked)]
    parts = [
        f"{mark_label(_name_arm(arm), leak)} in {scenario} ({count_of(len(rows), 'run')}, masks: "
        f"{escape_markdown(leak)})"
        for (scenario, arm, leak), rows in marked.groupby(["scenario", "arm", "leak"], sort=False)
    ]
    text = "No finished run is known to have used real defects that its scenario must not know."
    if parts:
        text = (
            f"**Leaks:** {'; '.join(parts)}. These masks reveal where real defects are and how large, "
            "which is unknown in that scenario: don't compare them with other arms there."
        )
    if unknown := (runs["leak"] == UNKNOWN).sum():
        text += f" The training set of {count_of(unknown, 'run')} is missing, so leaks there are unknown."
    return text


def describe_unrestored(training_sets: Iterable[pd.DataFrame]) -> str:
    """Name the origins whose images are the whole of a model's output; empty if there are none."""
    found = {origin for rows in training_sets for origin in rows.loc[find_unrestored(rows), "origin"]}
    if not found:
        return ""
    names = ", ".join(_name_arm(origin) for origin in sorted(found))
    return (
        f" Images of {names} are the decoder's whole output (`paste_back` off): they differ from their good "
        "images outside the mask, too, and a detector can learn that trace."
    )


def describe_chance(runs: pd.DataFrame) -> str:
    """Name the runs whose training learned nothing (`stayed_at_chance`)."""
    stuck = runs[runs["at_chance"].eq(True)] if "at_chance" in runs else runs[:0]
    if stuck.empty:
        return "Every training learned to separate its own training images."
    rows = stuck[[*GROUP, "seed"]].itertuples(index=False)
    names = ", ".join(escape_markdown(run_name(*row)) for row in rows)
    return f"**At chance:** {names} learned nothing. Their numbers are included in the means below."


def describe_differences(*tables: pd.DataFrame, name: str = "AP") -> str:
    """Describe `paired_differences`, one paragraph per baseline: how often seeds agree, and by chance."""
    paragraphs = [_describe_baseline(table, name) for table in tables if not table.empty]
    nothing = "No two arms share a scenario and a seed yet, so there is no difference to show."
    return "\n\n".join(paragraphs or [nothing])


def _describe_baseline(differences: pd.DataFrame, name: str) -> str:
    n, comparisons = int(differences["n"].max()), count_of(len(differences), "comparison")
    above = int((differences["difference"] > 0).sum())
    agreeing = int((differences[["n_higher", "n_lower"]].max(axis=1) == differences["n"]).sum())
    return (
        f"In {above} of {comparisons} the mean {name} is higher than that of "
        f"**{_name_arm(differences['baseline'].iloc[0])}**. All seeds agree in direction in {agreeing} of "
        f"{comparisons}; with {count_of(n, 'seed')}, two equally good arms would do so by chance "
        f"alone in {100 * min(1.0, 2 / 2**n):.2g} % of comparisons."
    )


def describe_spreads(runs: pd.DataFrame) -> str:
    """Compare the uncertainty from few test images with that from few seeds."""
    spreads = compare_spreads(runs)
    width, deviation = spreads["half_width"].mean(), spreads["ap_std"].mean()
    text = f"Other test images would change a run's AP by about ± {width:.3f} (bootstrap)"
    if pd.isna(deviation):
        return f"{text}; with one seed each, the spread over seeds is unknown."
    which = "test images" if width > 1.96 * deviation else "seeds"
    return (
        f"{text}, another training seed by about ± {1.96 * deviation:.3f} (1.96 standard "
        f"deviations): here the choice of {which} is the larger uncertainty. All arms share the test images, "
        "so part of the first uncertainty cancels in differences between arms; the second does not."
    )


def describe_optimism(runs: pd.DataFrame) -> str:
    """How much F1 the papers' protocol gains by choosing the threshold on the test set."""
    gain = measure_optimism(runs)
    if gain.empty:
        return f"There is {NO_VALIDATION}, so every threshold was chosen on the test set."
    return (
        "Compared with a threshold from the validation part, choosing it on the test set raises F1 by "
        f"{gain.mean():.3f} on average and by {gain.max():.3f} at most, over {count_of(len(gain), 'run')}."
    )


def describe_quality(quality: pd.DataFrame) -> str:
    """Say, by the last layer of `measure_pools`, whether the distance reacts to defects at all."""
    last = quality.iloc[-1]
    rows = quality[quality["layer"] == last["layer"]].set_index("set")["fd_equal"]
    pools = rows.drop(index=[REAL, UNTOUCHED], errors="ignore").dropna()
    floor, untouched = (rows.get(name, float("nan")) for name in (REAL, UNTOUCHED))
    if pools.empty or pd.isna(floor) or pd.isna(untouched):
        return "There is no pool, or too few images for a comparison at equal numbers."
    text = (
        f"By {last['fd_name']} at {last['layer']} of the side, with {last['n_equal']} images on each side, "
        f"two parts of the real positives are {format_digits(floor)} apart, and untouched negatives "
        f"{format_digits(untouched)} from real positives. "
    )
    if farther := int((pools > untouched).sum()):
        return text + (
            f"Untouched negatives are closer than {farther} of {len(pools)} pools: over a whole image, this "
            "distance reacts to the surface more than to the defect: a pool that paints nothing would win."
        )
    return text + "Every pool is closer to the real positives than untouched negatives are."


def describe_claims(claims: pd.DataFrame) -> str:
    """Say which claims hold, with the numbers of `judge_claims`: the rule, then a Markdown list."""
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
    return f"{names}: {difference}, {row['n_agree']} of {count_of(row['n'], 'seed')} agree ({printed})"
