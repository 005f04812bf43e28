"""The patch memory against slow references, what it finds, and the memories that it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from torch import nn

from defaug_utils.evaluation.metrics import measure_scores
from defaug_utils.evaluation.patch_memory import (
    MemoryPlan,
    choose_patches,
    compare_with_memory,
    fit_memory,
    read_memory,
    read_patches,
    score_by_memory,
    spread_patches,
    write_memory,
)
from defaug_utils.evaluation.pixel_metrics import measure_pixels
from defaug_utils.training.backbones import FeatureNetwork, open_features

WEIGHTS = Path(__file__).parents[1] / "models" / "backbones" / "resnet10_quarter.safetensors"
MARK = np.s_[40:60, 24:44]
PLAN = MemoryPlan(share=0.05, neighbours=5)


@pytest.fixture(scope="module")
def memory(samples, network):
    return fit_memory(samples, network, PLAN)


def make_steps_network() -> FeatureNetwork:
    """Layers that hand a channel on as it is, and then every other place of it."""
    parts = {"fine": nn.Conv2d(3, 1, 1, bias=False), "coarse": nn.Conv2d(1, 1, 1, stride=2, bias=False)}
    with torch.no_grad():
        parts["fine"].weight.copy_(torch.tensor([255.0, 0, 0]).reshape(1, 3, 1, 1))
        parts["coarse"].weight.fill_(1)
    return FeatureNetwork("steps", parts, "unit")


def test_a_patch_is_the_mean_of_its_neighbourhood_in_every_layer():
    image_u8 = np.zeros((4, 6, 3), np.uint8)
    image_u8[..., 0] = np.arange(24).reshape(4, 6)
    (found,) = read_patches(make_steps_network(), image_u8[None], MemoryPlan(layers=("coarse", "fine")))
    assert found.shape == (1, 4, 6, 2)
    assert found[0, 1, 2, 1] == pytest.approx(8)  # the middle of 1 … 15
    assert found[0, 0, 0, 1] == pytest.approx((0 + 1 + 6 + 7) / 4)  # nothing is made up beyond the border
    # places 0, 2, 4, 12, 14, 16: the means over the border's neighbours are 7, 8 and 9
    assert found[0, :, 0, 0] == pytest.approx([7] * 4)
    assert found[0, 0, 2:4, 0] == pytest.approx([7.75, 8.25])


def choose_slowly(patches: np.ndarray, count: int, first: int) -> list[int]:
    chosen = [first]
    while len(chosen) < count:
        gaps = [min(np.linalg.norm(patch - patches[one]) for one in chosen) for patch in patches]
        chosen.append(int(np.argmax(gaps)))
    return chosen


def test_each_further_patch_is_the_farthest_from_all_before():
    patches = np.random.default_rng(3).normal(size=(60, 4)).astype(np.float32)
    for seed in range(3):
        found = choose_patches(patches, 12, seed).tolist()
        assert found == choose_slowly(patches, 12, found[0])
    assert len({int(choose_patches(patches, 1, seed)[0]) for seed in range(8)}) > 1


def test_by_hand_whatever_the_first_the_middle_is_among_three():
    line = np.array([[0], [1], [2], [50], [98], [100]], np.float32)
    for seed in range(10):
        assert 3 in choose_patches(line, 3, seed)
        assert sorted(choose_patches(line, 6, seed).tolist()) == list(range(6))


def test_patches_that_are_all_alike_are_chosen_once_each():
    assert sorted(choose_patches(np.ones((7, 3), np.float32), 7, seed=1).tolist()) == list(range(7))


def test_the_memory_keeps_its_share_of_good_patches_and_repeats(samples, network, memory):
    assert memory.patches.shape == (round(0.05 * 20 * 12 * 8), 32 + 64)
    assert memory.patches.dtype == np.float32
    np.testing.assert_array_equal(fit_memory(samples, network, PLAN).patches, memory.patches)
    other = fit_memory(samples, network, replace(PLAN, seed=1))
    assert not np.array_equal(other.patches, memory.patches)


def test_only_good_training_images_are_learned_from(samples, network, memory):
    images_u8 = samples.images_u8.clone()
    is_good = ((samples.table["split"] == "train") & (samples.table["label"] == "negative")).to_numpy()
    images_u8[~is_good] = 7
    changed = fit_memory(samples._replace(images_u8=images_u8), network, PLAN)
    np.testing.assert_array_equal(changed.patches, memory.patches)


def test_a_projection_of_few_channels_chooses_from_the_same_patches(samples, network, memory):
    found = fit_memory(samples, network, replace(PLAN, projected=16))
    assert found.patches.shape == memory.patches.shape
    assert not np.array_equal(found.patches, memory.patches)


def test_what_is_remembered_whole_has_no_distance(samples, network):
    whole = fit_memory(samples, network, MemoryPlan(share=1.0, neighbours=1))
    known, foreign = compare_with_memory(whole, network, samples.images_u8[[0, -1]].numpy())
    assert known.image < 1e-3 * foreign.image


def test_an_images_score_is_equation_7(samples, network, memory):
    images_u8 = samples.images_u8[-5:].numpy()
    (maps,) = read_patches(network, images_u8, PLAN)
    for patches, found in zip(maps, compare_with_memory(memory, network, images_u8), strict=True):
        flat = patches.reshape(-1, patches.shape[-1]).astype(float)
        gaps = np.linalg.norm(flat[:, None] - memory.patches, axis=2)
        np.testing.assert_allclose(found.patches.ravel(), gaps.min(axis=1), rtol=1e-3)
        farthest, nearest = np.unravel_index(np.argmax(gaps * (gaps == gaps.min(1)[:, None])), gaps.shape)
        around = np.argsort(np.linalg.norm(memory.patches - memory.patches[nearest], axis=1))[:5]
        gap = gaps[farthest, nearest]
        weight = 1 - np.exp(gap) / np.exp(gaps[farthest, around]).sum()
        assert 0 < weight < 1
        assert found.image == pytest.approx(weight * gap, rel=1e-3)


def test_one_neighbour_leaves_the_largest_distance(samples, network, memory):
    alone = replace(memory, plan=replace(PLAN, neighbours=1))
    (found,) = compare_with_memory(alone, network, samples.images_u8[-1:].numpy())
    assert found.image == pytest.approx(found.patches.max())


def test_defects_are_found_and_the_table_is_one_of_scores(samples, network, memory):
    table = score_by_memory(memory, network, samples)
    assert table.columns.tolist() == ["image", "split", "label", "score"]
    assert table["split"].tolist() == ["val"] * 4 + ["test"] * 10
    test = table[table["split"] == "test"]
    assert average_precision_score(test["label"] == "positive", test["score"]) == 1
    assert measure_scores(table, resamples=10)["ap"] == 1


def test_scores_of_pixels_stand_where_the_defect_is(samples, network, memory):
    mask = np.zeros((96, 64), bool)
    mask[MARK] = True
    found = list(compare_with_memory(memory, network, samples.images_u8[samples.indices("test")].numpy()))
    maps = [spread_patches(scores.patches, (64, 96)) for scores in found]
    assert {(one.shape, str(one.dtype)) for one in maps} == {((96, 64), "float32")}
    masks = [mask if label else np.zeros_like(mask) for label in [False] * 6 + [True] * 4]
    assert measure_pixels(zip(maps, masks, strict=True))["pixel_auroc"] > 0.9


def test_equal_patches_spread_to_equal_pixels():
    np.testing.assert_allclose(spread_patches(np.full((3, 2), 4, np.float32), (16, 24)), 4, rtol=1e-5)


def test_a_stored_memory_gives_the_same_scores(samples, network, memory, tmp_path):
    write_memory(memory, tmp_path / "memory.safetensors")
    read = read_memory(tmp_path / "memory.safetensors", network)
    assert (read.plan, read.network, read.size) == (memory.plan, network.describe(), (64, 96))
    np.testing.assert_array_equal(read.patches, memory.patches)
    tables = [score_by_memory(one, network, samples) for one in (memory, read)]
    np.testing.assert_array_equal(*(table["score"] for table in tables))


def test_a_memory_of_another_backbone_is_refused(samples, network, memory, tmp_path):
    write_memory(memory, tmp_path / "memory.safetensors")
    weights = load_file(WEIGHTS)
    weights["conv1.weight"][0, 0, 0, 0] += 1
    save_file(weights, tmp_path / "other.safetensors")
    other = open_features("resnet10_quarter", str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match=r"memory\.safetensors was made with other features: fingerprint \("):
        read_memory(tmp_path / "memory.safetensors", other)
    with pytest.raises(ValueError, match=r"backbone \(resnet10_quarter, requested steps\)"):
        read_memory(tmp_path / "memory.safetensors", make_steps_network())
    with pytest.raises(ValueError, match="use the backbone and weights that it was fitted with"):
        score_by_memory(memory, other, samples)


def test_images_of_another_size_are_refused(network, memory):
    with pytest.raises(
        ValueError, match="images are 64 × 48, but the memory was made from images of 64 × 96"
    ):
        list(compare_with_memory(memory, network, np.zeros((1, 48, 64, 3), np.uint8)))


def test_files_that_are_no_memory(network, memory, tmp_path):
    path = tmp_path / "memory.safetensors"
    with pytest.raises(FileNotFoundError):
        read_memory(path, network)
    write_memory(memory, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a readable patch memory"):
        read_memory(path, network)
    with pytest.raises(ValueError, match="not a readable patch memory"):
        read_memory(WEIGHTS, network)


def test_more_neighbours_than_good_images_or_kept_patches(samples, network):
    with pytest.raises(ValueError, match="21 neighbours are requested, there are 20 good training images"):
        fit_memory(samples, network, MemoryPlan(share=1.0, neighbours=21))
    with pytest.raises(ValueError, match=r"keeps 2 patch\(es\) of 1920"):
        fit_memory(samples, network, MemoryPlan(share=0.001))
    without = samples._replace(table=samples.table.assign(label="positive"))
    with pytest.raises(ValueError, match="there are 0 good training images"):
        fit_memory(without, network, MemoryPlan(neighbours=1))


def test_unknown_layers(samples, network):
    with pytest.raises(ValueError, match="resnet10_quarter has no layer fifth"):
        fit_memory(samples, network, MemoryPlan(layers=("eighth", "fifth")))


def test_a_wrong_plan_is_told_all_at_once():
    with pytest.raises(ValueError, match="4 problem") as error:
        MemoryPlan(layers=(), share=0, neighbours=0, projected=0)
    for word in ("layers", "share 0", "neighbours 0", "projected 0"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "patches", [np.full((3, 4), np.nan), np.ones((3, 4), int), np.ones((0, 4)), np.ones(3)]
)
def test_a_memory_without_finite_features_is_refused(memory, network, tmp_path: Path, patches: np.ndarray):
    write_memory(replace(memory, patches=patches), tmp_path / "memory.safetensors")
    with pytest.raises(ValueError, match=r"memory\.safetensors is not a readable patch memory"):
        read_memory(tmp_path / "memory.safetensors", network)
