"""Mask sources: pure functions of the seed; what can't be a mask is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.masks.shapes import SHAPES, ShapePriors, draw_shape
from defaug_utils.masks.sources import is_leak, open_masks

SIZE = (40, 120)


def square(height: int = 120, width: int = 40, top: int = 10) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + 8, 4:20] = True
    return mask


@settings(max_examples=40)
@given(st.integers(0, 2**63 - 1), st.integers(12, 90), st.integers(12, 90))
def test_procedural_masks_have_pixels_of_either_kind_and_know_their_seed(seed, width, height):
    source = open_masks("procedural")
    drawn, again = source.draw(seed, (width, height)), source.draw(seed, (width, height))
    assert drawn.mask.shape == (height, width) and drawn.mask.dtype == bool
    assert drawn.mask.any() and not drawn.mask.all()
    assert (drawn.mask == again.mask).all() and drawn.name == again.name


def test_kinds_come_by_their_weights():
    source = open_masks("procedural", priors=ShapePriors(weights={"blob": 3, "crack": 1}))
    names = [source.draw(seed, SIZE).name for seed in range(200)]
    assert set(names) == {"blob", "crack"}
    assert 125 <= names.count("blob") <= 175


@pytest.mark.parametrize("kind", ["scratch", "crack", "blob"])
@pytest.mark.parametrize("angle", [0, 45, 90])
def test_shapes_lie_along_the_experts_direction(kind, angle):
    priors = ShapePriors(length=(0.35, 0.4), width=(2, 3), orientation=(angle, angle), roundness=(0.2, 0.3))
    generator, found = np.random.default_rng(0), []
    for _ in range(30):
        mask = draw_shape(kind, (200, 200), priors, generator)
        rows, columns = np.nonzero(mask)
        _, vectors = np.linalg.eigh(np.cov(columns, -rows))
        found.append(np.rad2deg(np.arctan2(vectors[1, 1], vectors[0, 1])))
    doubled = np.deg2rad(2 * (np.array(found) - angle))  # an axis has no front end
    mean = np.rad2deg(np.arctan2(np.sin(doubled).mean(), np.cos(doubled).mean())) / 2
    assert abs(mean) < 12


def test_scratches_are_thin_and_blobs_are_not():
    generator, priors = np.random.default_rng(0), ShapePriors(length=(0.4, 0.5), width=(2, 3))
    deepest = {}
    for kind in SHAPES:
        masks = [draw_shape(kind, (100, 100), priors, generator) for _ in range(20)]
        depth = [cv2.distanceTransform(np.pad(m, 1).astype(np.uint8), cv2.DIST_L2, 3).max() for m in masks]
        deepest[kind] = np.median(depth)
    assert deepest["scratch"] <= 3 < deepest["blob"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"weights": {"dent": 1}}, "weights"),
        ({"weights": {}}, "weights"),
        ({"weights": {"blob": 0}}, "weights"),
        ({"length": (0.5, 0.2)}, "length"),
        ({"width": (0.2, 2)}, "width"),
        ({"orientation": (90, -90)}, "orientation"),
        ({"roundness": (0, 1)}, "roundness"),
    ],
)
def test_priors_that_make_no_sense_are_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=named):
        ShapePriors(**wrong)


def test_drawn_masks_are_chosen_by_seed_and_fitted(tmp_path: Path):
    write_png(tmp_path / "a.png", square())
    write_png(tmp_path / "b.png", square(240, 80, 100))
    source = open_masks("drawn", tmp_path)
    draws = {seed: source.draw(seed, SIZE) for seed in range(12)}
    assert {drawn.name for drawn in draws.values()} == {"a.png", "b.png"}
    assert all(drawn.mask.shape == (120, 40) and drawn.mask.any() for drawn in draws.values())
    assert (source.draw(3, SIZE).mask == draws[3].mask).all()
    described = source.describe()
    write_png(tmp_path / "b.png", square(240, 80, 90))
    assert open_masks("drawn", tmp_path).describe() != described


def test_a_thin_defect_survives_shrinking(tmp_path: Path):
    mask = np.zeros((400, 400), bool)
    mask[200, 50:350] = True
    write_png(tmp_path / "thin.png", mask)
    assert open_masks("drawn", tmp_path).draw(0, (40, 40)).mask.sum() >= 30


def test_a_mask_of_many_greys_counts_above_zero_and_says_so(tmp_path: Path):
    write_png(tmp_path / "hard.png", square())
    soft = square().astype(np.uint8) * 255
    soft[10, 4] = 90
    Image.fromarray(soft).save(tmp_path / "soft.png")
    source = open_masks("drawn", tmp_path)
    assert "1 of 2 drawn masks have more than two values (soft.png)" in source.notices[0]
    assert all((source.draw(seed, SIZE).mask == square()).all() for seed in range(4))


def test_empty_full_and_broken_masks_are_listed_together(tmp_path: Path):
    write_png(tmp_path / "empty.png", np.zeros((9, 9), bool))
    write_png(tmp_path / "full.png", np.ones((9, 9), bool))
    (tmp_path / "torn.png").write_bytes(b"half of an ima")
    Image.fromarray(square().astype(np.uint8) * 255).save(tmp_path / "photo.png", "JPEG")
    with pytest.raises(
        ValueError,
        match=r"4 problem(?s:.*)empty\.png.*(?s:.*)full\.png(?s:.*)photo\.png: is a JPEG(?s:.*)torn",
    ):
        open_masks("drawn", tmp_path)


def test_a_mask_that_fills_the_small_image_is_refused(tmp_path: Path):
    mask = np.ones((60, 60), bool)
    mask[0, 0] = False
    write_png(tmp_path / "big.png", mask)
    with pytest.raises(ValueError, match=r"big\.png covers everything at 20 × 20"):
        open_masks("drawn", tmp_path).draw(0, (20, 20))


def test_no_folder_and_no_known_word_say_what_to_do(tmp_path: Path):
    with pytest.raises(ValueError, match="no drawn masks"):
        open_masks("drawn", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not one of drawn, procedural, train_positives"):
        open_masks("perlin")


def write_dataset(folder: Path) -> None:
    rows = []
    for split in ("train", "val", "test"):
        for label in ("negative", "positive"):
            name = f"{split}-{label}.png"
            row = {"image": f"images/{name}", "label": label, "split": split, "origin": "real"}
            write_png(folder / row["image"], np.full((120, 40, 3), 90, np.uint8))
            if label == "positive":
                row["mask"] = f"masks/{name}"
                write_png(folder / row["mask"], square(top={"train": 10, "val": 40, "test": 80}[split]))
            rows.append(row)
    write_manifest(make_manifest(rows), folder / "manifest.csv")


def test_masks_of_training_positives_only_and_flagged(tmp_path: Path):
    write_dataset(tmp_path)
    source = open_masks("train_positives", data_folder=tmp_path)
    assert source.names == ("masks/train-positive.png",)
    assert (source.draw(1, SIZE).mask == square(top=10)).all()
    assert "leak" in source.notices[0]


def test_what_leaks_where():
    assert is_leak("train_positives", "zero-shot") and is_leak("train_positives", "few-shot")
    assert not is_leak("train_positives", "full-shot")
    assert is_leak("few_shot", "zero-shot") and not is_leak("few_shot", "few-shot")
    assert not any(is_leak(word, "zero-shot") for word in ("procedural", "drawn", "perlin", ""))
