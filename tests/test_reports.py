"""Tables and sentences: right whatever the numbers are, and never mixing ours with the papers'."""

import math
import re

import pandas as pd
import pytest

from defaug_utils.core.files import write_csv
from defaug_utils.evaluation.metrics import NO_VALIDATION
from defaug_utils.report.papers import list_missing_arms, published_results, rebuild_table
from defaug_utils.report.results import (
    METRICS,
    VALIDATION_METRICS,
    compare_spreads,
    paired_differences,
    summarise_results,
)
from defaug_utils.report.sentences import (
    describe_chance,
    describe_differences,
    describe_findings,
    describe_leaks,
    describe_optimism,
    describe_runs,
    describe_spreads,
    describe_unfinished,
)
from defaug_utils.report.tables import (
    NOTHING,
    PAPER_PROTOCOL,
    PUBLISHED,
    compare_protocols,
    format_spread,
    layout_differences,
    layout_results,
    layout_spreads,
    list_runs,
    name_head,
    name_setup,
    name_weights,
    style_table,
)


@pytest.fixture
def runs() -> pd.DataFrame:
    """Few-shot: none 0.40 and 0.50, MemSeg 0.60 and 0.80 with the same seeds; zero-shot: one run."""
    table = pd.DataFrame(
        {
            "scenario": ["zero-shot"] + ["few-shot"] * 4,
            "arm": ["memseg", "none", "none", "memseg", "memseg"],
            "n_aug": [80, 0, 0, 80, 80],
            "seed": [0, 0, 1, 0, 1],
            "ap": [0.3, 0.4, 0.5, 0.6, 0.8],
        }
    )
    table = table.assign(**{name: table["ap"] for name in METRICS if name != "ap"})
    table = table.assign(ap_low=table["ap"] - 0.1, ap_high=table["ap"] + 0.1)
    return table.assign(n_test=200, n_test_positive=20, validation_recall=0.25)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.7123, 0.0341), "0.712 ± 0.034"),
        ((0.7123, 0.0999), "0.712 ± 0.100"),
        ((0.7123, 0.1341), "0.71 ± 0.13"),
        ((0.7123, 0.0), "0.712 ± 0.000"),
        ((71.23, 13.41), "71 ± 13"),
        ((0.5, math.nan), "0.500"),
        ((0.5,), "0.500"),
        ((math.nan, math.nan), NOTHING),
    ],
)
def test_spread_is_written_without_what_is_not_there(values, text):
    assert format_spread(*values) == text


def test_layout_has_the_papers_rows_and_columns(runs):
    summary = summarise_results(runs)
    table = layout_results(summary[summary["scenario"] == "few-shot"], PAPER_PROTOCOL)
    assert list(table.columns) == ["AP", "precision", "recall", "n"]
    assert table.index.tolist() == [("no augmentation", 0), ("MemSeg", 80)]
    assert table["AP"].tolist() == ["0.450 ± 0.071", "0.70 ± 0.14"]
    printed = published_results().query("source == 'In&Out' and table == 5")
    table = layout_results(printed, PUBLISHED)
    assert table.loc[("no augmentation", 0), "AP"] == "0.747 ± 0.055"
    assert table.loc[("MixSegDec, weakly supervised", 0)].tolist() == ["0.733", NOTHING, NOTHING]


def test_what_papers_print_keeps_its_digits():
    printed = published_results().query("source == 'In&Out' and table == 1")
    assert layout_results(printed, PUBLISHED).loc[("MemSeg", 80), "precision"] == "0.733 ± 0.113"


def test_protocols_stand_side_by_side(runs):
    summary = summarise_results(runs)
    table = compare_protocols(summary[summary["scenario"] == "few-shot"])
    paper, validation = table.columns.get_level_values(0).unique()
    assert table.loc[("MemSeg", 80), (paper, "recall")] == "0.70 ± 0.14"
    assert table.loc[("MemSeg", 80), (validation, "recall")] == "0.250 ± 0.000"


def test_ours_and_the_papers_never_share_a_column(runs):
    table = rebuild_table(
        summarise_results(runs), published_results(), "In&Out", 3, "drawn surfaces, small net"
    )
    whose = table.columns.get_level_values(0)
    assert list(whose.unique()) == ["ours: drawn surfaces, small net", "published: In&Out, table 3, KSDD2"]
    ours, printed = (table[name] for name in whose.unique())
    assert ours.loc[("MemSeg", 80), "AP"] == "0.70 ± 0.14"
    assert printed.loc[("MemSeg", 80), "AP"] == "0.582 ± 0.018"
    assert (ours.loc[("DDPM", 80)] == NOTHING).all()
    methods = list(dict.fromkeys(table.index.get_level_values("method")))
    assert methods == ["MemSeg", "DDPM"]


def test_setup_names_the_data_and_the_backbone(tmp_path, runs):
    assert name_setup(runs, tmp_path) == "own data set"
    (tmp_path / "surfaces").mkdir()
    assert name_setup(runs, tmp_path) == "procedural surfaces"
    assert name_setup(runs.assign(backbone="resnet50"), tmp_path, "KSDD2") == "KSDD2, resnet50"
    told = runs.assign(backbone="resnet50", weights="microsoft/resnet-50", recipe="diag")
    assert name_setup(told, tmp_path, "KSDD2") == "KSDD2, resnet50, weights microsoft/resnet-50, recipe diag"
    for nothing in ("", math.nan):
        bare = told.assign(weights=nothing)
        assert name_setup(bare, tmp_path, "KSDD2") == "KSDD2, resnet50, random weights, recipe diag"


def test_a_caption_names_no_folder_of_somebodys_machine():
    assert name_weights("/home/anna/resnet50.safetensors") == "weights resnet50.safetensors"
    assert name_weights("models/resnet50.safetensors") == "weights models/resnet50.safetensors"


def test_setup_names_what_was_left_out(tmp_path, runs):
    rows = [("a.png", "left out"), ("b.png", "left out"), ("c.png", "read as negative")]
    changes = pd.DataFrame(rows, columns=["image", "change"]).assign(reason="named in leave_out")
    write_csv(changes, tmp_path / "data" / "changes.csv")
    assert name_setup(runs, tmp_path, "KSDD2") == "KSDD2, 2 left out, 1 read as negative"
    write_csv(changes[:0], tmp_path / "data" / "changes.csv")
    assert name_setup(runs, tmp_path, "KSDD2") == "KSDD2"


def test_tables_say_that_there_is_no_validation_part(tmp_path, runs):
    bare = runs.assign(**dict.fromkeys(VALIDATION_METRICS, math.nan))
    assert name_setup(bare, tmp_path, "KSDD2") == "KSDD2, no validation part"
    shown = {"paper_precision", "paper_recall", "validation_precision", "validation_recall"}
    listed = list_runs(bare.assign(auroc=0.5, leak=""))
    told = {name for name in listed if (listed[name] == NO_VALIDATION).all()}
    assert told == {name for name in shown if name.startswith("validation_")}
    table = compare_protocols(summarise_results(bare))
    paper, validation = table.columns.get_level_values(0).unique()
    assert (table[validation] == NO_VALIDATION).all(axis=None)
    assert table[paper].notna().all(axis=None) and not (table[paper] == NO_VALIDATION).any(axis=None)
    assert describe_optimism(bare).startswith("There is no validation part")
    assert NO_VALIDATION not in str(list_runs(runs.assign(auroc=0.5, leak="")))
    assert "no validation part" in style_table(listed, "Runs").to_html()


def test_differences_and_spreads_are_signed_and_counted(runs):
    table = layout_differences(paired_differences(runs, "none"))
    assert table.loc[("few-shot", "MemSeg", 80)].tolist() == ["+0.250 ± 0.071", "2 of 2"]
    worse = runs.assign(ap=1 - runs["ap"])
    assert layout_differences(paired_differences(worse, "none"))["difference"].item() == "−0.250 ± 0.071"
    spreads = layout_spreads(compare_spreads(runs))
    assert spreads["± test images"].tolist() == pytest.approx([0.1] * 3)


def test_styled_table_escapes_nothing_away_and_scrolls(runs):
    summary = summarise_results(runs)
    html = style_table(
        layout_results(summary[summary["scenario"] == "few-shot"], PAPER_PROTOCOL), "Ours"
    ).to_html()
    assert re.search(r"<caption>Ours</caption>", html)
    assert "overflow: auto" in html
    heads = re.findall(r"<th [^>]*>([^<]*)</th>", html)
    assert heads == ["method", "N_aug", "AP", "precision", "recall", "n"]
    assert "0.450 ± 0.071" in html
    assert html == style_table(layout_results(summary[1:], PAPER_PROTOCOL), "Ours").to_html()


def test_styled_table_of_two_sides_has_two_rows_of_heads(runs):
    both = rebuild_table(summarise_results(runs), published_results(), "In&Out", 3, "x")
    heads, body = style_table(both, "few-shot").to_html().split("<tbody>")
    assert heads.count("<tr>") == 2
    assert ">published: In&amp;Out, table 3, KSDD2<" in heads
    assert body.count("<tr>") == len(both)


def test_findings_follow_the_numbers(runs):
    full = runs[runs["scenario"] == "few-shot"].assign(scenario="full-shot")
    diag = runs[runs["arm"] == "memseg"].assign(arm="diag", ap=0.1)
    fewer = runs[runs["arm"] == "memseg"].assign(n_aug=20, ap=0.05)
    both = pd.concat([runs, full.assign(ap=full["ap"] / 2 + 0.5), diag, fewer]).assign(leak="")
    pixels = runs[1:].assign(pixel_ap=runs["ap"])
    told = describe_findings(both, pixels).replace("\N{NO-BREAK SPACE}", " ")
    gains, leaders, marking = told.splitlines()
    assert gains.startswith(
        "- **The fewer real defects are known, the more generated ones help.** At best, AP "
    )
    assert "in few-shot from 0.450 ± 0.071 to 0.70 ± 0.14 (MemSeg, 80 images) and in full-shot" in gains
    assert leaders.startswith("- **With 80 generated images, MemSeg, which has no neural network, has the ")
    assert leaders.endswith("mean AP in 3 of 3 scenarios**; with 20, in 2 of 2 scenarios.")
    assert "the best gain is larger than the spread" in marking
    assert marking.endswith("0.450 ± 0.071 without augmentation and 0.70 ± 0.14 with 80 images (MemSeg).")


def test_a_finding_that_the_runs_do_not_show_is_not_told(runs):
    even = pd.concat([runs, runs[1:].assign(scenario="full-shot")]).assign(leak="")
    assert describe_findings(even).startswith("- At best, AP changes in few-shot")
    close = runs[1:].assign(pixel_ap=[0.2, 0.6, 0.3, 0.7])
    assert "the best gain is no larger than the spread" in describe_findings(even, close)
    beaten = even.assign(arm=even["arm"].replace("memseg", "diag"))
    (only,) = describe_findings(beaten).splitlines()
    assert "DIAG, 80 images" in only
    assert describe_findings(runs[:1].assign(leak="train_positives")) == ""


def test_sentences_say_what_the_numbers_say(runs):
    over_none = paired_differences(runs, "none")
    assert "5 runs, in 2 scenarios and 2 arms, with 1 to 2 seeds" in describe_runs(runs)
    assert "200 images, of which 20 are positive" in describe_runs(runs)
    assert "recall by 0.050" in describe_runs(runs)
    text = describe_differences(over_none, paired_differences(runs, "memseg"))
    assert "In 1 of 1 comparison the mean AP is higher than that of **no augmentation**" in text
    assert "All seeds agree in direction in 1 of 1 comparison" in text
    assert "50 % of comparisons" in text  # two coins agree in half of all throws
    assert "by 0.250 on average" in describe_optimism(runs.assign(validation_f1=runs["paper_f1"] - 0.25))


def test_the_larger_doubt_is_named(runs):
    few_shot = runs[runs["scenario"] == "few-shot"]
    assert "choice of seeds is the larger uncertainty" in describe_spreads(few_shot)
    wide = few_shot.assign(ap_low=0.0, ap_high=1.0)
    assert "choice of test images is the larger uncertainty" in describe_spreads(wide)
    assert "the spread over seeds is unknown" in describe_spreads(runs.groupby("arm").head(1))


def test_sentences_without_a_comparison(runs):
    zero_shot = runs[runs["scenario"] == "zero-shot"]
    assert "no difference to show" in describe_differences(paired_differences(zero_shot, "none"))
    missing = list_missing_arms(zero_shot)
    text = describe_unfinished([f"run{number}" for number in range(14)], missing)
    assert "run11 and 2 more" in text
    assert "- **zero-shot**: the papers have DDPM, In&Out, DIAG; this run doesn't." in text
    assert "Every planned run has finished." in describe_unfinished([], missing)
    assert "Every arm in the papers" in describe_unfinished([], missing[:0])


def test_html_in_names_heads_and_captions_is_shown_and_never_obeyed():
    hostile = "<img src=x onerror=alert(1)>"
    table = pd.DataFrame({hostile: [hostile, "a & b"], "n": [1, 2]}, index=[hostile, "two"])
    pairs = table.set_axis(pd.MultiIndex.from_tuples([(hostile, "ap"), ("n", hostile)]), axis=1)
    for shown in (table, pairs, table.rename_axis(f"{hostile} 2"), table.rename_axis(columns=hostile)):
        html = style_table(shown, f"Ours {hostile}").to_html()
        assert "<img" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;" in html and "a &amp; b" in html


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("defect_type", "defect type"),
        ("train adabldm_plain", "train adabldm plain"),
        ("ap_low", "AP from"),
        ("n_aug", "N_aug"),
        ("N_aug", "N_aug"),
        ("FD-resnet10_quarter", "FD-resnet10_quarter"),
        ("_private", "_private"),
        (3, 3),
    ],
)
def test_heads_are_words(name, head):
    assert name_head(name) == head
    html = style_table(pd.DataFrame({name: [1.0]}), "A table.").to_html()
    assert re.findall(r"<th [^>]*>([^<]*)</th>", html) == [str(head)]


def test_long_texts_take_several_lines_and_numbers_one():
    table = pd.DataFrame({"path": ["images/train-10019.png"], "AP": ["0.450 ± 0.071"], "n": [2]})
    html = style_table(table, "A table.").to_html()
    wrapped = re.findall(r"td\.col(\d) \{\s*white-space: normal", html)
    assert wrapped == ["0"]


def test_a_table_is_no_place_for_formulas():
    html = style_table(pd.DataFrame({"a": ["$x$"]}), "Dollars.").to_html()
    assert "$x$" in html
    assert re.search(r'<table [^>]*class="dataframe tex2jax_ignore mathjax_ignore"', html)


def test_markup_in_names_is_text_in_sentences():
    hostile = "<b>a</b> `b` *c*"
    shown = "&#60;b&#62;a&#60;/b&#62; &#96;b&#96; &#42;c&#42;"
    rows = pd.DataFrame({"scenario": ["few-shot"], "arm": [hostile], "leak": [hostile]})
    assert describe_leaks(rows).count(shown) == 2
    assert describe_unfinished([hostile], rows).count(shown) == 2
    differences = pd.DataFrame({"n": [1], "difference": [0.1], "n_higher": [1], "n_lower": [0]})
    assert f"**{shown}**" in describe_differences(differences.assign(baseline=hostile))


def test_trainings_that_stayed_at_chance_are_named():
    runs = pd.DataFrame({"scenario": "few-shot", "arm": ["none", "memseg"], "n_aug": [0, 4], "seed": [0, 1]})
    assert describe_chance(runs) == describe_chance(runs.assign(at_chance=[False, None]))
    told = describe_chance(runs.assign(at_chance=[False, True]))
    assert "few-shot-memseg-4-seed1" in told.replace("&#45;", "-") and "none-0" not in told
