"""Exports, each read back by another reader than the one that wrote it."""

import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import supervision as sv
import yaml
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage.measure import label

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import ManifestError, make_manifest, read_manifest
from defaug_utils.data import export
from defaug_utils.data.datasets import load_dataset
from defaug_utils.data.export import FORMATS, ExportError, export_training_set, list_tree

WIDTH, HEIGHT = 40, 60


def draw_mask(seed: int) -> np.ndarray:
    """Masks that are hard to trace: several parts, a hole, lines of one pixel, a speck."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:25, 5 + seed % 3 : 20] = True
    mask[10:14, 10:13] = False
    mask[30, 4:30] = True
    for step in range(15):
        mask[38 + step, 10 + step // 2] = True
    mask[57, 36] = seed % 2 == 0
    return mask


@pytest.fixture
def training_set(tmp_path) -> pd.DataFrame:
    """Negatives and positives of three splits and two pools; names are the same in different folders."""
    rows = []
    for split, counts in {"train": (4, 2), "val": (2, 1), "test": (3, 2)}.items():
        for is_positive, count in enumerate(counts):
            for i in range(count):
                name = f"{i + 1}{'x' * is_positive} ä"
                rows.append(
                    _write_row(tmp_path, f"data/{split}", name, split, "real", bool(is_positive), len(rows))
                )
    rows += [
        _write_row(tmp_path, pool, "000001", "train", pool, True, 20 + i) for i, pool in enumerate(POOLS)
    ]
    return make_manifest(rows)


POOLS = ("memseg", "diag")


def _write_row(run, folder, name, split, origin, is_positive, seed) -> dict:
    row = {"image": f"{folder}/images/{name}.png", "split": split, "origin": origin}
    row["label"] = "positive" if is_positive else "negative"
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_png(run / row["image"], pixels)
    if is_positive:
        row["mask"] = f"{folder}/masks/{name}.png"
        write_png(run / row["mask"], draw_mask(seed))
        row["defect_type"] = "" if origin != "real" else ("scratch", "oil stain")[seed % 2]
    return row


def measure_iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def union(detections: sv.Detections) -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH), bool) if detections.mask is None else detections.mask.any(axis=0)


def read_masks(training_set: pd.DataFrame, folder: Path, target: Path) -> dict[str, np.ndarray]:
    """Exported image → the mask that the run folder holds for it."""
    exported = read_manifest(target / "manifest.csv", check_files=True)
    mask_of = dict(zip(training_set["image"], training_set["mask"], strict=True))
    return {
        row.image: read_mask(folder / mask_of[row.exported_from])
        if mask_of[row.exported_from]
        else np.zeros((HEIGHT, WIDTH), bool)
        for row in exported.itertuples()
    }


def test_mvtec_is_read_back_by_our_loader(training_set, tmp_path):
    done = export_training_set(training_set, tmp_path, tmp_path / "out", "mvtec")
    assert (done.images, done.positives, done.left_out) == (len(training_set), 7, 0)
    loaded = load_dataset(tmp_path / "out/mvtec_ad", "mvtec")
    assert dict(loaded.groupby(["split", "label"]).size()) == {
        ("train", "negative"): 4,
        ("test", "negative"): 3,
        ("test", "positive"): 2,
    }
    assert set(loaded["defect_type"]) - {""} == {"scratch", "oil_stain"}
    masks = read_masks(training_set, tmp_path, tmp_path / "out")
    for row in loaded[loaded["label"] == "positive"].itertuples():
        read = read_mask(tmp_path / "out/mvtec_ad" / row.mask)
        np.testing.assert_array_equal(read, masks[f"mvtec_ad/{row.image}"])


def test_mvtec_has_nothing_that_anomalib_would_mistake(training_set, tmp_path):
    """anomalib takes every PNG below the category: split, label and name are its last three parts."""
    export_training_set(training_set, tmp_path, tmp_path / "out", "mvtec")
    paths = sorted((tmp_path / "out/mvtec_ad/product").rglob("*.png"))
    images = [path for path in paths if path.parts[-3] != "ground_truth"]
    masks = [path for path in paths if path.parts[-3] == "ground_truth"]
    assert {path.parts[-3] for path in images} == {"train", "validation", "test"}
    abnormal = [path for path in images if path.parts[-2] != "good"]
    assert {path.parts[-3] for path in abnormal} == {"test"}
    assert [path.stem + "_mask" for path in abnormal] == [path.stem for path in masks]


def test_positives_of_train_stand_beside_their_masks(training_set, tmp_path):
    """anomalib's Folder pairs images and masks by their sorted order."""
    export_training_set(training_set, tmp_path, tmp_path / "out", "mvtec")
    root = tmp_path / "out/positives/product"
    masks = read_masks(training_set, tmp_path, tmp_path / "out")
    for split, count in {"train": 4, "validation": 1}.items():
        images, found = (sorted((root / split / kind).rglob("*.png")) for kind in ("images", "masks"))
        assert len(images) == len(found) == count
        for image, mask in zip(images, found, strict=True):
            assert image.relative_to(root / split / "images") == mask.relative_to(root / split / "masks")
            np.testing.assert_array_equal(
                read_mask(mask), masks[image.relative_to(tmp_path / "out").as_posix()]
            )


@pytest.mark.parametrize(("coco_masks", "least_iou"), [("rle", 1.0), ("polygon", 0.9)])
def test_coco_is_read_back(training_set, tmp_path, coco_masks, least_iou):
    target = tmp_path / "out"
    done = export_training_set(training_set, tmp_path, target, "coco", coco_masks=coco_masks)
    masks, instances, images = read_masks(training_set, tmp_path, target), 0, 0
    for split in ("train", "val", "test"):
        path = target / f"annotations/instances_{split}.json"
        dataset = sv.DetectionDataset.from_coco(str(target / f"images/{split}"), str(path))
        assert dataset.classes == ["defect"]
        images += len(dataset)
        for image, _, detections in dataset:
            expected = masks[Path(image).relative_to(target.resolve()).as_posix()]
            assert len(detections) == label(expected, connectivity=2).max()
            assert not expected.any() or measure_iou(union(detections), expected) >= least_iou
            instances += len(detections)
    assert (images, instances) == (len(training_set), done.instances)


def test_coco_files_make_one_collection_that_claims_nothing(training_set, tmp_path):
    export_training_set(training_set, tmp_path, tmp_path / "out", "coco")
    files = sorted((tmp_path / "out/annotations").glob("*.json"))
    contents = [json.loads(path.read_text()) for path in files]
    for kind in ("images", "annotations"):
        ids = [entry["id"] for content in contents for entry in content[kind]]
        assert len(ids) == len(set(ids)) > 0
    assert all(content["licenses"] == [] for content in contents)
    assert not any(
        {"license", "date_captured"} & set(image) for content in contents for image in content["images"]
    )
    objects = [entry for content in contents for entry in content["annotations"]]
    assert {entry["iscrowd"] for entry in objects} == {0}
    assert all(entry["bbox"][2] >= 1 and entry["bbox"][3] >= 1 for entry in objects)


@pytest.mark.parametrize("coco_masks", ["rle", "polygon"])
def test_coco_holds_a_few_images_objects_at_a_time_and_writes_the_same(
    training_set, tmp_path, coco_masks, monkeypatch
):
    export_training_set(training_set, tmp_path, tmp_path / "whole", "coco", coco_masks=coco_masks)
    held, real = [], sv.DetectionDataset.as_coco
    monkeypatch.setattr(export, "COCO_BATCH", 2)
    monkeypatch.setattr(
        sv.DetectionDataset, "as_coco", lambda self, **told: held.append(len(self)) or real(self, **told)
    )
    export_training_set(training_set, tmp_path, tmp_path / "parts", "coco", coco_masks=coco_masks)
    assert max(held) == 2 and sum(held) == len(training_set)
    for path in (tmp_path / "whole" / "annotations").iterdir():
        assert (tmp_path / "parts" / "annotations" / path.name).read_bytes() == path.read_bytes()
        content = json.loads(path.read_text(encoding="utf-8"))
        assert path.read_text(encoding="utf-8") == json.dumps(content)


def test_coco_boxes_and_areas_against_pixels_counted_by_hand(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:13, 4:9] = True
    mask[30:50, 20] = True
    row = _write_row(tmp_path, "memseg", "a", "train", "memseg", True, 0)
    write_png(tmp_path / row["mask"], mask)
    export_training_set(make_manifest([row]), tmp_path, tmp_path / "out", "coco")
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    found = [(entry["bbox"], entry["area"]) for entry in content["annotations"]]
    assert found == [([4, 10, 5, 3], 15), ([20, 30, 1, 20], 20)]
    assert content["images"][0]["width"] == WIDTH
    assert content["images"][0]["height"] == HEIGHT


def test_yolo_is_read_back(training_set, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "YOLO_BATCH", 3)
    target, instances, images = tmp_path / "out", 0, 0
    done = export_training_set(training_set, tmp_path, target, "yolo")
    masks = read_masks(training_set, tmp_path, target)
    for split in ("train", "val", "test"):
        folders = (str(target / f"images/{split}"), str(target / f"labels/{split}"))
        dataset = sv.DetectionDataset.from_yolo(*folders, str(target / "data.yaml"))
        images += len(dataset)
        for image, _, detections in dataset:
            expected = masks[Path(image).relative_to(target).as_posix()]
            assert len(detections) == label(expected, connectivity=2).max()
            assert not expected.any() or measure_iou(union(detections), expected) > 0.9
            instances += len(detections)
    assert (images, instances) == (len(training_set), done.instances)
    content = yaml.safe_load((target / "data.yaml").read_text())
    assert content == {
        **{split: f"images/{split}" for split in ("train", "val", "test")},
        "nc": 1,
        "names": ["defect"],
    }


def test_every_yolo_line_is_a_polygon(training_set, tmp_path):
    """One box among the polygons makes some trainers throw all polygons of a data set away."""
    export_training_set(training_set, tmp_path, tmp_path / "out", "yolo")
    files = sorted((tmp_path / "out/labels").rglob("*.txt"))
    lines = [line for path in files for line in path.read_text().splitlines()]
    assert len(files) == len(training_set)
    assert min(len(line.split()) for line in lines) >= 7


@settings(max_examples=60)
@given(arrays(bool, (9, 11)))
def test_any_part_of_any_mask_can_be_traced(mask):
    for part in export.find_parts(mask)[0]:
        traceable = export._make_traceable(part)
        (outline,) = export._trace(traceable)
        drawn = sv.polygon_to_mask(outline, (11, 9)).astype(bool)
        np.testing.assert_array_equal(drawn, traceable)
        assert (drawn & part).sum() == part.sum()


@given(arrays(bool, (7, 8)))
def test_parts_make_up_the_mask(mask):
    parts, boxes = export.find_parts(mask)
    np.testing.assert_array_equal(parts.sum(axis=0), mask)
    for part, (left, top, right, bottom) in zip(parts, boxes.astype(int), strict=True):
        inside = part[top:bottom, left:right]
        assert inside.sum() == part.sum()
        assert inside.any(axis=0).all()
        assert inside.any(axis=1).all()


@pytest.mark.parametrize("export_format", ["coco", "yolo"])
def test_a_class_for_every_defect_type(training_set, tmp_path, export_format):
    export_training_set(training_set, tmp_path, tmp_path / "out", export_format, by_defect_type=True)
    if export_format == "coco":
        content = json.loads((tmp_path / "out/annotations/instances_test.json").read_text())
        names = [category["name"] for category in content["categories"]]
    else:
        names = yaml.safe_load((tmp_path / "out/data.yaml").read_text())["names"]
    assert names == ["defect", "oil_stain", "scratch"]


@pytest.mark.parametrize("export_format", FORMATS)
def test_images_are_the_same_and_the_run_stays_as_it_was(training_set, tmp_path, export_format):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    export_training_set(training_set, tmp_path, tmp_path / "out", export_format)
    exported = read_manifest(tmp_path / "out/manifest.csv", check_files=True)
    for row in exported.itertuples():
        np.testing.assert_array_equal(
            read_image(tmp_path / "out" / row.image), read_image(tmp_path / row.exported_from)
        )
    names = [Path(image).name.lower() for image in exported["image"]]
    assert len(set(names)) == len(training_set)
    assert all(name.isascii() and " " not in name for name in names)
    kept = ["label", "split", "origin", "defect_type"]
    pd.testing.assert_frame_equal(exported[kept], training_set[kept])
    assert all(path.read_bytes() == content for path, content in before.items())
    first = next(iter(before))
    (tmp_path / "out" / exported["image"][0]).write_bytes(b"edited")
    assert first.read_bytes() == before[first]


def test_positives_without_mask(training_set, tmp_path):
    unmasked = training_set.assign(mask=training_set["mask"].where(training_set["origin"] != "diag", ""))
    with pytest.raises(ExportError, match=r"1 positives have no mask \(such as diag/images/000001.png\)"):
        export_training_set(unmasked, tmp_path, tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()
    done = export_training_set(unmasked, tmp_path, tmp_path / "out", "coco", skip_unmasked=True)
    assert (done.images, done.positives, done.left_out) == (len(training_set) - 1, 6, 1)
    assert "diag" not in set(read_manifest(tmp_path / "out/manifest.csv")["origin"])
    assert json.loads((tmp_path / "out/export.json").read_text())["left_out"] == 1


def test_nothing_left_to_export(training_set, tmp_path):
    positives = training_set[training_set["label"] == "positive"].assign(mask="")
    with pytest.raises(ExportError, match="no image is left"):
        export_training_set(positives, tmp_path, tmp_path / "out", "yolo", skip_unmasked=True)


def test_all_bad_masks_are_told_together(training_set, tmp_path):
    masks = training_set["mask"][training_set["mask"] != ""]
    write_png(tmp_path / masks.iloc[0], np.zeros((HEIGHT, WIDTH), bool))
    write_png(tmp_path / masks.iloc[1], np.ones((HEIGHT, WIDTH + 1), bool))
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(tmp_path / masks.iloc[2], "JPEG")
    with pytest.raises(ExportError) as error:
        export_training_set(training_set, tmp_path, tmp_path / "out", "mvtec")
    assert "3 problem(s)" in str(error.value) and "is a JPEG file" in str(error.value)
    assert "is empty, but" in str(error.value)
    assert "41 × 60 pixels, but its image has 40 × 60" in str(error.value)


def test_missing_files_are_told(training_set, tmp_path):
    (tmp_path / training_set["image"][0]).unlink()
    with pytest.raises(ManifestError, match="does not exist"):
        export_training_set(training_set, tmp_path, tmp_path / "out", "coco")


def test_a_folder_that_holds_something_else_is_left_alone(training_set, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not empty and not an export: choose another folder"):
        export_training_set(training_set, tmp_path, target, "coco", overwrite=True)
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]


def test_an_export_is_replaced_only_when_asked_and_of_the_same_format(training_set, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    export_training_set(training_set, tmp_path, target, "coco")
    with pytest.raises(ExportError, match="format coco: overwrite=True replaces it"):
        export_training_set(training_set, tmp_path, target, "coco")
    with pytest.raises(ExportError, match="format coco: choose another folder"):
        export_training_set(training_set, tmp_path, target, "yolo", overwrite=True)
    export_training_set(training_set.iloc[:5], tmp_path, target, "coco", overwrite=True)
    assert len(read_manifest(target / "manifest.csv", check_files=True)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "diag", "memseg", "out"]


def test_a_full_disk_leaves_the_former_export(training_set, tmp_path, monkeypatch):
    target = tmp_path / "out"
    export_training_set(training_set.iloc[:5], tmp_path, target, "yolo")
    copies = []

    def fill_up(source, destination):
        if len(copies) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        copies.append(source)
        Path(destination).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(shutil, "copyfile", fill_up)
    with pytest.raises(OSError, match="the disk is full"):
        export_training_set(training_set, tmp_path, target, "yolo", overwrite=True)
    assert len(read_manifest(target / "manifest.csv", check_files=True)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "diag", "memseg", "out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"export_format": "voc"}, "export_format 'voc' is not one of mvtec, coco, yolo, imagefolder"),
        ({"export_format": "coco", "coco_masks": "box"}, "coco_masks 'box' is not one of rle, polygon"),
    ],
)
def test_unknown_words(training_set, tmp_path, words, message):
    with pytest.raises(ExportError, match=message):
        export_training_set(training_set, tmp_path, tmp_path / "out", **words)


def test_defect_types_and_categories_cannot_leave_the_export(training_set, tmp_path):
    wild = training_set.assign(category="../up", defect_type="../../up/good")
    export_training_set(wild, tmp_path, tmp_path / "out", "mvtec")
    assert [path.name for path in (tmp_path / "out/mvtec_ad").iterdir()] == ["up"]
    tested = [path.name for path in sorted((tmp_path / "out/mvtec_ad/up/test").iterdir())]
    assert tested == ["good", "up_good"]


@pytest.mark.parametrize("export_format", FORMATS)
def test_an_exports_files_have_harmless_names(training_set, tmp_path, export_format):
    hostile = "=<img src=x onerror=alert(1)>$.p<b>ng"
    wild = training_set.assign(category=hostile, defect_type=hostile)
    first = Path(wild["image"][0])
    (tmp_path / first).rename(tmp_path / first.with_name(hostile))
    wild.loc[0, "image"] = first.with_name(hostile).as_posix()
    export_training_set(wild, tmp_path, tmp_path / "out", export_format, by_defect_type=True)
    for path in (tmp_path / "out").rglob("*"):
        assert re.fullmatch(r"[\w.-]+", path.name, re.ASCII), path.name


def test_the_tree_counts_every_file(training_set, tmp_path):
    export_training_set(training_set, tmp_path, tmp_path / "out", "yolo")
    tree = list_tree(tmp_path / "out").set_index("folder")
    assert tree["files"].to_dict() == {
        ".": 3,
        "images/train": 8,
        "images/val": 3,
        "images/test": 5,
        "labels/train": 8,
        "labels/val": 3,
        "labels/test": 5,
    }
    assert tree.loc[".", "first"] == "data.yaml"
