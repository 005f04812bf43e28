"""Triples: the same for a seed and index, defects inside the object only, impossible wishes told."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import ManifestError, make_manifest
from defaug_utils.masks.patches import (
    cut_defect,
    find_places,
    move_inside,
    paste_defect,
    read_defects,
    turn_defect,
)
from defaug_utils.masks.trimaps import (
    GoodImage,
    TripleSet,
    TripleSettings,
    TurnedMasks,
    make_trimap,
    make_triple,
    read_good_images,
    write_prompt,
)

SIZE = (48, 40)


def draw_noise(seed: int, low: int = 0, high: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (40, 48, 3), dtype=np.uint8)


def make_defect(
    rows: slice = slice(5, 9), columns: slice = slice(10, 20), kind: str = "hole", number: int = 0
):
    mask = np.zeros((40, 48), bool)
    mask[rows, columns] = True
    return cut_defect(draw_noise(number, 200, 255), mask, "nut", kind, f"bad{number}.png")


def make_good(number: int = 0) -> GoodImage:
    rows, columns = np.mgrid[:40, :48]
    disc = (rows - 20) ** 2 + (columns - 24) ** 2 < 17**2
    return GoodImage(draw_noise(number), disc, "nut", f"good{number}.png")


@pytest.fixture
def triples() -> TripleSet:
    defects = [make_defect(), make_defect(slice(0, 40), slice(0, 1), "crack", 1), make_defect(number=2)]
    return TripleSet(defects, [make_good(), make_good(1)], TripleSettings(max_attempts=20), count=12, seed=5)


def test_defects_lie_inside_the_object_and_nothing_else_changes(triples: TripleSet):
    goods = {good.name: good for good in triples.goods}
    triples.defects = [defect for defect in triples.defects if defect.defect_type == "hole"]
    for triple in triples:
        good = goods[triple.good]
        assert triple.mask.any() and good.foreground[triple.mask].all()
        assert (triple.image_u8[~triple.mask] == good.image_u8[~triple.mask]).all()
        assert triple.image_u8[triple.mask].min() >= 200, "the defect's own pixels"
        assert (triple.trimap_u8[triple.mask] == 255).all()
        assert (triple.trimap_u8[~triple.mask & good.foreground] == 127).all()
        assert (triple.trimap_u8[~good.foreground] == 0).all()
        assert triple.prompt == "a nut with a hole"


def test_a_triple_is_decided_by_seed_and_index(triples: TripleSet):
    triples.defects = [defect for defect in triples.defects if defect.defect_type == "hole"]
    same = TripleSet(triples.defects, triples.goods, triples.settings, count=99, seed=5)
    other = TripleSet(triples.defects, triples.goods, triples.settings, count=12, seed=6)
    for index in (11, 0, 7):
        assert (triples[index].image_u8 == same[index].image_u8).all()
    assert any((one.image_u8 != two.image_u8).any() for one, two in zip(triples, other, strict=True))
    assert len(triples) == len(list(triples)) == 12


def test_scales_and_angles_vary_within_their_range(triples: TripleSet):
    triples.defects = [defect for defect in triples.defects if defect.defect_type == "hole"]
    areas = [np.count_nonzero(triple.mask) for triple in triples]
    assert len(set(areas)) > 2
    assert all(40 * 0.85**2 * 0.8 < area < 40 * 1.15**2 * 1.6 for area in areas)


def test_a_defect_larger_than_the_object_is_told_after_bounded_attempts():
    huge = make_defect(slice(0, 40), slice(0, 48))
    with pytest.raises(
        ValueError, match=r"nut/hole: none of 7 rotated defects fits .*bad0.png.*the object on good0"
    ):
        make_triple([huge], [make_good()], TripleSettings(max_attempts=7), 0)


def test_a_defect_that_fits_at_one_place_only_is_put_there():
    foreground, shape = np.zeros((40, 48), bool), np.ones((4, 6), bool)
    foreground[30:34, 40:46] = True
    assert find_places(foreground, shape).tolist() == [[30, 40]]
    assert len(find_places(foreground, np.ones((5, 6), bool))) == 0
    assert len(find_places(foreground, np.ones((50, 6), bool))) == 0


def test_places_agree_with_trying_them_all():
    generator = np.random.default_rng(0)
    foreground = make_good().foreground & (generator.random((40, 48)) > 0.002)
    shape = generator.random((7, 9)) > 0.6
    tried = [
        [top, left]
        for top in range(34)
        for left in range(40)
        if not (shape & ~foreground[top : top + 7, left : left + 9]).any()
    ]
    assert tried and find_places(foreground, shape).tolist() == tried


@pytest.mark.parametrize("corner", [(slice(0, 3), slice(0, 4)), (slice(36, 40), slice(40, 48))])
def test_a_mask_at_the_border_is_cut_turned_and_pasted(corner):
    defect = make_defect(*corner)
    assert np.count_nonzero(defect.mask) == (corner[0].stop - corner[0].start) * (
        corner[1].stop - corner[1].start
    )
    for angle in (0, 45, 90, 200):
        turned = turn_defect(defect, angle, 1.0)
        assert np.count_nonzero(turned.mask) >= np.count_nonzero(defect.mask)
        box = tuple(slice(10, 10 + side) for side in turned.mask.shape)
        image_u8, mask = paste_defect(make_good().image_u8, turned, box)
        assert image_u8[mask].min() >= 200


def test_turning_by_nothing_changes_nothing_and_a_quarter_turn_is_exact():
    defect = make_defect()
    same, quarter = turn_defect(defect, 0, 1.0), turn_defect(defect, 90, 1.0)
    assert (same.mask == defect.mask).all() and (
        same.image_u8[same.mask] == defect.image_u8[defect.mask]
    ).all()
    assert (quarter.mask == np.rot90(defect.mask)).all()
    assert (quarter.image_u8[quarter.mask] == np.rot90(defect.image_u8)[np.rot90(defect.mask)]).all()


@pytest.mark.parametrize("angle", [0, 30, 45, 77])
def test_a_crack_of_one_pixel_stays_whole(angle: int):
    turned = turn_defect(make_defect(slice(5, 6), slice(5, 30)), angle, 0.85)
    count, _ = cv2.connectedComponents(turned.mask.astype(np.uint8))
    assert count == 2


def test_empty_trimaps_are_refused():
    whole, nothing = np.ones((4, 5), bool), np.zeros((4, 5), bool)
    for mask, foreground, said in ((nothing, whole, "no defect"), (whole, nothing, "no object")):
        with pytest.raises(ValueError, match=said):
            make_trimap(mask, foreground)
    with pytest.raises(ValueError, match="expected the same shape, and bool"):
        make_trimap(whole, whole.astype(np.uint8))
    with pytest.raises(ValueError, match="mask is empty"):
        cut_defect(draw_noise(0), np.zeros((40, 48), bool))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "expected text"),
        ("a {part}", "no fields except"),
        ("a {category", "can't be read"),
        ("{0}", "no fields"),
    ],
)
def test_templates_that_make_no_sense(template: str, said: str):
    with pytest.raises(ValueError, match=said):
        TripleSettings(template=template)


def test_prompts():
    assert write_prompt("a {category} with a {defect_type}", "metal_nut", "bent") == "a metal nut with a bent"
    with pytest.raises(ValueError, match="has no defect_type; write it out instead"):
        write_prompt("a {category} with a {defect_type}", "nut", "")
    with pytest.raises(ManifestError, match="has no category"):
        TripleSet([make_defect()._replace(category="")], [make_good()._replace(category="")])
    with pytest.raises(ManifestError, match="'nut' has defects, but no good image"):
        TripleSet([make_defect()], [make_good()._replace(category="bolt")])


@pytest.fixture
def dataset(tmp_path: Path):
    rows = []
    for number, (split, label, kind) in enumerate(
        [("train", "negative", "")] * 2
        + [("train", "positive", "hole")] * 3
        + [("train", "positive", "crack")]
        + [("test", "positive", "hole")] * 2
    ):
        row = {"image": f"images/{number}.png", "label": label, "split": split, "origin": "real"}
        row |= {"category": "nut", "defect_type": kind}
        write_png(tmp_path / row["image"], draw_noise(number))
        if label == "positive":
            mask = np.zeros((40, 48), bool)
            mask[10:20, 4 : 5 + number] = True
            row["mask"] = f"masks/{number}.png"
            write_png(tmp_path / row["mask"], mask)
        rows.append(row)
    return make_manifest(rows)


def test_defects_come_from_training_positives_only(tmp_path: Path, dataset):
    defects = read_defects(dataset, tmp_path, SIZE)
    assert [defect.name for defect in defects] == [f"images/{number}.png" for number in range(2, 6)]
    assert [defect.defect_type for defect in defects] == ["hole"] * 3 + ["crack"]
    assert np.count_nonzero(defects[0].mask) == 10 * 3
    goods = read_good_images(dataset[dataset["label"] == "negative"], tmp_path, (24, 20))
    assert [good.image_u8.shape for good in goods] == [(20, 24, 3)] * 2 and goods[0].foreground.all()


def test_a_data_set_without_masks_is_told(tmp_path: Path, dataset):
    with pytest.raises(ManifestError, match="none of 4 training positives has a mask"):
        read_defects(dataset.assign(mask=""), tmp_path, SIZE)


def test_all_broken_files_are_told_at_once(tmp_path: Path, dataset):
    write_png(tmp_path / "masks/2.png", np.zeros((40, 48), bool))
    write_png(tmp_path / "masks/3.png", np.ones((4, 4), bool))
    (tmp_path / "images/5.png").write_bytes(b"no image")
    with pytest.raises(ManifestError, match="3 problem") as told:
        read_defects(dataset, tmp_path, SIZE)
    assert all(name in str(told.value) for name in ("2.png", "3.png", "5.png"))
    with pytest.raises(ManifestError, match=r"images/0.png: no object"):
        read_good_images(dataset.head(2), tmp_path, SIZE, lambda image_u8: np.zeros(image_u8.shape[:2], bool))


def test_drawn_masks_are_moved_inside_the_object_only_where_they_must():
    generator, foreground = np.random.default_rng(0), make_good().foreground
    inside, outside = np.zeros((2, 40, 48), bool)
    inside[18:20, 20:25] = True
    outside[0:3, 0:4] = True
    assert move_inside(inside, foreground, generator) is inside
    moved = move_inside(outside, foreground, generator)
    assert np.count_nonzero(moved) == 12 and foreground[moved].all()
    assert move_inside(~inside, foreground, generator) is None


def test_shapes_of_known_defects_as_a_mask_source():
    source = TurnedMasks([make_defect(), make_defect(kind="crack", number=1)])
    draws = [source.draw(seed, SIZE) for seed in range(20)]
    assert all(mask.shape == (40, 48) and 20 < np.count_nonzero(mask) < 90 for mask, *_ in draws)
    assert {draw.name for draw in draws} == {"bad0.png", "bad1.png"}
    assert (source.draw(3, SIZE).mask == draws[3].mask).all()
    assert source.describe() != TurnedMasks([make_defect()]).describe()
    with pytest.raises(ValueError, match=r"none of 50 rotated shapes fits into 6 × 5 pixels"):
        source.draw(0, (6, 5))
    with pytest.raises(ValueError, match="0 defects"):
        TurnedMasks([])


def test_a_turned_mask_brings_its_defects_prompt_along():
    defects = [make_defect(), make_defect(kind="deep_crack", number=1)]
    source = TurnedMasks(defects, template="a {defect_type}")
    draws = [source.draw(seed, SIZE) for seed in range(20)]
    found = {(draw.name, draw.text) for draw in draws}
    assert found == {("bad0.png", "a hole"), ("bad1.png", "a deep crack")}
    assert source.describe()["mask_texts"] == ["a deep crack", "a hole"]
    assert TurnedMasks(defects).draw(0, SIZE).text == ""
