"""Whatever stands in a file, the readers refuse it with its name or read it; found by hypothesis."""

import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from defaug_utils.core.manifest import COLUMNS, ManifestError, read_manifest
from defaug_utils.core.yaml_files import read_yaml
from defaug_utils.data.download import unpack_archive
from defaug_utils.data.layouts import DatasetError, list_files

FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
HEAD = ",".join(COLUMNS)
WORDS = (
    *("train", "test", "good", "positive", "negative", "masks", "images", "ground_truth", "ok", "ko"),
    *(
        "10000.png",
        "10000_GT.png",
        "a.png",
        "a_mask.png",
        "a.bmp",
        "á.png",
        "a\u0301.png",
        ".a.png",
        "surfaces.csv",
    ),
)
NAMES = st.sampled_from(WORDS)


@FUZZ
@example(b"")
@example(f"{HEAD}\n".encode() + b"\0")
@given(
    st.one_of(st.binary(), st.text().map(str.encode), st.text().map(lambda rows: f"{HEAD}\n{rows}".encode()))
)
def test_any_bytes_are_a_manifest_or_refused(tmp_path: Path, content: bytes):
    (tmp_path / "manifest.csv").write_bytes(content)
    try:
        assert len(read_manifest(tmp_path / "manifest.csv")) >= 0
    except ManifestError as error:
        assert "manifest.csv" in str(error)


@FUZZ
@example("a: 2024-13-45")
@example("a: " + "9" * 5000)
@example("&a [*a]")
@example("!!python/name:os.system")
@example("=")
@given(st.one_of(st.text(), st.text("ab0123:-[]{}&*!?|>\"' \n\t#%@.<~", max_size=60)))
def test_any_text_is_yaml_or_refused(tmp_path: Path, text: str):
    path = tmp_path / "profile.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_yaml(path, "profile")
    except ValueError as error:
        assert "profile.yaml" in str(error)


@FUZZ
@given(st.data())
def test_an_archive_with_any_bytes_changed_is_unpacked_whole_or_refused(tmp_path: Path, data: st.DataObject):
    path, folder = tmp_path / "set.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", b"one" * 30)
        archive.writestr("a/2.png", b"two")
    content = bytearray(path.read_bytes())
    for place, value in data.draw(
        st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255))
    ).items():
        content[place] = value
    path.write_bytes(content)
    try:
        unpack_archive(path, folder)
    except ValueError as error:
        assert "set.zip" in str(error)
        assert [found.name for found in tmp_path.iterdir()] == ["set.zip"]
    else:
        assert {found.name for found in tmp_path.iterdir()} == {"set.zip", "out"}
        for found in sorted(folder.rglob("*"), reverse=True):
            found.rmdir() if found.is_dir() else found.unlink()
        folder.rmdir()


@FUZZ
@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=8))
def test_any_tree_of_files_is_listed_or_refused(tmp_path_factory: pytest.TempPathFactory, tree: list):
    root = tmp_path_factory.mktemp("set")
    for names in tree:
        path = root.joinpath(*names)
        if not any(parent.is_file() for parent in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"image,defect_type\n")
    try:
        listing = list_files(root)
    except DatasetError as error:
        assert str(root) in str(error)
    else:
        assert listing.rows or listing.problems
        assert all((root / row["image"]).is_file() for row in listing.rows)
