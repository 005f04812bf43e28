"""Training sets and pools as MVTec AD / anomalib folders, COCO, YOLO or image folders, for other trainers.

- "mvtec": `mvtec_ad/<category>/` is what anomalib's `MVTecAD` reads, plus `validation/good`. The layout has
  no place for training positives, so they and their masks are in `images/<defect type>` and
  `masks/<defect type>` of `positives/<category>/train` (and `validation`): `abnormal_dir` and `mask_dir` of
  anomalib's `Folder`, whose `normal_dir` is `mvtec_ad/<category>/train/good`.
- "coco": `images/<split>/` and `annotations/instances_<split>.json`.
- "yolo": `images/<split>/`, `labels/<split>/` and `data.yaml`; holes are joined to the outline by a seam.
- "imagefolder": what the library `datasets` reads, see `image_folder`: images and masks by split with their
  manifest rows, the recipes, and a card for the Hugging Face hub.

Each export has a `manifest.csv`, with the original paths in `exported_from`, and an `export.json` that
describes it and names the licence of the real images. Files are named `<row>_<origin>_<original name>`, so
that images and masks sort alike, as anomalib's pairing needs.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import supervision as sv
import yaml
from PIL import Image
from scipy.ndimage import binary_dilation, binary_fill_holes
from skimage.measure import label
from supervision.config import COCO_RAW_SEGMENTATION
from supervision.dataset.utils import approximate_mask_with_polygons
from supervision.detection.utils.converters import mask_to_rle

from defaug_utils.core.files import stage_folder, write_atomically, write_json, write_png
from defaug_utils.core.guards import check_demands, collect_problems, raise_problems
from defaug_utils.core.images import read_mask
from defaug_utils.core.licences import DATA_LICENCE, NOT_STATED, read_licence
from defaug_utils.core.manifest import SPLITS, validate_manifest, write_manifest
from defaug_utils.data.datasets import DATA_FOLDER
from defaug_utils.data.image_folder import name_folder, write_image_folder

IMAGE_FOLDER = "imagefolder"
FORMATS = ("mvtec", "coco", "yolo", IMAGE_FOLDER)
COCO_MASKS = ("rle", "polygon")
ONE_CLASS = "defect"
MARK = "export.json"
YOLO_BATCH = 16  # images whose masks are in memory at a time
COCO_BATCH = 256  # images whose objects are


class ExportError(ValueError):
    """A training set can't be exported as requested."""


class Export(NamedTuple):
    """The result of an export: its folder, and counts."""

    folder: Path
    images: int
    positives: int
    instances: int  #: connected parts of all masks, each an object in COCO and YOLO
    left_out: int  #: positives without a mask


def export_training_set(
    training_set: pd.DataFrame,
    folder: Path | str,
    target: Path | str,
    export_format: str,
    skip_unmasked: bool = False,
    by_defect_type: bool = False,
    coco_masks: str = "rle",
    overwrite: bool = False,
) -> Export:
    """Copy a training set or a pool into another tool's format, completely or not at all.

    Args:
        training_set: manifest with paths relative to `folder`.
        folder: of a run, a pool or a prepared data set; the licence is looked up there, too.
        target: folder to create, or an empty one.
        skip_unmasked: leave out positives without a mask, and count them, instead of refusing them; an
            "imagefolder" takes them as they are.
        by_defect_type: one class per defect type in COCO and YOLO, instead of a single class "defect".
            Positives of unknown type, such as generated ones, remain "defect".
        coco_masks: "rle" keeps every pixel; "polygon" is for tools that can't read it: most of them draw the
            outline half a pixel too small on all sides, so that a one-pixel crack vanishes.
        overwrite: replace an earlier export in the same format.

    Raises:
        ExportError: positives without mask, masks that are empty or have a different size, a target that
            contains something else, or an unknown option.
        ManifestError: the training set names files that don't exist.
    """
    folder, target = Path(folder), Path(target)
    demands = {
        f"export_format {export_format!r} is not one of {', '.join(FORMATS)}": export_format in FORMATS,
        f"coco_masks {coco_masks!r} is not one of {', '.join(COCO_MASKS)}": coco_masks in COCO_MASKS,
    }
    check_demands("export", demands, ExportError)
    _check_target(target, export_format, overwrite)
    validate_manifest(training_set, folder / "training set", check_files=True)
    licence = read_licence(folder / DATA_FOLDER if (folder / DATA_FOLDER).is_dir() else folder)
    keeps_all = export_format == IMAGE_FOLDER and len(training_set)
    rows = training_set.reset_index(drop=True) if keeps_all else _select_masked(training_set, skip_unmasked)
    placed = _place_rows(rows, export_format, by_defect_type)
    positives, instances = int((rows["label"] == "positive").sum()), _count_instances(rows, folder)
    done = Export(target, len(rows), positives, instances, len(training_set) - len(rows))
    with stage_folder(target) as staging:
        for old, new in zip(rows.itertuples(), placed.itertuples(), strict=True):
            with write_atomically(staging / new.image) as temporary:
                shutil.copyfile(folder / old.image, temporary)
            if new.mask:
                write_png(staging / new.mask, read_mask(folder / old.mask))
        classes = sorted(set(placed["object_class"][placed["label"] == "positive"]))
        annotated = placed.assign(mask_file=[folder / mask for mask in rows["mask"]])
        placed = placed.drop(columns="object_class")
        if export_format == "coco":
            _write_coco(annotated, staging, classes, coco_masks, licence)
        elif export_format == "yolo":
            _write_yolo(annotated, staging, classes)
        elif export_format == IMAGE_FOLDER:
            write_image_folder(placed, folder, staging, licence)
        write_manifest(placed, staging / "manifest.csv")
        counts = {name: count for name, count in done._asdict().items() if name != "folder"}
        write_json(staging / MARK, {"format": export_format, DATA_LICENCE: licence, **counts})
    return done


def _check_target(target: Path, export_format: str, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    mark = target / MARK
    found = json.loads(mark.read_text(encoding="utf-8")).get("format") if mark.is_file() else None
    if found == export_format and overwrite:
        return
    held = f"contains an export in the format {found}" if found else "is not empty and not an export"
    advice = "overwrite=True replaces it" if found == export_format else "choose another folder, or empty it"
    raise ExportError(f"{target} {held}: {advice}")


def _select_masked(training_set: pd.DataFrame, skip_unmasked: bool) -> pd.DataFrame:
    """Negatives, and the positives that have a mask."""
    is_unmasked = (training_set["label"] == "positive") & (training_set["mask"] == "")
    if is_unmasked.any() and not skip_unmasked:
        shown = ", ".join(training_set["image"][is_unmasked].head(3))
        raise ExportError(
            f"{is_unmasked.sum()} positives have no mask (such as {shown}), and every format needs one: "
            "set skip_unmasked=True to leave them out"
        )
    if is_unmasked.all():
        raise ExportError("no image is left to export")
    return training_set[~is_unmasked].reset_index(drop=True)


def _safe_name(word: str) -> str:
    """A word as part of a file name: ASCII letters, digits, `_` and `-` are kept."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", word).strip("_") or "unnamed"


def _place_rows(rows: pd.DataFrame, export_format: str, by_defect_type: bool) -> pd.DataFrame:
    """The rows with their paths in the export, their original image and their class."""
    categories = sorted(set(rows["category"]) - {""})
    category, digits = categories[0] if len(categories) == 1 else "product", len(str(len(rows)))
    types = [_safe_name(word) if word not in ("", "good") else ONE_CLASS for word in rows["defect_type"]]
    places = []
    for number, (row, defect_type) in enumerate(zip(rows.itertuples(), types, strict=True)):
        image = Path(row.image)
        suffix = re.sub(r"[^.a-z0-9]", "", image.suffix.lower())
        name = f"{number:0{digits}d}_{row.origin}_{_safe_name(image.stem)}{suffix}"
        if export_format == "mvtec":
            places.append(_place_in_mvtec(row, _safe_name(row.category or category), defect_type, Path(name)))
        elif export_format == IMAGE_FOLDER:
            split, mask = name_folder(row.split), f"{Path(name).stem}.png"
            places.append((f"{split}/images/{name}", f"{split}/masks/{mask}" if row.mask else ""))
        else:
            places.append((f"images/{row.split}/{name}", ""))
    placed = rows.assign(exported_from=rows["image"])
    placed["object_class"] = types if by_defect_type else ONE_CLASS
    placed[["image", "mask"]] = places
    return placed


def _place_in_mvtec(row: NamedTuple, category: str, defect_type: str, name: Path) -> tuple[str, str]:
    """Paths of image and mask in the format "mvtec"."""
    split = "validation" if row.split == "val" else row.split
    root, positives = f"mvtec_ad/{category}", f"positives/{category}/{split}"
    if row.label == "negative":
        return f"{root}/{split}/good/{name}", ""
    if split == "test":
        return f"{root}/test/{defect_type}/{name}", f"{root}/ground_truth/{defect_type}/{name.stem}_mask.png"
    return f"{positives}/images/{defect_type}/{name}", f"{positives}/masks/{defect_type}/{name.stem}.png"


def _count_instances(rows: pd.DataFrame, folder: Path) -> int:
    """Number of connected parts of all masks; refuses masks that are empty or don't fit their image."""
    problems, instances = [], 0
    is_marked = (rows["label"] == "positive") & (rows["mask"] != "")
    for image, path in rows.loc[is_marked, ["image", "mask"]].itertuples(index=False):
        with collect_problems(problems), Image.open(folder / image) as opened:
            mask, (width, height) = read_mask(folder / path), opened.size
            if mask.shape != (height, width):
                found = f"{mask.shape[1]} × {mask.shape[0]}"
                problems.append(f"{path}: {found} pixels, but its image has {width} × {height}")
            elif not mask.any():
                problems.append(f"{path}: is empty, but {image} is positive")
            instances += label(mask, connectivity=2).max()
    raise_problems("masks", problems, ExportError)
    return int(instances)


def find_parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts, shape (parts, height, width), bool, and their boxes (left, top, right, bottom)."""
    labels = label(mask, connectivity=2)
    parts = labels == np.arange(1, labels.max() + 1)[:, None, None]
    return parts, np.add(sv.mask_to_xyxy(parts), (0, 0, 1, 1)).astype(np.float32)


def _make_traceable(part: np.ndarray) -> np.ndarray:
    """Fill holes that no seam can reach, and widen a part that is a line or a speck."""
    if _trace(part):
        return part
    if _trace(filled := binary_fill_holes(part)):
        return filled
    wider = binary_dilation(part, np.ones((2, 2)))
    return wider if _trace(wider) else binary_dilation(part, np.ones((3, 3)))


def _trace(part: np.ndarray) -> list[np.ndarray]:
    """Outline of a part, with its holes joined to it; empty if there is none."""
    with suppress(ValueError):
        return approximate_mask_with_polygons(part, bridge_holes=True)
    return []


def _detect(mask: np.ndarray, class_id: int, form: str) -> sv.Detections:
    """The parts of a mask as objects, with traceable masks ("yolo") or COCO's masks ("rle", "polygon")."""
    parts, boxes = find_parts(mask)
    detections = sv.Detections(xyxy=boxes, class_id=np.full(len(parts), class_id))
    if form == "yolo":
        detections.mask = np.array([_make_traceable(part) for part in parts])
        return detections
    segmentations = np.empty(len(parts), dtype=object)
    for index, part in enumerate(parts):
        if form == "rle":
            segmentations[index] = {"counts": mask_to_rle(part), "size": list(part.shape)}
        else:
            segmentations[index] = [outline.ravel().tolist() for outline in _trace(_make_traceable(part))]
    # Supervision would mark a part with a hole as a crowd, which trainers ignore.
    detections.data = {"iscrowd": np.zeros(len(parts), dtype=int), COCO_RAW_SEGMENTATION: segmentations}
    detections.data["area"] = parts.sum(axis=(1, 2)).astype(float)
    return detections


def _make_dataset(rows: pd.DataFrame, staging: Path, classes: list[str], form: str) -> sv.DetectionDataset:
    """The rows as supervision's data set; images stay on disk, negatives have no objects."""
    annotations = {str(staging / image): sv.Detections.empty() for image in rows["image"]}
    for row in rows[rows["label"] == "positive"].itertuples():
        detections = _detect(read_mask(row.mask_file), classes.index(row.object_class), form)
        annotations[str(staging / row.image)] = detections
    return sv.DetectionDataset(classes, list(annotations), annotations)


def _write_coco(rows: pd.DataFrame, staging: Path, classes: list[str], coco_masks: str, licence: str) -> None:
    """Write `annotations/instances_<split>.json`; ids are unique across splits."""
    image_id, object_id = 1, 1
    for split, part in rows.groupby("split"):
        path = staging / "annotations" / f"instances_{split}.json"
        stated = [{"id": 1, "name": licence, "url": ""}] if licence != NOT_STATED else []
        lists: dict[str, list[str]] = {"images": [], "annotations": []}  # as text, a fraction of the objects
        for batch in _cut(part, COCO_BATCH):
            dataset = _make_dataset(batch, staging, classes, coco_masks)
            starts = {"starting_image_id": image_id, "starting_annotation_id": object_id}
            image_id, object_id = dataset.as_coco(annotations_path=str(path), **starts)
            # In place of what supervision adds: a CC BY licence that isn't ours to grant, and the time.
            content = json.loads(path.read_text(encoding="utf-8")) | {"licenses": stated}
            for image in content["images"]:
                del image["license"], image["date_captured"]
                image |= {"license": 1} if stated else {}
            for name, texts in lists.items():
                texts += map(json.dumps, content[name])
        told = {name: json.dumps(value) for name, value in content.items()}
        told |= {name: f"[{', '.join(texts)}]" for name, texts in lists.items()}
        parts = ", ".join(f'"{name}": {text}' for name, text in told.items())
        path.write_text(f"{{{parts}}}", encoding="utf-8")


def _cut(rows: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    """The rows in batches."""
    return (rows.iloc[start : start + size] for start in range(0, len(rows), size))


def _write_yolo(rows: pd.DataFrame, staging: Path, classes: list[str]) -> None:
    """Write `labels/<split>/<name>.txt` and `data.yaml`."""
    for split, part in rows.groupby("split"):
        for batch in _cut(part, YOLO_BATCH):
            dataset = _make_dataset(batch, staging, classes, "yolo")
            dataset.as_yolo(annotations_directory_path=str(staging / "labels" / split))
    folders = {split: f"images/{split}" for split in SPLITS if split in set(rows["split"])}
    content = yaml.safe_dump({**folders, "nc": len(classes), "names": classes}, sort_keys=False)
    (staging / "data.yaml").write_text(content, encoding="utf-8")


def list_tree(folder: Path | str) -> pd.DataFrame:
    """One row per folder of an export that contains files: path, number of files, and the first name."""
    files = sorted(path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    table = pd.DataFrame([(path.parent.as_posix(), path.name) for path in files], columns=["folder", "file"])
    return table.groupby("folder")["file"].agg(files="count", first="first").reset_index()
