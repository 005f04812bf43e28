"""The manifest: what is written is what is read, and what breaks the contract is named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defaug_utils.core.manifest import (
    ADDED_FILE,
    COLUMNS,
    LABELS,
    SPLITS,
    ManifestError,
    add_row,
    check_sources,
    fold_decisions,
    image_seed,
    is_inside,
    make_manifest,
    read_manifest,
    rebase_manifest,
    stamp_manifest,
    validate_manifest,
    write_manifest,
)
from defaug_utils.core.origins import ORIGINS, REAL

IN_ONE_FOLDER = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
PRINTABLE = st.characters(exclude_categories=("C",))
WORDS = st.text(PRINTABLE, max_size=12) | st.sampled_from(
    ["NA", "nan", "None", "null", "1", "1e5", "true", 'a "quoted", word', "two\nlines", "ä ö ü", " padded "]
)
NAMES = st.text(PRINTABLE.filter(lambda letter: letter not in "/\\:"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@st.composite
def manifests(draw: st.DrawFn) -> pd.DataFrame:
    """Valid manifests with anything that a method may put into the free columns."""
    images = draw(st.lists(NAMES, max_size=6, unique=True))
    rows = [
        {
            "image": f"images/{name}.png",
            "mask": draw(st.sampled_from(["", f"masks/{name}.png"])),
            "label": draw(st.sampled_from(LABELS)),
            "split": draw(st.sampled_from(SPLITS)),
            "origin": draw(st.sampled_from([REAL, *ORIGINS])),
            **{
                column: draw(WORDS)
                for column in ("category", "defect_type", "source_image", "prompt", "reviewer_note")
            },
            "seed": draw(st.none() | st.integers(0, 2**63 - 1)),
            "accepted": draw(st.none() | st.booleans()),
        }
        for name in images
    ]
    return make_manifest(rows)


def one_row(**changes: object) -> dict:
    return {"image": "a.png", "label": "negative", "split": "train", "origin": "real", **changes}


@IN_ONE_FOLDER
@given(manifest=manifests())
def test_what_is_written_is_what_is_read(tmp_path: Path, manifest: pd.DataFrame):
    path = tmp_path / "manifest.csv"
    write_manifest(manifest, path)
    first = path.read_bytes()
    read = read_manifest(path)
    pd.testing.assert_frame_equal(read, manifest)
    write_manifest(read, path)
    assert path.read_bytes() == first


def test_seeds_of_63_bits_survive_a_column_with_gaps(tmp_path: Path):
    seeds = [2**63 - 1, None, 2**53 + 1, 0]
    rows = [one_row(image=f"{index}.png", seed=seed) for index, seed in enumerate(seeds)]
    write_manifest(make_manifest(rows), tmp_path / "manifest.csv")
    read = read_manifest(tmp_path / "manifest.csv")["seed"]
    assert [None if pd.isna(seed) else int(seed) for seed in read] == seeds


def test_an_empty_manifest_has_all_columns(tmp_path: Path):
    write_manifest(make_manifest([]), tmp_path / "manifest.csv")
    read = read_manifest(tmp_path / "manifest.csv")
    assert len(read) == 0
    assert tuple(read.columns) == COLUMNS


def test_further_columns_are_kept_with_their_types(tmp_path: Path):
    rows = [one_row(opacity=0.25, cells=3, stage="blend"), one_row(image="b.png", cells=4)]
    manifest = make_manifest(rows)
    write_manifest(manifest, tmp_path / "manifest.csv")
    read = read_manifest(tmp_path / "manifest.csv")
    assert list(read.columns) == [*COLUMNS, "opacity", "cells", "stage"]
    assert read["cells"].tolist() == [3, 4]
    assert read["opacity"].dtype == float
    assert read.loc[0, "stage"] == "blend"
    assert pd.isna(read.loc[1, "stage"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("true", True),
        ("False", False),
        ("TRUE", True),
        (True, True),
        (np.False_, False),
        ("", None),
        (None, None),
        (pd.NA, None),
        (float("nan"), None),
    ],
)
def test_accepted_is_true_false_or_not_reviewed(written: object, meant: bool | None):
    (accepted,) = make_manifest([one_row(accepted=written)])["accepted"]
    assert accepted is pd.NA if meant is None else accepted == meant


@pytest.mark.parametrize("written", ["yes", "1", "0.0", "keep", "treu"])
def test_accepted_knows_no_other_word(written: str):
    with pytest.raises(ManifestError, match=rf"column accepted: '{written}'.*true or false"):
        make_manifest([one_row(accepted=written)])


@pytest.mark.parametrize("written", ["abc", "1.5", "-1", str(2**63), -1, 2**63])
def test_a_seed_is_a_whole_number_of_63_bits(written: object):
    with pytest.raises(ManifestError, match=r"column seed: '?-?[\dabc.]+'? is not a whole number"):
        make_manifest([one_row(seed=written)])


def test_broken_cells_are_told_with_file_and_row_all_at_once(tmp_path: Path):
    path = tmp_path / "manifest.csv"
    write_manifest(make_manifest([one_row(), one_row(image="b.png")]), path)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[0, "accepted"], table.loc[1, "seed"] = "maybe", "x"
    table.to_csv(path, index=False)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    for told in ("manifest.csv", "2 problem", "row 0: column accepted: 'maybe'", "row 1: column seed: 'x'"):
        assert told in str(caught.value)


def test_a_missing_manifest_names_what_makes_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no manifest at .*manifest\.csv: run the notebook"):
        read_manifest(tmp_path / "manifest.csv")


@pytest.mark.parametrize("missing", COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, missing: str):
    path = tmp_path / "manifest.csv"
    make_manifest([one_row()]).drop(columns=missing).to_csv(path, index=False)
    with pytest.raises(ManifestError, match=rf"manifest\.csv.*\n.*column {missing} is missing"):
        read_manifest(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"image,mask\n1,2,3\n1,2,3,4,5\n", b"\x89PNG\r\n\x1a\n\xff\xfe", b"i\xe4mage,mask\n\xf6,"],
    ids=["empty", "blank", "ragged", "binary", "latin-1"],
)
def test_a_file_that_is_no_table_is_told_with_its_name(tmp_path: Path, content: bytes):
    path = tmp_path / "manifest.csv"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"manifest .*manifest\.csv"):
        read_manifest(path)


OUTSIDE = (
    "../x.png",
    "/etc/x",
    "C:\\x",
    "c:/x.png",
    "a/../../b",
    "a/..",
    "..",
    "\\\\server\\x.png",
    "a\\..\\..\\b.png",
    "\\x.png",
)


@pytest.mark.parametrize("escape", OUTSIDE)
@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, column: str, escape: str):
    assert not is_inside(escape)
    manifest = make_manifest([one_row(**{column: escape})])
    with pytest.raises(ManifestError, match=rf"row 0: {column} .* leaves the manifest's folder"):
        write_manifest(manifest, tmp_path / "manifest.csv")
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(ManifestError, match="leaves the manifest's folder"):
        read_manifest(tmp_path / "manifest.csv", check_files=True)


@pytest.mark.parametrize(
    "path", ["x.png", "a/b/c.png", "a..b/x.png", "...png", "größe/10 (copy).png", "a/./b"]
)
def test_a_path_inside_the_folder_is_taken(path: str):
    assert is_inside(path)


@given(st.lists(NAMES | st.sampled_from(["..", "."]), min_size=1, max_size=5))
def test_inside_means_what_the_file_system_means(parts: list[str]):
    relative = "/".join(parts)
    folder = Path("/base/folder")
    if is_inside(relative):
        assert Path("/base/folder", relative).resolve().is_relative_to(folder)
    else:
        assert ".." in parts


def test_every_broken_row_is_in_one_error(tmp_path: Path):
    rows = [
        one_row(),
        one_row(label="defect"),
        one_row(image="b.png", split="dev"),
        one_row(image="", origin="gan"),
    ]
    with pytest.raises(ManifestError) as caught:
        write_manifest(make_manifest(rows), tmp_path / "manifest.csv")
    told = str(caught.value)
    assert "5 problem(s)" in told
    for expected in (
        "row 1: label 'defect' is not one of negative, positive",
        "row 2: split 'dev' is not one of train, val, test",
        "row 3: origin 'gan' is not one of real",
        "image 'a.png' is listed more than once",
        "row 3: no image",
    ):
        assert expected in told
    assert not (tmp_path / "manifest.csv").exists()


def test_problems_are_named_by_row_in_a_table_put_together_from_others():
    twice = pd.concat([make_manifest([one_row()]), make_manifest([one_row(image="b.png", split="dev")])])
    with pytest.raises(ManifestError, match=r"row 0: split 'dev' is not one of"):
        validate_manifest(twice, "manifest.csv")


def test_missing_files_are_all_named_when_asked_for(tmp_path: Path):
    rows = [
        one_row(image="there ü (copy).png", mask="not_there.png", label="positive"),
        one_row(image="gone.png"),
    ]
    (tmp_path / "there ü (copy).png").write_bytes(b"")
    write_manifest(make_manifest(rows), tmp_path / "manifest.csv")
    assert len(read_manifest(tmp_path / "manifest.csv")) == 2
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "manifest.csv", check_files=True)
    assert "row 0: mask 'not_there.png' does not exist" in str(caught.value)
    assert "row 1: image 'gone.png' does not exist" in str(caught.value)
    assert "there ü" not in str(caught.value)


def dataset() -> pd.DataFrame:
    return make_manifest(one_row(image=f"images/{split}.png", split=split) for split in SPLITS)


def generated(*sources: str) -> pd.DataFrame:
    return make_manifest(
        one_row(image=f"images/{index}.png", origin="memseg", label="positive", source_image=source)
        for index, source in enumerate(sources)
    )


def test_train_images_may_be_sources_and_none_need_be_named():
    check_sources(generated("images/train.png", "", "images/train.png"), dataset())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("images/test.png", "is test"),
        ("images/val.png", "is val"),
        ("images/other.png", "is unknown to the data set"),
    ],
)
def test_no_other_image_may_be_a_source(source: str, found: str):
    with pytest.raises(ManifestError, match=rf"images/1\.png: its source {source} {found}, only train"):
        check_sources(generated("images/train.png", source), dataset())


def test_every_forbidden_source_is_listed():
    with pytest.raises(ManifestError, match="2 problem"):
        check_sources(generated("images/test.png", "images/train.png", "images/val.png"), dataset())


def test_rebased_paths_reach_the_same_files(tmp_path: Path):
    folder = tmp_path / "run" / "memseg"
    manifest = generated("images/train.png", "images/train.png")
    manifest.loc[0, "mask"] = "masks/0.png"
    rebased = rebase_manifest(manifest, folder, tmp_path / "run")
    assert rebased["image"].tolist() == ["memseg/images/0.png", "memseg/images/1.png"]
    assert rebased["mask"].tolist() == ["memseg/masks/0.png", ""]
    assert rebased["source_image"].tolist() == manifest["source_image"].tolist()
    assert manifest["image"].tolist() == ["images/0.png", "images/1.png"], "the given table is left alone"
    pd.testing.assert_frame_equal(rebase_manifest(manifest, folder, folder), manifest)


def test_a_folder_that_is_a_link_to_another_disk_stays_inside_its_run(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(tmp_path / "elsewhere")
    rebased = rebase_manifest(generated("images/train.png"), tmp_path / "run" / "data", tmp_path / "run")
    assert rebased["image"].tolist() == ["data/images/0.png"]


def test_a_manifest_cannot_move_below_its_files(tmp_path: Path):
    with pytest.raises(ValueError, match="subpath"):
        rebase_manifest(generated("images/train.png"), tmp_path, tmp_path / "run")


def test_image_seeds_are_known_values_and_distinct():
    state = np.random.SeedSequence([7, 3]).generate_state(1, np.uint64)[0]
    assert image_seed(7, 3) == int(state) // 2
    seeds = {image_seed(pool_seed, index) for pool_seed in range(20) for index in range(100)}
    assert len(seeds) == 2000
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63
    np.random.default_rng(max(seeds))


def test_a_path_longer_than_any_system_takes_does_not_exist(tmp_path: Path):
    row = {"image": "a" * 5000, "label": "negative", "split": "train", "origin": "real"}
    write_manifest(make_manifest([row]), tmp_path / "manifest.csv")
    with pytest.raises(ManifestError, match="does not exist"):
        read_manifest(tmp_path / "manifest.csv", check_files=True)


def test_rows_that_are_longer_than_the_head_are_refused(tmp_path: Path):
    """Pandas would take the first column for the index and shift all others."""
    row = {"image": "a.png", "label": "negative", "split": "train", "origin": "real"}
    write_manifest(make_manifest([row]), tmp_path / "manifest.csv")
    head, line = (tmp_path / "manifest.csv").read_text().splitlines()
    (tmp_path / "manifest.csv").write_text(f"{head}\nx,{line}\n")
    with pytest.raises(ManifestError, match="more cells"):
        read_manifest(tmp_path / "manifest.csv")


def test_a_row_is_added_without_touching_the_others(tmp_path: Path):
    path, stamps = tmp_path / "manifest.csv", set()
    for name in "abc":
        add_row(one_row(image=f"{name}.png", seed=7, note="ä", accepted=None), path)
        stamps.add(stamp_manifest(path))
        if name == "a":
            first = path.read_bytes()
    assert path.read_bytes() == first and len(stamps) == 3
    assert len((tmp_path / ADDED_FILE).read_bytes().splitlines()) == 2
    shown = read_manifest(path)
    assert list(shown["image"]) == ["a.png", "b.png", "c.png"] and set(shown["note"]) == {"ä"}
    write_manifest(shown, path)  # killed before the journal was removed
    pd.testing.assert_frame_equal(read_manifest(path), shown)
    pd.testing.assert_frame_equal(fold_decisions(path), shown)
    assert not (tmp_path / ADDED_FILE).exists()
    pd.testing.assert_frame_equal(read_manifest(path), shown)


def test_a_damaged_line_of_added_rows_is_passed_over(tmp_path: Path):
    path, journal = tmp_path / "manifest.csv", tmp_path / ADDED_FILE
    for name in "ab":
        add_row(one_row(image=f"{name}.png"), path)
    journal.write_bytes(journal.read_bytes() + b'[1]\nnull\n{"image": "to')
    add_row(one_row(image="c.png"), path)
    assert list(read_manifest(path)["image"]) == ["a.png", "b.png", "c.png"]


def test_a_broken_row_is_not_added_and_one_of_a_journal_is_named(tmp_path: Path):
    path = tmp_path / "manifest.csv"
    add_row(one_row(), path)
    with pytest.raises(ManifestError, match="label 'good' is not one of"):
        add_row(one_row(image="b.png", label="good"), path)
    assert not (tmp_path / ADDED_FILE).exists()
    (tmp_path / ADDED_FILE).write_text('{"image": "b.png"}\n')
    with pytest.raises(ManifestError, match="row 1: label '' is not one of"):
        read_manifest(path)


def test_rows_added_to_a_manifest_that_is_gone_do_not_come_back(tmp_path: Path):
    path = tmp_path / "manifest.csv"
    for name in "ab":
        add_row(one_row(image=f"{name}.png"), path)
    path.unlink()
    assert stamp_manifest(path) == ()
    add_row(one_row(image="c.png"), path)
    assert list(read_manifest(path)["image"]) == ["c.png"]
