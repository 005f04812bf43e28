"""Text from data or a person: shown as it is in Markdown, in figures and in spreadsheets."""

import math
import re
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from myst_parser.config.main import MdParserConfig
from myst_parser.mdit_to_docutils.base import DocutilsRenderer
from myst_parser.parsers.mdit import create_md_parser
from test_plots import surfaces

from defaug_utils.core.decisions import DecisionLog, ImageReview, LogEntry
from defaug_utils.core.files import read_csv, write_csv
from defaug_utils.core.manifest import make_manifest, read_manifest, write_manifest
from defaug_utils.core.texts import escape_markdown, escape_mathtext, guard_cell, unguard_cell
from defaug_utils.report.curves import plot_augmentation_curves, plot_precision_recall
from defaug_utils.report.pictures import show_images

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\r\n=1", "'=1", "''=1"]
PLAIN = ["", "'", "'a'", "crack", "a=b", "1-2", " =1", "a\r=1"]
CALM = {"text", "inline", "paragraph_open", "paragraph_close", "html_inline"}
PRINTABLE = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1)
EXTENSIONS = ["amsmath", "colon_fence", "deflist", "dollarmath", "strikethrough", "substitution", "tasklist"]


@pytest.mark.parametrize("kind", ["CommonMark", "MyST", "tables"])
@given(text=PRINTABLE)
@example("<img src=x onerror=alert(1)>")
@example("[x](javascript:alert(1)) ![x](y) <http://a.b>")
@example(r"$x$ \(x\) \[x\] \begin{a}x\end{a} $$x$$")
@example("{raw}`html` {{x}} `a` **b** _c_ ~~d~~ | e | &lt; &#60; &")
@example("# a")
@example("- a")
@example("--- a")
@example("1. a")
@example("1) a")
@example("> a")
@example("+++")
@example("(a)=")
@example("% a")
def test_any_text_is_one_paragraph_of_itself(kind: str, text: str):
    parsers = {
        "CommonMark": lambda: MarkdownIt("commonmark"),
        "MyST": lambda: create_md_parser(MdParserConfig(enable_extensions=EXTENSIONS), DocutilsRenderer),
        "tables": lambda: MarkdownIt("commonmark").enable("table"),
    }
    tokens = parsers[kind]().parse(escape_markdown(text))
    children = [child for token in tokens for child in token.children or []]
    assert {token.type for token in [*tokens, *children]} <= CALM
    assert {child.content for child in children if child.type == "html_inline"} <= {"<span>", "</span>"}
    shown = "".join(child.content for child in children if child.type == "text")
    assert shown == " ".join(text.split())


def test_lines_become_one_so_that_none_begins_a_block():
    assert escape_markdown("a\n\n# b\u2028- c") == "a &#35; b - c"
    assert escape_markdown(3) == "3"


def test_common_words_stay_readable_in_the_source():
    text = "few-shot, 0.712 ± 0.034, In&Out, 50 % (α/2)"
    assert escape_markdown(text) == text.replace("(", "&#40;").replace(")", "&#41;")


def test_nothing_that_begins_a_formula_stands_beside_what_ends_it():
    """MathJax looks for formulas in the finished page, but not across elements."""
    for part in re.split(r"</?span>", escape_markdown(r"$x$ \(x\) \begin{a}\end{a}")):
        assert not re.search(r"\$.|\\.", unescape(part)), part


@given(text=st.text())
def test_a_guarded_cell_is_no_formula_and_comes_back(text: str):
    assert not guard_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert unguard_cell(guard_cell(text)) == text


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_get_an_apostrophe(text: str):
    assert guard_cell(text) == f"'{text}"
    assert text[0] == "'" or unguard_cell(text) == text, "as files written before have it"


@pytest.mark.parametrize("text", PLAIN)
def test_other_cells_stay(text: str):
    assert guard_cell(text) == unguard_cell(text) == text


def test_tables_are_written_without_formulas_and_read_back(tmp_path: Path):
    texts = [text for text in FORMULAS + PLAIN if text]
    table = pd.DataFrame({"text": texts, "number": -1.5, "count": pd.array([-1] * len(texts), "Int64")})
    table["mixed"] = [-1, None, math.nan, "=1", *range(len(texts) - 4)]
    write_csv(table, tmp_path / "table.csv")
    raw = pd.read_csv(tmp_path / "table.csv", dtype=str)
    assert not raw["text"].str.match(r"[=+\-@\t\r]").any()
    assert (raw["number"] == "-1.5").all() and (raw["count"] == "-1").all() and raw["mixed"][0] == "-1"
    read = read_csv(tmp_path / "table.csv")
    assert list(read["text"]) == texts
    assert list(read["number"]) == [-1.5] * len(texts)


def test_a_manifest_and_a_log_of_decisions_keep_formulas_as_text(tmp_path: Path):
    row = {"label": "positive", "split": "train", "origin": "diag", "prompt": "=1", "reviewer_note": "@x"}
    write_manifest(make_manifest([row | {"image": "-a/b.png"}]), tmp_path / "manifest.csv")
    assert "'-a/b.png" in (tmp_path / "manifest.csv").read_text(encoding="utf-8")
    found = read_manifest(tmp_path / "manifest.csv").iloc[0]
    assert list(found[["image", "prompt", "reviewer_note"]]) == ["-a/b.png", "=1", "@x"]
    entry = LogEntry("-a/b.png", ("", ""), ImageReview(True, "=HYPERLINK(1)"), "ann", "now")
    DecisionLog(tmp_path / "review.csv").append([entry])
    assert "'=HYPERLINK(1)" in (tmp_path / "review.csv").read_text(encoding="utf-8")
    assert DecisionLog(tmp_path / "review.csv").read_new() == [entry]
    assert read_manifest(tmp_path / "manifest.csv")["reviewer_note"][0] == "=HYPERLINK(1)"


@pytest.mark.parametrize("text", ["$^$", r"$\frac$", r"\$5 and $6$", "costs $5"])
def test_dollars_are_shown_in_figures(text: str):
    runs = pd.DataFrame({"scenario": [text], "arm": [text], "n_aug": [20], "ap": [0.5]})
    curves = plot_augmentation_curves(runs, ["ap"])
    recall = plot_precision_recall({text: ([True, False], [0.9, 0.1])})
    titles = [curves.axes[0].title, *(figure.legends[0].texts[0] for figure in (curves, recall))]
    for figure in (curves, recall):
        figure.canvas.draw()  # an unknown formula would be an error here
    for title in titles:
        assert title._preprocess_math(title.get_text()) == (title.get_text().replace(r"\$", "$"), False)
        assert escape_mathtext(text) in title.get_text()
    montage = show_images(surfaces(1), [text], columns=1)
    montage.canvas.draw()
    title = montage.axes[0].title
    assert title._preprocess_math(title.get_text())[1] is False
    assert title.get_text().replace("\n", " ") == text
