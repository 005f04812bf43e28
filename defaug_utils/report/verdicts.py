"""Sentences that answer whether generating pays, computed so that they are true whatever the numbers are."""

import pandas as pd

from defaug_utils.core.origins import AUGMENTED, EQUAL, generates_images, list_arms, takes_images
from defaug_utils.core.texts import escape_markdown
from defaug_utils.report.decision import (
    CUT_PASTE,
    FEW,
    MISSING,
    NO,
    NOT_SHOWN,
    UNDECIDED,
    YES,
    Decision,
    decide,
    find_margin,
    measure_gains,
    repeat_over_n_aug,
)
from defaug_utils.report.papers import FAILS, HOLDS, LEAST_SEEDS
from defaug_utils.report.results import label_arm, summarise_results
from defaug_utils.report.sentences import count_of
from defaug_utils.report.tables import format_difference, format_spread

ANSWERS = {
    YES: "Yes, here",
    NO: "No, not here",
    NOT_SHOWN: "Not shown here",
    UNDECIDED: "Undecided here",
    MISSING: "This run can't say",
}
JUDGED = {HOLDS: "better", FAILS: "worse", MISSING: "not run"}
ADVICE = {
    "patch_memory": "remember patches of good parts, and call defective what is far from all of them",
    "linear": "draw a line through the features of a frozen network, from the known defects",
    "none": "train on the real images alone",
    EQUAL: "train longer on the real images alone",
    AUGMENTED: "train longer on the real images alone, rotated and with other brightness each time",
    "memseg": "blend textures into good parts under random masks, as MemSeg does",
    CUT_PASTE: "cut the known defects out and paste them elsewhere on good parts",
}
NO_EQUAL = f"This run has no arm “{label_arm(EQUAL)}”, so the gain by generated images alone is unknown."


def _name(arm: str) -> str:
    return escape_markdown(label_arm(arm))


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _bind(text: str) -> str:
    """A number with its spread, which no line break parts."""
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def describe_best(runs: pd.DataFrame, scenario: str = FEW) -> str:
    """The arm and N_aug with the highest mean AP of a scenario, and what no augmentation has."""
    counted = repeat_over_n_aug(runs)
    counted = counted[counted["scenario"] == scenario]
    if counted.empty:
        return f"This run has no finished run in {scenario}."
    summary = summarise_results(counted, ["ap"])
    best = summary.loc[summary["ap"].idxmax()]
    amount = f", {best['n_aug']} images" if takes_images(best["arm"]) else ""
    told = (
        f"**The highest mean AP in {scenario} is that of {_name(best['arm'])}{amount}**: {_write_mean(best)}"
    )
    plain = summary[summary["arm"] == "none"]
    without = f"; without augmentation it is {_write_mean(plain.iloc[0])}" if len(plain) else ""
    return f"{told}{without} (mean ± standard deviation, {count_of(best['n'], 'seed')})."


def _write_mean(row: pd.Series) -> str:
    return _bind(format_spread(row["ap"], row["ap_std"]))


def describe_decision(runs: pd.DataFrame, scenario: str = FEW) -> str:
    """Whether a diffusion model pays, by `decide`, and what to do instead if that is not shown."""
    decision = decide(runs, scenario)
    question = "Does a diffusion model pay?"
    if not decision.diffusion:
        return f"**{question} {ANSWERS[MISSING]}**: it has no finished arm with one in {scenario}."
    compared = _describe_comparisons(decision)
    missing = decision.comparisons.loc[decision.comparisons["verdict"] == MISSING, "other"]
    lacking = f" The run lacks: {'; '.join(map(_name_other, missing))}." if len(missing) else ""
    text = f"**{question} {ANSWERS[decision.verdict]}.** {compared}{lacking} {_explain(decision)}"
    return text.strip() if decision.verdict == YES else f"{text.strip()} {_advise(decision)}".strip()


def _name_other(arm: str) -> str:
    return _name(arm) if arm else "an arm that generates nothing, such as the memory of good patches"


def _describe_comparisons(decision: Decision) -> str:
    rows = decision.comparisons[decision.comparisons["verdict"] != MISSING]
    best = f"Of the arms that use a diffusion model, {_name(decision.diffusion)} has the highest mean AP."
    if rows.empty:
        return best
    parts = [
        f"{_bind(format_difference(row.difference, find_margin(row.difference_std, row.n)))} against "
        f"{_name(row.other)} ({JUDGED.get(row.verdict, 'undecided')})"
        for row in rows.itertuples()
    ]
    least, most = rows["n"].min(), rows["n"].max()
    seeds = ("" if least == most else f"{least} to ") + count_of(most, "seed")
    return f"{best} It changes AP by {'; '.join(parts)}: means over {seeds} ± two standard errors."


def _explain(decision: Decision) -> str:
    if decision.verdict == UNDECIDED:
        return f"Fewer than {LEAST_SEEDS} seeds decide nothing."
    if decision.verdict == NOT_SHOWN:
        return "It is not better than all of them by more than two standard errors."
    return ""


def _advise(decision: Decision) -> str:
    """The best arm without a diffusion model, as something to do."""
    arm = decision.alternative
    if not arm:
        return ""
    what, begin = ADVICE.get(arm, f"use {_name(arm)}"), "What to do instead"
    begin = "Until that is decided" if decision.verdict in (UNDECIDED, MISSING) else begin
    return f"{begin}: {what}, which has the highest mean AP of all arms without a diffusion model."


def describe_limits(runs: pd.DataFrame, times: pd.DataFrame) -> str:
    """When not to generate, as a list: gains within noise, all defects known, and pools that fail checks."""
    told = [_tell_noise(runs), _tell_full(runs), _tell_checks(times)]
    return "\n".join(f"- {sentence}" for sentence in told if sentence)


def _list_generating(gains: pd.DataFrame, scenario: str) -> pd.DataFrame:
    is_generating = gains["arm"].map(generates_images).astype(bool)
    return gains[is_generating & (gains["scenario"] == scenario)]


def _tell_noise(runs: pd.DataFrame) -> str:
    gains = _list_generating(measure_gains(runs, EQUAL), FEW)
    if gains.empty:
        return f"**If the gain is within the noise.** {NO_EQUAL}"
    if gains["n"].max() < LEAST_SEEDS:
        return (
            f"**If the gain is within the noise.** Undecided here: fewer than {LEAST_SEEDS} seeds have run."
        )
    decided = gains[gains["n"] >= LEAST_SEEDS]
    within = decided[decided["gain"] <= decided["margin"]]
    names = [f"{_name(row.arm)} ({row.n_aug} images)" for row in within.itertuples()]
    which = f": {_join(names)}" if names else ""
    return (
        f"**If the gain is within the noise.** In {FEW}, the gain over equally long training is not larger "
        f"than two standard errors for {len(within)} of {len(decided)} pairs of arm and N_aug{which}."
    )


def _tell_full(runs: pd.DataFrame) -> str:
    gains = measure_gains(runs, EQUAL)
    best = {scenario: _list_generating(gains, scenario) for scenario in (FEW, "full-shot")}
    if any(rows.empty for rows in best.values()):
        return ""
    rows = {scenario: table.loc[table["gain"].astype(float).idxmax()] for scenario, table in best.items()}
    parts = [
        f"{_bind(format_difference(row['gain'], row['margin']))} in {scenario} ({_name(row['arm'])}, "
        f"{row['n_aug']} images)"
        for scenario, row in rows.items()
    ]
    return (
        f"**If you have many real defects.** The largest gain over equally long training is {_join(parts)}."
    )


def _tell_checks(times: pd.DataFrame) -> str:
    if times.empty:
        return ""
    counts = times.groupby("origin", sort=False)[["failed", "images"]].sum().query("failed > 0")
    order = [origin for origin in list_arms() if origin in counts.index]
    parts = [
        f"{counts.loc[name, 'failed']} of {counts.loc[name, 'images']} by {_name(name)}" for name in order
    ]
    failed = (
        f"images that still failed after the last attempt: {_join(parts)}" if parts else "every image passed"
    )
    return f"**If most images fail their checks.** Here, {failed}."
