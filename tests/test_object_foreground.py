"""Objects told from their background by features: each step, what they are for, and what can't be told."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_mask
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.masks.objects import (
    THRESHOLD,
    FeatureReader,
    fit_object_finder,
)
from defaug_utils.methods.memseg import MemSeg
from defaug_utils.methods.textures import open_textures
from defaug_utils.training.backbones import open_features

SIDE = 96
MODELS = Path(__file__).parents[1] / "models"
WEIGHTS = [MODELS / "backbones/resnet10_quarter.safetensors", MODELS / "workshop/backbone"]


def draw_part(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A striped disc on a noisy plate of the same mean grey: no threshold of grey tells them apart."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    centre, radius = rng.uniform(42, 54, 2), rng.uniform(24, 30)
    is_object = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    stripes = 128 + 60 * np.sin((rows + columns) * 2 * np.pi / 9)
    grey = np.where(is_object, stripes, 128) + rng.normal(0, 6, (SIDE, SIDE))
    return np.clip(grey, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2), is_object


def read_contrast(image_u8: np.ndarray) -> np.ndarray:
    """Features by hand: mean and spread of grey in cells of 8 × 8 pixels."""
    cells = image_u8[..., 0].reshape(SIDE // 8, 8, SIDE // 8, 8).swapaxes(1, 2).astype(float)
    return np.stack([cells.mean(axis=(2, 3)), cells.std(axis=(2, 3))], axis=2)


def share_agreed(found: np.ndarray, expected: np.ndarray) -> float:
    return (found & expected).sum() / (found | expected).sum()


@pytest.fixture(scope="module")
def finder():
    return fit_object_finder([draw_part(seed)[0] for seed in range(4)], read_contrast)


def test_the_object_is_found_on_other_images(finder):
    for seed in range(10, 16):
        image_u8, is_object = draw_part(seed)
        assert share_agreed(finder(image_u8), is_object) > 0.75
    assert finder.border_share == 1


def test_one_image_will_do():
    image_u8, is_object = draw_part(3)
    assert share_agreed(fit_object_finder([image_u8], read_contrast)(image_u8), is_object) > 0.75


def test_every_step_follows_from_the_one_before(finder):
    image_u8, is_object = draw_part(20)
    steps = finder.find_steps(image_u8)
    centres = is_object.reshape(SIDE // 8, 8, SIDE // 8, 8)[:, 4, :, 4]
    assert (steps.is_object_cluster == centres).mean() > 0.9
    assert ((steps.separation > 0) == steps.is_object_cluster).mean() > 0.9
    assert (steps.separation_u8.min(), steps.separation_u8.max()) == (0, 255)
    np.testing.assert_array_equal(steps.thresholded, steps.separation_u8 > THRESHOLD)
    closed = cv2.morphologyEx(
        np.pad(steps.thresholded, 5, mode="edge").astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)
    )
    np.testing.assert_array_equal(steps.foreground, closed[5:-5, 5:-5].astype(bool))
    np.testing.assert_array_equal(finder(image_u8), steps.foreground)


def test_the_border_decides_which_cluster_is_background():
    images = [draw_part(seed) for seed in range(3)]
    inverted = []
    for image_u8, is_object in images:
        rolled = np.roll(image_u8, (SIDE // 2, SIDE // 2), axis=(0, 1))  # stripes in the four corners
        inverted.append((rolled, np.roll(is_object, (SIDE // 2, SIDE // 2), axis=(0, 1))))
    finder = fit_object_finder([image_u8 for image_u8, _ in inverted], read_contrast)
    image_u8, is_striped = inverted[0]
    assert share_agreed(finder(image_u8), ~is_striped) > 0.75


@pytest.mark.parametrize("seed", range(3))
def test_clusters_start_repeatably(seed):
    images = [draw_part(number)[0] for number in range(2)]
    first, second = (fit_object_finder(images, read_contrast, seed) for _ in range(2))
    assert first.describe() == second.describe()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_with_the_backbones_of_the_book(weights):
    network = open_features("resnet10_quarter", str(weights))
    reader = FeatureReader(network)
    described, other = (FeatureReader(network, colour_weight=weight).describe() for weight in (4.0, 1.0))
    assert described["backbone"] == network.backbone and len(described["fingerprint"]) == 16
    assert reader.describe() == described != other
    image_u8, is_object = draw_part(30)
    assert reader(image_u8).shape == (24, 24, 16 + 32 + 3)
    assert FeatureReader(network, ("eighth",), 0)(image_u8).shape == (12, 12, 32)
    finder = fit_object_finder([draw_part(seed)[0] for seed in range(4)], reader)
    assert share_agreed(finder(image_u8), is_object) > 0.7
    with pytest.raises(ValueError, match="is negative"):
        FeatureReader(network, colour_weight=-1)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("part_grey", "plate_grey"), [(120, 18), (60, 220)])
def test_a_smooth_part_is_found_whole_not_its_rim(weights, part_grey, plate_grey):
    images = []
    for seed in range(5):
        _, is_object = draw_part(seed)
        noise = np.random.default_rng(seed).normal(0, 4, is_object.shape)
        grey = np.clip(np.where(is_object, part_grey, plate_grey) + noise, 0, 255).astype(np.uint8)
        images.append((grey[..., None].repeat(3, axis=2), is_object))
    reader = FeatureReader(open_features("resnet10_quarter", str(weights)))
    finder = fit_object_finder([image_u8 for image_u8, _ in images[:4]], reader)
    image_u8, is_object = images[4]
    assert share_agreed(finder(image_u8), is_object) > 0.9


def test_what_can_not_be_told_is_refused():
    with pytest.raises(ValueError, match="without images"):
        fit_object_finder([], read_contrast)
    with pytest.raises(ValueError, match="look the same"):
        fit_object_finder([np.full((SIDE, SIDE, 3), 9, np.uint8)], read_contrast)
    halves = np.random.default_rng(0).integers(120, 136, (SIDE, SIDE, 3), dtype=np.uint8)
    halves[:, SIDE // 2 :] //= 4
    with pytest.raises(ValueError, match="half of the border"):
        fit_object_finder([halves], read_contrast)


def test_memseg_stays_on_the_object(tmp_path, finder):
    rows = []
    for seed in range(3):
        write_png(tmp_path / f"data/{seed}.png", draw_part(seed)[0])
        rows.append({"image": f"{seed}.png", "label": "negative", "split": "train", "origin": "real"})
    write_manifest(make_manifest(rows), tmp_path / "data/manifest.csv")
    method = MemSeg(tmp_path / "data", open_textures(), find_object=finder)
    pool = make_pool(tmp_path / "pool", method, PoolPlan(6))
    for row in pool.itertuples():
        foreground = finder(draw_part(int(Path(row.source_image).stem))[0])
        assert not (read_mask(tmp_path / "pool" / row.mask) & ~foreground).any()
    with pytest.raises(ValueError, match="other settings: find_object"):
        make_pool(tmp_path / "pool", replace(method, find_object=None), PoolPlan(6))
