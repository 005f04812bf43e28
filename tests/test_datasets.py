"""Every layout becomes the same manifest, and every bad file is named."""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import draw_part, save, write_btad, write_folder, write_ksdd2, write_mvtec
from PIL import Image

from defaug_utils.core.images import read_mask
from defaug_utils.core.manifest import make_manifest, validate_manifest
from defaug_utils.data import datasets
from defaug_utils.data.datasets import (
    DatasetWarning,
    choose_positives,
    draw_split,
    draw_validation,
    load_dataset,
    summarise_dataset,
)
from defaug_utils.data.layouts import DatasetError


def count(manifest: pd.DataFrame) -> dict:
    return manifest.groupby(["split", "label"]).size().to_dict()


def test_ksdd2(tmp_path):
    write_ksdd2(tmp_path, train=(6, 2), test=(3, 1))
    (tmp_path / "split_weakly_0.pyb").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    manifest = load_dataset(tmp_path)
    assert count(manifest) == {
        ("train", "negative"): 6,
        ("train", "positive"): 2,
        ("test", "negative"): 3,
        ("test", "positive"): 1,
    }
    first = manifest.iloc[0]
    assert (first["image"], first["mask"]) == ("train/10000.png", "train/10000_GT.png")
    assert (first["origin"], first["category"], first["defect_type"]) == ("real", "", "")
    assert (first["width"], first["height"]) == (23, 63)
    assert manifest.set_index("image").loc["train/10007.png", "defect_pixels"] == 12
    validate_manifest(manifest, tmp_path / "manifest.csv", check_files=True)


def test_ksdd2_layout_with_a_table_of_defect_types(tmp_path):
    write_ksdd2(tmp_path, train=(6, 2), test=(3, 1))
    table = (
        "image,defect_type,severity\ntrain/10006.png,crack,0.5\ntrain/10000.png,stain,\ntest/20003.png,NA,1"
    )
    (tmp_path / "surfaces.csv").write_text(table)
    types = load_dataset(tmp_path).set_index("image")["defect_type"]
    assert types["train/10006.png"] == "crack" and types["test/20003.png"] == "NA"
    assert types["train/10007.png"] == "" and types["train/10000.png"] == ""  # the latter is negative
    (tmp_path / "surfaces.csv").write_text("file,type\n")
    with pytest.raises(DatasetError, match="lacks the columns image and defect_type"):
        load_dataset(tmp_path)


def test_mvtec_category_and_root_of_categories(tmp_path):
    for category in ("grid", "wood"):
        write_mvtec(tmp_path / category, types=("bent", "glue"), train=5, per_type=2)
    (tmp_path / "license.txt").write_text("CC BY-NC-SA 4.0")
    both, one = load_dataset(tmp_path), load_dataset(tmp_path / "grid")
    assert sorted(both["category"].unique()) == ["grid", "wood"] and set(one["category"]) == {"grid"}
    assert count(one) == {("train", "negative"): 5, ("test", "negative"): 2, ("test", "positive"): 4}
    bent = one[one["defect_type"] == "bent"].iloc[0]
    assert (bent["image"], bent["mask"]) == ("test/bent/000.png", "ground_truth/bent/000_mask.png")
    assert set(one.loc[one["label"] == "negative", "defect_type"]) == {""}
    chosen = load_dataset(tmp_path, category="wood")
    assert len(chosen) == len(one) and chosen["image"].str.startswith("wood/").all()


def test_defective_training_images_in_mvtec_are_skipped_and_named(tmp_path):
    write_mvtec(tmp_path / "grid")
    save(tmp_path / "grid/train/bent/000.png", draw_part(0)[0])
    with pytest.warns(DatasetWarning, match=r"train/bent/000\.png"):
        assert count(load_dataset(tmp_path / "grid"))["train", "negative"] == 5


def test_btad_with_its_mixed_suffixes(tmp_path):
    write_btad(tmp_path)
    manifest = load_dataset(tmp_path)
    assert manifest.groupby("category").size().to_dict() == {"01": 6, "02": 6, "03": 6}
    assert count(manifest) == {("train", "negative"): 9, ("test", "negative"): 3, ("test", "positive"): 6}
    positives = manifest[manifest["label"] == "positive"].set_index("image")
    assert positives.loc["01/test/ko/0000.bmp", "mask"] == "01/ground_truth/ko/0000.png"
    assert positives.loc["03/test/ko/0000.bmp", "mask"] == "03/ground_truth/ko/0000.bmp"


def test_folder_with_spaces_and_umlauts(tmp_path):
    write_folder(tmp_path, splits=("train", "test"))
    manifest = load_dataset(tmp_path)
    assert count(manifest) == {
        (split, label): n for split in ("train", "test") for label, n in (("negative", 4), ("positive", 2))
    }
    positive = manifest[manifest["label"] == "positive"].iloc[0]
    assert positive["image"] == "train/positive/Riß/Prüfteil 0.png"
    assert positive["mask"] == "train/masks/Riß/Prüfteil 0.png"
    assert positive["defect_type"] == "Riß"


def test_folder_where_the_mask_decides(tmp_path):
    for index in range(4):
        image_u8, mask = draw_part(index, is_positive=index == 3)
        save(tmp_path / "images" / f"{index}.jpg", image_u8)
        save(tmp_path / "masks" / f"{index}_mask.png", mask)
    labels = load_dataset(tmp_path, test_share=0).set_index("image")["label"]
    assert list(labels) == ["negative"] * 3 + ["positive"] and labels["images/3.jpg"] == "positive"


def test_image_and_mask_named_in_two_unicode_forms_are_partners(tmp_path):
    write_folder(tmp_path, splits=("train",), positives=1)
    masks = tmp_path / "train/masks/Riß"
    (masks / "Prüfteil 0.png").rename(masks / "Pru\u0308fteil 0.png")  # as macOS writes it
    assert count(load_dataset(tmp_path, test_share=0))["train", "positive"] == 1


def test_folder_without_test_part_gets_one_by_seed(tmp_path):
    write_folder(tmp_path, splits=("",), negatives=20, positives=10)
    manifest = load_dataset(tmp_path, test_share=0.3, seed=1)
    assert count(manifest) == {
        ("train", "negative"): 14,
        ("train", "positive"): 7,
        ("test", "negative"): 6,
        ("test", "positive"): 3,
    }
    pd.testing.assert_frame_equal(manifest, load_dataset(tmp_path, test_share=0.3, seed=1))
    other = load_dataset(tmp_path, test_share=0.3, seed=2)
    assert set(other[other["split"] == "test"]["image"]) != set(
        manifest[manifest["split"] == "test"]["image"]
    )


def test_copies_and_other_junk_are_skipped_with_one_warning(tmp_path):
    write_ksdd2(tmp_path)
    junk = ("10001 (copy).png", "10001_GT (copy).png", "10001_gt.png", "Thumbs.db", "._10001.png")
    for name in junk:
        shutil.copy(tmp_path / "train/10001.png", tmp_path / "train" / name)
    (tmp_path / "test/more").mkdir()
    shutil.copy(tmp_path / "test/20000.png", tmp_path / "test/more/20099.png")
    with pytest.warns(DatasetWarning) as notes:
        manifest = load_dataset(tmp_path)
    assert len(notes) == 1 and "skipped 6 file(s)" in str(notes[0].message)
    assert all(f"train/{name}" in str(notes[0].message) for name in junk)
    assert len(manifest) == 12


def test_every_offending_file_is_in_one_error(tmp_path):
    write_ksdd2(tmp_path, train=(9, 1))
    train = tmp_path / "train"
    (train / "10000_GT.png").unlink()
    (train / "10001.png").unlink()
    save(train / "10002_GT.png", np.zeros((63, 22), bool))
    whole = (train / "10003.png").read_bytes()
    (train / "10003.png").write_bytes(whole[: len(whole) // 2])
    (train / "10004_GT.png").write_bytes(b"")
    shutil.copy(train / "10005.png", tmp_path / "test/10005.png")
    shutil.copy(train / "10005_GT.png", tmp_path / "test/10005_GT.png")
    shutil.copy(train / "10006.png", train / "010006.png")
    (train / "10007.png").unlink()
    (train / "10007.png").symlink_to("nowhere")
    with pytest.raises(DatasetError) as error:
        load_dataset(tmp_path)
    message = str(error.value)
    for expected in (
        "8 problem(s)",
        "train/10000.png: image without mask",
        "train/10001_GT.png: mask without image",
        "train/10002_GT.png: is 22 × 63 pixels, its image is 23 × 63",
        "10003.png: not a readable image",
        "10004_GT.png: not a readable image",
        "test/10005.png: has the same id as train/10005.png",
        "train/10006.png: has the same id as train/010006.png",
        "10007.png: not a readable image",
    ):
        assert expected in message


def test_folder_problems(tmp_path):
    write_folder(tmp_path, splits=("",), positives=5)
    riss = Path("Riß")
    (tmp_path / "masks" / riss / "Prüfteil 0.png").unlink()
    (tmp_path / "positive" / riss / "Prüfteil 1.png").unlink()
    save(tmp_path / "masks" / riss / "Prüfteil 2.png", np.zeros((63, 23), bool))
    save(tmp_path / "positive" / riss / "Prüfteil 3.jpg", draw_part(1)[0])
    save(tmp_path / "images" / riss / "Prüfteil 4.png", draw_part(1)[0])
    with pytest.raises(DatasetError) as error:
        load_dataset(tmp_path)
    for expected in (
        "positive/Riß/Prüfteil 0.png: image without mask",
        "masks/Riß/Prüfteil 1.png: mask without image",
        "masks/Riß/Prüfteil 2.png: has no pixel above 0",
        "positive/Riß/Prüfteil 3.png: has the same id as positive/Riß/Prüfteil 3.jpg",
        "images/Riß/Prüfteil 4.png: is also in positive",
    ):
        assert expected in str(error.value)


def test_masks_in_jpeg_are_told_together(tmp_path):
    write_folder(tmp_path, splits=("",), positives=3)
    for number, suffix in enumerate(("jpg", "jpeg")):
        mask = tmp_path / f"masks/Riß/Prüfteil {number}.png"
        Image.open(mask).save(mask.with_suffix(f".{suffix}"))
        mask.unlink()
    with pytest.raises(DatasetError, match="2 problem") as error:
        load_dataset(tmp_path)
    for name in ("masks/Riß/Prüfteil 0.jpg", "masks/Riß/Prüfteil 1.jpeg"):
        assert f"{name}: is a JPEG file" in str(error.value)


def test_missing_file_and_empty_roots(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data set at .*nowhere"):
        load_dataset(tmp_path / "nowhere")
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match="is a file, expected a folder: unpack it"):
        load_dataset(tmp_path / "set.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty is empty"):
        load_dataset(tmp_path / "empty")
    for split in ("train", "test"):
        (tmp_path / "hollow" / split).mkdir(parents=True)
    with pytest.raises(DatasetError, match="has no known layout"):
        load_dataset(tmp_path / "hollow")
    with pytest.raises(DatasetError, match="hollow contains no images in layout ksdd2"):
        load_dataset(tmp_path / "hollow", layout="ksdd2")
    write_ksdd2(tmp_path / "half", test=(0, 0))
    (tmp_path / "half/test").mkdir()
    with pytest.raises(DatasetError, match="test: contains no images"):
        load_dataset(tmp_path / "half")


@pytest.mark.parametrize("refused", ["", "train"])
def test_unreadable_folders(tmp_path, monkeypatch, refused):
    write_ksdd2(tmp_path)
    scandir, listdir = os.scandir, os.listdir

    def guard(call):
        def guarded(path="."):
            if Path(path) == tmp_path / refused:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path)

        return guarded

    monkeypatch.setattr(os, "scandir", guard(scandir))
    monkeypatch.setattr(os, "listdir", guard(listdir))
    with pytest.raises(DatasetError, match=rf"{refused} can't be read \(Permission denied\)"):
        load_dataset(tmp_path, layout="ksdd2")


def test_unknown_layout_says_what_was_looked_for_and_found(tmp_path):
    write_ksdd2(tmp_path / "set/KolektorSDD2")
    with pytest.raises(DatasetError) as error:
        load_dataset(tmp_path / "set")
    assert "train/10000.png" in str(error.value) and "Found: KolektorSDD2/" in str(error.value)
    assert f"Did you mean {tmp_path / 'set/KolektorSDD2'}?" in str(error.value)
    with pytest.raises(DatasetError, match="layout 'coco' is not one of auto, ksdd2, mvtec, btad, folder"):
        load_dataset(tmp_path, layout="coco")


def test_category_that_is_not_there(tmp_path):
    write_mvtec(tmp_path / "mvtec/grid")
    with pytest.raises(DatasetError, match="no category 'gird' in layout mvtec; it has grid"):
        load_dataset(tmp_path / "mvtec", category="gird")
    write_ksdd2(tmp_path / "ksdd2")
    with pytest.raises(DatasetError, match="which has no categories"):
        load_dataset(tmp_path / "ksdd2", category="grid")


def test_missing_test_part(tmp_path):
    write_ksdd2(tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(DatasetError, match="test: no such folder"):
        load_dataset(tmp_path)


def test_leaks_and_inverted_masks_are_told(tmp_path):
    write_ksdd2(tmp_path, train=(4, 2), test=(3, 1))
    shutil.copy(tmp_path / "train/10000.png", tmp_path / "test/20000.png")
    for path in tmp_path.rglob("*_GT.png"):
        save(path, ~read_mask(path))
    with pytest.warns(DatasetWarning) as notes:
        load_dataset(tmp_path)
    messages = [str(note.message) for note in notes]
    assert len(messages) == 2
    assert "in more than one split" in messages[0] and "train/10000.png = test/20000.png" in messages[0]
    assert "Are they inverted" in messages[1]


def test_progress_counts_every_image(tmp_path):
    write_ksdd2(tmp_path)
    calls = []
    manifest = load_dataset(tmp_path, on_image=calls.append)
    assert calls == [1] * len(manifest)


def toy_manifest(negatives: int, positives: int) -> pd.DataFrame:
    rows = [("negative", "")] * negatives + [("positive", f"type {i % 3}") for i in range(positives)]
    return make_manifest(
        {"image": f"{i}.png", "label": label, "defect_type": kind, "split": "train", "origin": "real"}
        for i, (label, kind) in enumerate(rows)
    )


@settings(max_examples=15)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(0, 0.99), st.integers(0, 9))
def test_validation_is_stratified(negatives, positives, share, seed):
    manifest = toy_manifest(negatives, positives)
    drawn = draw_validation(manifest, share, seed)
    for label, total in (("negative", negatives), ("positive", positives)):
        part = drawn[drawn["label"] == label]
        taken = int((part["split"] == "val").sum())
        if share == 0 or total < 2:
            assert taken == 0
        else:
            assert 1 <= taken <= total - 1
            assert abs(taken - total * share) <= 1
        if label == "positive":  # defect types differ by one image at most from an even draw
            for _, same_type in part.groupby("defect_type"):
                expected = len(same_type) * taken / total
                assert abs((same_type["split"] == "val").sum() - expected) < 1 + 1e-9
    pd.testing.assert_frame_equal(drawn.drop(columns="split"), manifest.drop(columns="split"))


def test_validation_depends_on_the_seed_and_not_on_the_order_of_rows():
    manifest = toy_manifest(50, 20)
    drawn = draw_validation(manifest, 0.2, 3)
    shuffled = draw_validation(manifest.sample(frac=1, random_state=0), 0.2, 3)
    pd.testing.assert_frame_equal(drawn, shuffled.sort_index())
    assert not drawn["split"].equals(draw_validation(manifest, 0.2, 4)["split"])


def test_validation_leaves_test_and_an_own_validation_part_alone():
    manifest = toy_manifest(10, 4)
    manifest.loc[:4, "split"] = "test"
    assert list(draw_validation(manifest, 0.5, 0)["split"][:5]) == ["test"] * 5
    once = draw_validation(manifest, 0.3, 0)
    pd.testing.assert_frame_equal(draw_validation(once, 0.3, 0), once)


def test_generators_learn_from_all_positives_that_are_not_set_aside():
    """KSDD2 has 246 positives for training: all of them without a validation part, the rest with one."""
    rows = toy_manifest(30, 246).assign(category="")
    for share, known in ((0.0, 246), (0.1, 221)):
        drawn = draw_validation(rows, share, 0)
        assert (drawn["split"] == "val").any() == (share > 0)
        assert len(choose_positives(drawn, "full-shot", 0)) == known
        assert len(choose_positives(drawn, "few-shot", 0, 246)) == 246 if not share else True


def test_share_out_of_range():
    with pytest.raises(ValueError, match=r"share 1 of the training images for val must be in \[0, 1\)"):
        draw_split(toy_manifest(3, 3), "val", 1, 0)


def test_summary(tmp_path):
    write_ksdd2(tmp_path, train=(6, 2), test=(3, 1))
    summary = summarise_dataset(load_dataset(tmp_path)).set_index(["split", "label"])
    assert list(summary["images"]) == [6, 2, 3, 1]
    assert summary.loc[("train", "positive"), "median_defect_pixels"] == 12
    assert set(summary["min_width"]) == {23} and set(summary["max_height"]) == {63}


def test_warnings_are_rare(tmp_path):
    write_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\xff", b'image,defect_type\n"train', b"image,defect_type\na,b,c\n"]
)
def test_a_broken_table_of_defect_types_is_named(tmp_path, content):
    write_ksdd2(tmp_path)
    (tmp_path / "surfaces.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=r"surfaces\.csv is not a readable table"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("target", [".", ".."])
def test_a_link_that_leads_back_is_told_instead_of_read_forty_times(tmp_path, target):
    write_folder(tmp_path, splits=("",))
    (tmp_path / "negative/more").symlink_to(target)
    with pytest.raises(DatasetError, match="negative/more: is a link to a parent folder"):
        load_dataset(tmp_path)


def test_a_linked_folder_elsewhere_is_read(tmp_path):
    write_folder(tmp_path / "set", splits=("",))
    (tmp_path / "set/negative").rename(tmp_path / "elsewhere")
    (tmp_path / "set/negative").symlink_to(tmp_path / "elsewhere")
    assert len(load_dataset(tmp_path / "set")) == 6


def test_only_a_few_values_are_taken_ahead_of_their_results():
    taken = []

    def give() -> Iterator[int]:
        for value in range(1000):
            taken.append(value)
            yield value

    told, most = [], datasets.AHEAD * datasets.MAX_WORKERS
    for value in datasets.map_in_threads(lambda value: 2 * value, give(), told.append):
        assert value == 2 * len(told) and len(taken) <= len(told) + most + 1
    assert len(told) == len(taken) == 1000


def test_after_the_first_error_nothing_new_begins():
    begun = []

    def refuse(value: int) -> int:
        begun.append(value)
        if value == 5:
            raise ValueError("not this one")
        return value

    with pytest.raises(ValueError, match="not this one"):
        list(datasets.map_in_threads(refuse, range(1000)))
    assert len(begun) <= 6 + datasets.AHEAD * datasets.MAX_WORKERS
