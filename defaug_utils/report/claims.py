"""Do the claims of In&Out hold in these runs? Judged within seeds, by a rule that is stated."""

import math
from typing import NamedTuple

import pandas as pd

from defaug_utils.core.runs import SCENARIOS
from defaug_utils.protocol.mixing import is_marked
from defaug_utils.report.reports import format_difference, label_method
from defaug_utils.report.results import published_results

STANDARD_ERRORS = 2  # a mean difference beyond so many of its standard errors is told apart from 0
HOLDS, FAILS, OPEN = "holds", "does not hold", "can't be told"
RULE = (
    "The rule: for each seed the difference is taken between two arms with the same N_aug, and averaged over "
    "the N_aug that both have; then its mean over the seeds and its standard deviation s. Beyond "
    f"{STANDARD_ERRORS} standard errors s / √n a claim **{HOLDS}** or, with the other sign, **{FAILS}**; "
    f"within them, and with fewer than two seeds, it **{OPEN}**. A claim of several differences holds when "
    "all hold, and fails when one fails. Runs with a leak don't count."
)


class Claim(NamedTuple):
    """One claim of the paper: an arm is above others in a metric.

    Attributes:
        text: in words.
        metric: column of the runs.
        printed: column of the papers' numbers.
        arm: the one that is claimed to be higher.
        others: the ones that it is compared with.
        scenarios: where it is claimed.
    """

    text: str
    metric: str
    printed: str
    arm: str
    others: tuple[str, ...]
    scenarios: tuple[str, ...]


IN_AND_OUT_CLAIMS = (  # Capogrosso et al. 2024, on KSDD2
    Claim("DDPM has the higher recall", "paper_recall", "recall", "ddpm", ("memseg",), SCENARIOS),
    Claim("MemSeg has the higher precision", "paper_precision", "precision", "memseg", ("ddpm",), SCENARIOS),
    Claim("In&Out has the best AP", "ap", "ap", "in_and_out", ("memseg", "ddpm"), SCENARIOS[:1]),
)


def judge_claims(runs: pd.DataFrame) -> pd.DataFrame:
    """Judge every claim of In&Out by the differences within seeds, see `RULE`.

    Args:
        runs: as `results.gather_results` returns it.

    Returns:
        One row for each claim, scenario and arm compared with: claim, scenario, arm, other, metric, n
        (seeds that both arms have), difference (mean over seeds), difference_std (NaN below two seeds),
        n_agree (seeds in which the arm is higher), verdict (`HOLDS`, `FAILS` or `OPEN`), and printed: the
        same difference of the paper's own means, NaN where it prints none.
    """
    counted = runs[~runs["leak"].map(is_marked)] if "leak" in runs else runs
    rows = [
        {"claim": claim.text, "scenario": scenario, "arm": claim.arm, "other": other, "metric": claim.metric}
        | _judge(_difference_by_seed(counted, scenario, claim.arm, other, claim.metric))
        | {"printed": _printed_difference(claim, scenario, other)}
        for claim in IN_AND_OUT_CLAIMS
        for scenario in claim.scenarios
        for other in claim.others
    ]
    return pd.DataFrame(rows)


def _difference_by_seed(runs: pd.DataFrame, scenario: str, arm: str, other: str, metric: str) -> pd.Series:
    """Arm minus other for every seed that both have, averaged over the N_aug that both have."""
    chosen = runs[runs["scenario"] == scenario]
    values = chosen.pivot_table(index=["seed", "n_aug"], columns="arm", values=metric)
    if not {arm, other} <= set(values):
        return pd.Series(dtype=float)
    return (values[arm] - values[other]).dropna().groupby("seed").mean()


def _judge(differences: pd.Series) -> dict:
    n, mean, deviation = len(differences), differences.mean(), differences.std(ddof=1)
    is_told = n > 1 and abs(mean) > STANDARD_ERRORS * deviation / math.sqrt(n)
    verdict = (HOLDS if mean > 0 else FAILS) if is_told else OPEN
    numbers = {"n": n, "difference": mean, "difference_std": deviation}
    return numbers | {"n_agree": int((differences > 0).sum()), "verdict": verdict}


def _printed_difference(claim: Claim, scenario: str, other: str) -> float:
    """The claim's difference in the paper's own tables, averaged over N_aug."""
    printed = published_results().query("source == 'In&Out' and scenario == @scenario")
    means = printed.pivot_table(index="n_aug", columns="arm", values=claim.printed)
    return float((means[claim.arm] - means[other]).mean())


def describe_claims(claims: pd.DataFrame) -> str:
    """Say plainly, with the numbers, which claims hold: the rule, then a Markdown list.

    Args:
        claims: as `judge_claims` returns it.
    """
    lines = []
    for (claim, scenario), rows in claims.groupby(["claim", "scenario"], sort=False):
        parts = "; ".join(_describe_comparison(row) for _, row in rows.iterrows())
        lines.append(f"- **{claim}**, {scenario}: **{_join_verdicts(rows['verdict'])}**. {parts}.")
    return "\n".join([RULE, "", *lines])


def _join_verdicts(verdicts: pd.Series) -> str:
    if FAILS in set(verdicts):
        return FAILS
    return HOLDS if set(verdicts) == {HOLDS} else OPEN


def _describe_comparison(row: pd.Series) -> str:
    names = f"{label_method(row['arm'])} − {label_method(row['other'])}"
    printed = f"the paper's own means: {format_difference(row['printed'])}"
    if not row["n"]:
        return f"{names}: no seed has finished runs of both ({printed})"
    difference = format_difference(row["difference"], row["difference_std"])
    seeds = f"{row['n_agree']} of {row['n']} seed{'' if row['n'] == 1 else 's'} agree"
    return f"{names}: {difference}, {seeds} ({printed})"
