"""The mark of a leak goes from a generated row to every table, sentence and figure of the results."""

from html import unescape

import pandas as pd
import pytest

from defaug_utils.core.files import write_json
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.protocol.mixing import (
    LEAK_MARK,
    LEAK_NOTE,
    UNKNOWN,
    find_leaking_scenarios,
    find_leaks,
    join_leaks,
)
from defaug_utils.report.curves import plot_augmentation_curves
from defaug_utils.report.papers import published_results, rebuild_table
from defaug_utils.report.results import (
    METRICS,
    compare_spreads,
    gather_results,
    paired_differences,
    summarise_results,
)
from defaug_utils.report.sentences import describe_leaks, describe_unrestored
from defaug_utils.report.tables import (
    PAPER_PROTOCOL,
    RUN_COLUMNS,
    layout_differences,
    layout_results,
    layout_spreads,
    style_table,
)


def make_rows(*mask_sources: str) -> pd.DataFrame:
    return make_manifest(
        {
            "image": f"{index}.png",
            "label": "positive",
            "split": "train",
            "origin": "diag",
            "mask_source": mask_source,
        }
        for index, mask_source in enumerate(mask_sources)
    )


def write_run(folder, name: str, *mask_sources: str, ap: float = 0.5, **further: object) -> None:
    values = dict.fromkeys((*METRICS, "ap_low", "ap_high"), 0.5) | {
        "ap": ap,
        "n_test": 9,
        "n_test_positive": 3,
    }
    write_json(folder / "classifier" / name / "metrics.json", values | further)
    if mask_sources:
        write_manifest(make_rows(*mask_sources), folder / f"train-{name}.csv")


@pytest.fixture
def runs(tmp_path) -> pd.DataFrame:
    """Zero-shot: MemSeg clean, DIAG leaking in one of two seeds; full-shot: its masks are known there."""
    for seed in (0, 1):
        write_run(tmp_path, f"zero-shot-memseg-40-seed{seed}", "", "perlin", ap=0.4)
    write_run(tmp_path, "zero-shot-diag-40-seed0", "", "train_positives", "procedural", ap=0.6)
    write_run(tmp_path, "zero-shot-diag-40-seed1", "procedural", ap=0.7)
    write_run(tmp_path, "full-shot-diag-40-seed0", "train_positives", ap=0.8)
    return gather_results(tmp_path)


def test_a_leak_is_named_by_its_source_and_only_where_it_is_one():
    rows = make_rows("", "perlin", "train_positives")
    assert find_leaks(rows, "zero-shot") == find_leaks(rows, "few-shot") == "train_positives"
    assert find_leaks(rows, "full-shot") == find_leaks(make_rows("drawn", "procedural"), "zero-shot") == ""
    assert find_leaking_scenarios(rows) == ["zero-shot", "few-shot"]
    assert join_leaks(pd.Series(["", "train_positives", UNKNOWN, "train_positives"])) == "train_positives"


def test_runs_carry_what_their_training_sets_say(runs, tmp_path):
    assert "leak" in RUN_COLUMNS
    leaks = runs.set_index(["scenario", "arm", "seed"])["leak"].to_dict()
    marked = {key for key, leak in leaks.items() if leak}
    assert marked == {("zero-shot", "diag", 0)}
    assert leaks["zero-shot", "diag", 0] == "train_positives"


def test_what_the_run_itself_recorded_counts_before_todays_training_set(tmp_path):
    write_run(tmp_path, "zero-shot-diag-40-seed0", "procedural", leak="train_positives")
    write_run(tmp_path, "zero-shot-diag-40-seed1")
    runs = gather_results(tmp_path)
    assert runs["leak"].tolist() == ["train_positives", UNKNOWN]
    assert "The training set of 1 run is missing" in describe_leaks(runs)


def test_one_leaking_run_marks_its_row_in_every_table(runs):
    summary = summarise_results(runs)
    zero_shot = layout_results(summary[summary["scenario"] == "zero-shot"], PAPER_PROTOCOL)
    assert zero_shot.index.get_level_values("method").tolist() == ["MemSeg", f"DIAG {LEAK_MARK}"]
    full_shot = layout_results(summary[summary["scenario"] == "full-shot"], PAPER_PROTOCOL)
    assert full_shot.index.get_level_values("method").tolist() == ["DIAG"]
    for table in (
        layout_differences(paired_differences(runs, "memseg")),
        layout_spreads(compare_spreads(runs)),
    ):
        assert ("zero-shot", f"DIAG {LEAK_MARK}", 40) in table.index
        assert f"{LEAK_NOTE}</caption>" in style_table(table, "Ours.").to_html()
    assert LEAK_MARK not in style_table(full_shot, "Ours.").to_html()


def test_beside_the_papers_each_side_has_its_own_mark(runs):
    published = published_results()
    leaking = published[published["leak"] != ""]
    assert set(leaking[["source", "scenario", "arm"]].itertuples(index=False, name=None)) == {
        ("DIAG", "zero-shot", "diag")
    }
    both = rebuild_table(summarise_results(runs), published, "DIAG", 1, "ours")
    real = summarise_results(runs.assign(arm=runs["arm"].replace("diag", "diag_real_masks")))
    named = rebuild_table(real, published, "DIAG", 1, "ours").iloc[:, 0]
    assert named[("DIAG, masks of real defects", 40)] == f"0.650 ± 0.071 {LEAK_MARK}"
    ours, theirs = (both[side] for side in both.columns.get_level_values(0).unique())
    assert ours.loc[("DIAG", 40), "AP"] == f"0.650 ± 0.071 {LEAK_MARK}"
    assert theirs.loc[("DIAG", 80), "AP"] == f"0.769 {LEAK_MARK}"
    clean = rebuild_table(summarise_results(runs.assign(leak="")), published, "DIAG", 1, "ours")
    assert clean[clean.columns.levels[0][0]].loc[("DIAG", 40), "AP"] == "0.650 ± 0.071"


def test_sentences_and_figures_carry_the_mark(runs):
    told = unescape(describe_leaks(runs))
    assert "**Leaks:** DIAG † in zero-shot (1 run, masks: train_positives)" in told
    (legend,) = plot_augmentation_curves(runs, ["ap"]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["MemSeg", f"DIAG {LEAK_MARK}"]


def test_images_that_are_a_models_whole_output_are_named():
    rows = make_rows("few_shot", "few_shot")
    assert describe_unrestored([rows, rows.assign(paste_back="")]) == ""
    told = describe_unrestored([rows, rows.assign(origin="adabldm", paste_back=[False, None])])
    assert told.startswith(" Images of AdaBLDM are the decoder's whole output (`paste_back` off)")


def test_clean_runs_are_not_marked(runs):
    clean = runs[runs["arm"] == "memseg"]
    assert describe_leaks(clean).startswith("No finished run is known")
