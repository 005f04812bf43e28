"""Refined pastes: cut-and-paste's own, redrawn inside the widened mask only, the defect still seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layouts import prepare_grid

from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.origins import SCENARIOS, MixingError, Run
from defaug_utils.core.pools import PoolPlan, make_pool, read_recipe
from defaug_utils.core.prompts import make_prompts
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.diffusion.inpainting import InpaintSettings, load_inpainter
from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob
from defaug_utils.evaluation.pool_quality import check_pool
from defaug_utils.masks.patches import read_defects, widen_mask
from defaug_utils.masks.trimaps import TripleSet, TripleSettings, read_good_images
from defaug_utils.methods import paste_refined
from defaug_utils.methods.cut_paste import CutPaste
from defaug_utils.methods.painting import CheckLimits
from defaug_utils.methods.paste_refined import PasteRefined
from defaug_utils.protocol.mixing import compose_training_set, find_leaks
from defaug_utils.protocol.run_folder import RunPools

SIZE, PLAN = (32, 48), PoolPlan(6, seed=5)
TEMPLATE = "a {defect_type}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_grid(tmp_path_factory.mktemp("grid"), SIZE)


@pytest.fixture(scope="module")
def method(data: Path, inpainting_folder: Path) -> PasteRefined:
    dataset = read_dataset(data)
    goods = read_good_images(list_sources(dataset), data, SIZE)
    triples = TripleSet(read_defects(dataset, data, SIZE), goods, TripleSettings(template=TEMPLATE))
    return PasteRefined(
        data=data,
        inpainter=load_inpainter(inpainting_folder),
        triples=triples,
        prompts=make_prompts(["a bent", {"text": "a glue", "negative": "wet"}], "dark"),
        settings=InpaintSettings(SIZE, steps=4, strength=0.5, padding_mask_crop=4),
        limits=CheckLimits(contrast=0, completeness=0),
        group=2,
    )


@pytest.fixture(scope="module")
def pools(method: PasteRefined, data: Path):
    """Folder, rows and those of cut-and-paste of the same triples and seed."""
    folder, pasted = data.parent / "refined", CutPaste(data, method.triples)
    return folder, make_pool(folder, method, PLAN), make_pool(data.parent / "cut_paste", pasted, PLAN)


def test_the_same_pastes_are_redrawn_in_their_masks_and_a_margin(pools, method, data):
    folder, pool, pasted = pools
    told = ["source_image", "category", "defect_type", "mask_source", "defect_source", "seed"]
    assert pool[told].equals(pasted[told])
    for row in pool.itertuples():
        image_u8, mask = read_image(folder / row.image), read_mask(folder / row.mask)
        paste_u8 = read_image(data.parent / "cut_paste" / row.image)
        assert (mask == read_mask(data.parent / "cut_paste" / row.mask)).all()
        place = widen_mask(mask, row.margin)
        assert (image_u8[~place] == read_image(data / row.source_image)[~place]).all()
        changed = (image_u8 != paste_u8).any(axis=2)
        assert changed[mask].any() and changed[place & ~mask].any()
    check_pool(folder, pool, data)
    assert set(pool["margin"]) == {method.margin} and (pool["check_outside"] == 0).all()


def test_the_prompt_is_the_defects(pools):
    _, pool, _ = pools
    assert set(pool["defect_type"]) == {"bent", "glue"}
    assert (pool["prompt"] == "a " + pool["defect_type"]).all()
    assert set(zip(pool["prompt"], pool["negative_prompt"], strict=True)) == {
        ("a bent", "dark"),
        ("a glue", "wet"),
    }


def test_what_a_scenario_does_not_know_is_a_leak_as_of_cut_and_paste(pools, method, data):
    folder, pool, _ = pools
    assert [find_leaks(pool, scenario) for scenario in SCENARIOS] == ["few_shot", "", ""]
    learned = read_recipe(folder)["learned_from"]
    assert learned == sorted({defect.name for defect in method.triples.defects})
    dataset, found = read_dataset(data), RunPools({"paste_refined": pool}, {"paste_refined": learned})
    rows = compose_training_set(dataset, found, Run("full-shot", "paste_refined", 6, 0))
    assert (rows["origin"] == "paste_refined").sum() == 6
    with pytest.raises(MixingError, match="is a real positive that this scenario does not know"):
        compose_training_set(dataset, found, Run("zero-shot", "paste_refined", 6, 0))


def test_the_defect_must_still_be_seen_on_the_good_part(method, monkeypatch):
    """A model that gives the paste back passes at once; one that paints the good part back never does."""
    asked, goods = [], {good.name: good.image_u8 for good in method.triples.goods}

    def give(jobs: list[InpaintJob], is_kept: bool) -> list[InpaintedImage]:
        asked.append(len(jobs))
        pairs = zip(jobs, rows, strict=True)
        images = [job.image_u8 if is_kept else goods[row["source_image"]] for job, row in pairs]
        return [InpaintedImage(image_u8, image_u8, True, 9) for image_u8 in images]

    strict = replace(method, limits=CheckLimits(contrast=1, completeness=0.01), max_attempts=2)
    rows = [strict.plan_image(index, index + 7)[1] for index in range(2)]
    for is_kept in (True, False):
        monkeypatch.setattr(paste_refined, "inpaint_batch", lambda _, jobs, __, k=is_kept: give(jobs, k))
        made = strict.make([0, 1], [7, 8])
        assert [one.row["check_passed"] for one in made] == [is_kept] * 2
        assert [one.row["attempt"] for one in made] == [0, 0]
        assert (made[0].row["check_contrast"] > 1) == is_kept
    assert asked == [2, 2, 2]


def test_wrong_wishes_are_refused_together(method):
    with pytest.raises(ValueError, match=r"'a bent' is not on the board(.*\n.*)margin -1 must be"):
        replace(method, prompts=make_prompts(["a glue"]), margin=-1)
    with pytest.raises(ValueError, match="needs multiples of 2"):
        replace(method, settings=InpaintSettings((15, 48), 2))


def test_masks_are_widened_to_all_sides():
    mask = np.zeros((7, 7), bool)
    mask[0, 3] = True
    assert np.argwhere(widen_mask(mask, 2)).tolist() == [[y, x] for y in range(3) for x in range(1, 6)]
    assert (widen_mask(mask, 0) == mask).all()
