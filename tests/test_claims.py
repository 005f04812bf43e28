"""The claims of In&Out, judged on made-up runs whose answer is known, and the papers' tables rebuilt."""

import itertools

import pandas as pd
import pytest

from defaug_utils.report.papers import (
    FAILS,
    HOLDS,
    IN_AND_OUT_CLAIMS,
    OPEN,
    judge_claims,
    list_tables,
    published_results,
    rebuild_table,
)
from defaug_utils.report.results import METRICS, label_arm, summarise_results
from defaug_utils.report.sentences import RULE, describe_claims
from defaug_utils.report.tables import NOTHING

RECALL, PRECISION, AP = (claim.text for claim in IN_AND_OUT_CLAIMS)


def make_runs(values: dict[str, list[float]], scenario: str = "zero-shot", n_aug: int = 80) -> pd.DataFrame:
    """Runs of some arms, one value a seed, for every metric the same."""
    rows = [
        {"scenario": scenario, "arm": arm, "n_aug": n_aug, "seed": seed, "leak": ""}
        | dict.fromkeys(METRICS, value)
        for arm, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]
    return pd.DataFrame(rows)


def verdicts(runs: pd.DataFrame, claim: str, scenario: str = "zero-shot") -> list[str]:
    claims = judge_claims(runs)
    return claims.loc[(claims["claim"] == claim) & (claims["scenario"] == scenario), "verdict"].tolist()


def test_a_difference_is_judged_by_hand():
    runs = make_runs({"memseg": [0.5, 0.5, 0.6], "ddpm": [0.6, 0.7, 0.9]})
    row = judge_claims(runs).query("claim == @RECALL and scenario == 'zero-shot'").iloc[0]
    assert row["difference"] == pytest.approx(0.2)  # of 0.1, 0.2 and 0.3
    assert row["difference_std"] == pytest.approx(0.1)
    assert (row["n"], row["n_agree"], row["verdict"]) == (3, 3, HOLDS)  # 0.2 > 2 · 0.1 / √3
    assert verdicts(runs, PRECISION) == [FAILS], "the same numbers contradict the other claim"


@pytest.mark.parametrize(
    ("ddpm", "verdict"),
    [
        ([0.6, 0.4, 0.6, 0.4], OPEN),
        ([0.5, 0.5, 0.5, 0.5], OPEN),
        ([0.6, 0.6, 0.6, 0.6], HOLDS),
        ([0.4, 0.3, 0.4, 0.3], FAILS),
        ([0.9], OPEN),
    ],
    ids=["noise", "equal", "constant", "opposite", "one seed"],
)
def test_the_verdict_needs_two_standard_errors(ddpm, verdict):
    runs = make_runs({"memseg": [0.5] * 4, "ddpm": ddpm})
    assert verdicts(runs, RECALL) == [verdict]


def test_each_seed_counts_once_whatever_the_number_of_n_aug():
    values = {"memseg": [0.5, 0.5], "ddpm": [0.6, 0.8]}
    runs = pd.concat([make_runs(values, n_aug=n_aug) for n_aug in (40, 80, 120)])
    runs = pd.concat([runs, make_runs({"memseg": [0.0, 0.0]}, n_aug=100)])
    row = judge_claims(runs).query("claim == @RECALL and scenario == 'zero-shot'").iloc[0]
    assert (row["n"], row["difference"]) == (2, pytest.approx(0.2))


def test_in_and_out_must_be_above_both():
    best = make_runs({"memseg": [0.5, 0.51, 0.5], "ddpm": [0.6, 0.61, 0.6], "in_and_out": [0.7, 0.72, 0.7]})
    assert verdicts(best, AP) == [HOLDS, HOLDS]
    assert f"**{AP}**, zero-shot: **{HOLDS}**" in describe_claims(judge_claims(best))
    between = make_runs(
        {"memseg": [0.5, 0.51, 0.5], "ddpm": [0.8, 0.81, 0.8], "in_and_out": [0.7, 0.72, 0.7]}
    )
    assert verdicts(between, AP) == [HOLDS, FAILS]
    assert f"**{AP}**, zero-shot: **{FAILS}**" in describe_claims(judge_claims(between))
    assert verdicts(best[best["arm"] != "ddpm"], AP) == [HOLDS, OPEN]
    text = describe_claims(judge_claims(best[best["arm"] != "ddpm"]))
    assert f"**{AP}**, zero-shot: **{OPEN}**" in text
    two = make_runs({"memseg": [0.5, 0.51], "ddpm": [0.6, 0.61], "in_and_out": [0.7, 0.72]})
    assert verdicts(two, AP) == [OPEN, OPEN], "two seeds decide nothing"


def test_missing_arms_are_said_and_leaks_do_not_count():
    none = make_runs({"diag": [0.5, 0.6]})
    assert set(judge_claims(none)["verdict"]) == {OPEN}
    text = describe_claims(judge_claims(none))
    assert text.startswith(RULE)
    assert "no seed has finished runs of both" in text
    runs = make_runs({"memseg": [0.5, 0.5, 0.5], "ddpm": [0.6, 0.7, 0.9]})
    runs.loc[runs["arm"] == "ddpm", "leak"] = "train_positives"
    assert verdicts(runs, RECALL) == [OPEN]


def test_the_papers_own_difference_stands_beside():
    printed = judge_claims(make_runs({"diag": [0.5]}))
    row = printed.query("claim == @RECALL and scenario == 'zero-shot'").iloc[0]
    expected = (0.695 - 0.436 + 0.714 - 0.432 + 0.591 - 0.470) / 3  # tables 1 of In&Out, row by row
    assert row["printed"] == pytest.approx(expected)


def test_every_table_of_the_papers_is_rebuilt_with_all_its_numbers():
    arms = ("none", "memseg", "ddpm", "in_and_out", "diag", "adabldm")
    parts = [
        make_runs({arm: [0.25, 0.75]}, scenario, 0 if arm == "none" else 80)
        for scenario, arm in itertools.product(("zero-shot", "few-shot", "full-shot"), arms)
    ]
    summary, published = summarise_results(pd.concat(parts)), published_results()
    tables = list_tables(published)
    assert [(source, number) for source, number, _ in tables] == [
        *(("In&Out", number) for number in range(1, 7)),
        *(("DIAG", number) for number in (1, 2)),
    ]
    for source, number, scenario in tables:
        table = rebuild_table(summary, published, source, number, "x")
        ours, printed = (table[name] for name in table.columns.get_level_values(0).unique())
        rows = published.query("source == @source and table == @number")
        if source == "DIAG":  # with its rivals, as In&Out printed them
            rivals = "source == 'In&Out' and scenario == @scenario and arm in ('memseg', 'in_and_out')"
            rows = pd.concat([rows, published.query(rivals)])
        shown = printed[printed["AP"] != NOTHING]
        assert sorted(float(cell.split()[0]) for cell in shown["AP"].str.replace("†", "")) == sorted(
            rows["ap"]
        )
        assert set(rows["scenario"]) == {scenario}
        methods = set(table.index.get_level_values("method"))
        assert ({"DIAG", "AdaBLDM"} <= methods) == ("in_and_out" in set(rows["arm"]))
        if source == "DIAG":
            named = {label_arm(arm) for arm in summary.query("scenario == @scenario")["arm"]}
            assert set(ours[ours["AP"] != NOTHING].index.get_level_values("method")) == named
        assert ours.loc[ours["AP"] != NOTHING, "AP"].eq("0.50 ± 0.35").all()
        assert len(ours[ours["AP"] != NOTHING]) >= 1
    with pytest.raises(ValueError, match="table 7"):
        rebuild_table(summary, published, "In&Out", 7, "x")
