"""Masks as objects in COCO and YOLO files, written by supervision."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import supervision as sv
import yaml
from scipy.ndimage import binary_dilation, binary_fill_holes
from skimage.measure import label, regionprops
from supervision.config import COCO_RAW_SEGMENTATION
from supervision.dataset.utils import approximate_mask_with_polygons
from supervision.detection.utils.converters import mask_to_rle

from defaug_utils.core.images import read_mask
from defaug_utils.core.manifest import SPLITS

YOLO_BATCH = 16  # images whose masks are in memory at a time

Detect = Callable[[np.ndarray, int], sv.Detections]


def find_parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts of a mask.

    Returns:
        The parts, shape (parts, height, width), bool; and their boxes (left, top, right, bottom), the
        last two exclusive, shape (parts, 4).
    """
    labels = label(mask, connectivity=2)
    parts = labels == np.arange(1, labels.max() + 1)[:, None, None]
    boxes = [(part.bbox[1], part.bbox[0], part.bbox[3], part.bbox[2]) for part in regionprops(labels)]
    return parts, np.array(boxes, dtype=np.float32)


def _make_traceable(part: np.ndarray) -> np.ndarray:
    """The part, or where supervision finds no outline for it the nearest one that has one.

    A straight line of 1 pixel (or a speck) has no outline of three points and is widened; a hole that no
    seam inside the part reaches is filled.
    """
    changes = (
        lambda: part,
        lambda: binary_fill_holes(part),
        lambda: binary_dilation(part, np.ones((2, 2))),
        lambda: binary_dilation(part, np.ones((3, 3))),
    )
    return next(changed for change in changes if _trace(changed := change()))


def _trace(part: np.ndarray) -> list[np.ndarray]:
    """Outline of a part, holes joined to it; empty when there is none."""
    try:
        return approximate_mask_with_polygons(part, bridge_holes=True)
    except ValueError:
        return []


def _detect_for_coco(mask: np.ndarray, class_id: int, coco_masks: str) -> sv.Detections:
    """Objects with their segmentation as COCO stores it, so that no mask stays in memory.

    `iscrowd` is 0 for all of them: supervision alone would call a part with a hole a crowd, and trainers
    pass over crowds.
    """
    parts, boxes = find_parts(mask)
    segmentations = np.empty(len(parts), dtype=object)
    for index, part in enumerate(parts):
        if coco_masks == "rle":
            segmentations[index] = {"counts": mask_to_rle(part), "size": list(part.shape)}
        else:
            segmentations[index] = [outline.ravel().tolist() for outline in _trace(_make_traceable(part))]
    data = {
        "iscrowd": np.zeros(len(parts), dtype=int),
        "area": parts.sum(axis=(1, 2)).astype(float),
        COCO_RAW_SEGMENTATION: segmentations,
    }
    return sv.Detections(xyxy=boxes, class_id=np.full(len(parts), class_id), data=data)


def _detect_for_yolo(mask: np.ndarray, class_id: int) -> sv.Detections:
    parts, boxes = find_parts(mask)
    masks = np.array([_make_traceable(part) for part in parts])
    return sv.Detections(xyxy=boxes, class_id=np.full(len(parts), class_id), mask=masks)


def _make_dataset(
    rows: pd.DataFrame, folder: Path, staging: Path, classes: list[str], detect: Detect
) -> sv.DetectionDataset:
    """The rows as supervision's data set: images stay on the disk, negatives have no object."""
    annotations = {str(staging / image): sv.Detections.empty() for image in rows["image"]}
    for row in rows[rows["label"] == "positive"].itertuples():
        mask = read_mask(folder / row.mask)
        annotations[str(staging / row.image)] = detect(mask, classes.index(row.object_class))
    return sv.DetectionDataset(classes, list(annotations), annotations)


def _list_classes(rows: pd.DataFrame) -> list[str]:
    return sorted(set(rows["object_class"][rows["label"] == "positive"]))


def write_coco(rows: pd.DataFrame, folder: Path, staging: Path, coco_masks: str) -> None:
    """Write `annotations/instances_<split>.json`; ids go on from split to split.

    Args:
        rows: manifest with `image` relative to `staging`, `mask` relative to `folder`, and `object_class`.
        folder: where the masks are.
        staging: the export's folder, with the images in place.
        coco_masks: "rle" or "polygon".
    """
    classes, image_id, object_id = _list_classes(rows), 1, 1
    detect = partial(_detect_for_coco, coco_masks=coco_masks)
    for split, part in rows.groupby("split"):
        path = staging / "annotations" / f"instances_{split}.json"
        dataset = _make_dataset(part, folder, staging, classes, detect)
        image_id, object_id = dataset.as_coco(
            annotations_path=str(path), starting_image_id=image_id, starting_annotation_id=object_id
        )
        _remove_claims(path)


def _remove_claims(path: Path) -> None:
    """Take out what supervision writes of its own: a CC BY licence that isn't ours to give, and the time."""
    content = json.loads(path.read_text(encoding="utf-8")) | {"licenses": []}
    for image in content["images"]:
        del image["license"], image["date_captured"]
    path.write_text(json.dumps(content), encoding="utf-8")


def write_yolo(rows: pd.DataFrame, folder: Path, staging: Path) -> None:
    """Write `labels/<split>/<name>.txt` and `data.yaml`; arguments as in `write_coco`."""
    classes = _list_classes(rows)
    for split, part in rows.groupby("split"):
        for start in range(0, len(part), YOLO_BATCH):
            batch = part.iloc[start : start + YOLO_BATCH]
            dataset = _make_dataset(batch, folder, staging, classes, _detect_for_yolo)
            dataset.as_yolo(annotations_directory_path=str(staging / "labels" / split))
    folders = {split: f"images/{split}" for split in SPLITS if split in set(rows["split"])}
    content = yaml.safe_dump({**folders, "nc": len(classes), "names": classes}, sort_keys=False)
    (staging / "data.yaml").write_text(content, encoding="utf-8")
