"""The contract of all methods: the same pool whatever was interrupted or cut, sources from train only."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from defaug_utils.core import pools
from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import ManifestError, image_seed, make_manifest, read_manifest, write_manifest
from defaug_utils.core.origins import ORIGINS
from defaug_utils.core.pools import (
    Method,
    PoolPlan,
    PoolUnfinished,
    make_pool,
    make_pools,
    read_recipe,
    remake,
)
from defaug_utils.core.prompts import make_prompts
from defaug_utils.core.sources import list_sources
from defaug_utils.diffusion.autoencoder import AdaptationSettings
from defaug_utils.diffusion.controlnet import TrimapModel, make_controlnet
from defaug_utils.diffusion.inpainting import InpaintSettings, load_inpainter
from defaug_utils.diffusion.text2image import TextSettings, load_text2image
from defaug_utils.masks.patches import read_defects, widen_mask
from defaug_utils.masks.sources import open_masks
from defaug_utils.masks.trimaps import TripleSet, TripleSettings, read_good_images
from defaug_utils.methods.adabldm import AdaBLDM
from defaug_utils.methods.blending import BlendSettings
from defaug_utils.methods.cut_paste import CutPaste
from defaug_utils.methods.ddpm import DDPM
from defaug_utils.methods.diag import DIAG
from defaug_utils.methods.memseg import MemSeg, MemSegSettings
from defaug_utils.methods.painting import CheckLimits
from defaug_utils.methods.paste_refined import PasteRefined
from defaug_utils.methods.textures import TextureCollection

SIZE, PLAN = (16, 48), PoolPlan(5, seed=3)
ANYTHING = CheckLimits(contrast=0, completeness=0)
PAINTED = {"masks": open_masks("procedural"), "limits": ANYTHING, "group": 2}
PROMPTS = make_prompts(["white marks", "crack"], "dark")
PASTES = ("cut_paste", "paste_refined")


def save_data(folder: Path) -> Path:
    """Eight parts with marks of their own, of which one for training is defective."""
    generator, rows = np.random.default_rng(0), []
    for number in range(8):
        label = "positive" if number == 4 else "negative"
        split = ("train", "train", "val", "test")[number % 4]
        row = {"image": f"images/{number}.png", "label": label, "split": split, "origin": "real"}
        row |= {"category": "plate", "defect_type": "pit" if label == "positive" else ""}
        write_png(folder / row["image"], generator.integers(60, 200, (48, 16, 3), dtype=np.uint8))
        if label == "positive":
            row["mask"] = f"masks/{number}.png"
            write_png(folder / row["mask"], np.pad(np.ones((6, 3), bool), ((20, 22), (5, 8))))
        rows.append(row)
    write_manifest(make_manifest(rows), folder / "manifest.csv")
    return folder


@pytest.fixture(scope="module")
def inpainter(inpainting_folder: Path):
    return load_inpainter(inpainting_folder)


@pytest.fixture(scope="module")
def text2image(text_model_folder: Path):
    return load_text2image(text_model_folder, clip_skip=1)


@pytest.fixture(scope="module")
def make_method(inpainter, text2image) -> Callable[[str, Path], Method]:
    """Gives the method of an origin for a folder of data."""
    trimap_model = TrimapModel(text2image, make_controlnet(text2image))

    def make(origin: str, data: Path) -> Method:
        painted = {"data": data, "prompts": PROMPTS, **PAINTED}
        if origin == "memseg":
            return MemSeg(
                data, TextureCollection(["flat"], lambda name: np.full((4, 4, 3), 9, np.uint8), "flat")
            )
        if origin in PASTES:
            dataset = read_manifest(data / "manifest.csv")
            known = dataset[dataset["label"] == "positive"]
            goods = read_good_images(list_sources(dataset), data, SIZE)
            triples = TripleSet(read_defects(known, data, SIZE), goods, TripleSettings(template="crack"))
            if origin == "cut_paste":
                return CutPaste(data, triples)
            settings = InpaintSettings(SIZE, steps=4, strength=0.5, padding_mask_crop=4)
            painted.pop("masks")
            return PasteRefined(inpainter=inpainter, triples=triples, settings=settings, **painted)
        if origin == "ddpm":
            settings = TextSettings(SIZE, steps=2, guidance=3.0)
            return DDPM(model=text2image, prompts=PROMPTS, settings=settings, data=data, group=2)
        if origin == "diag":
            return DIAG(inpainter=inpainter, settings=InpaintSettings(SIZE, steps=2), **painted)
        adaptation = AdaptationSettings(steps=2) if origin == "adabldm" else None
        settings = BlendSettings((16, 32), 3, latent_editing=(2, 3), image_editing=(2, 3))
        return AdaBLDM(model=trimap_model, settings=settings, adaptation=adaptation, **painted)

    return make


@pytest.fixture(scope="module", params=list(ORIGINS))
def method(request, tmp_path_factory: pytest.TempPathFactory, make_method) -> Method:
    return make_method(request.param, save_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def whole(method: Method, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool that was made in one undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    make_pool(folder, method, PLAN)
    return folder


def change(method: Method) -> Method:
    """The same method with a setting changed."""
    if method.origin == "memseg":
        return replace(method, settings=MemSegSettings(texture_share=1.0))
    if method.origin == "cut_paste":
        triples = method.triples
        return replace(method, triples=TripleSet(triples.defects, triples.goods, TripleSettings(0.3)))
    return replace(method, prompts=PROMPTS[1:])


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_rows_say_how_each_image_was_made(method: Method, whole: Path):
    pool, recipe = read_manifest(whole / "manifest.csv", check_files=True), read_recipe(whole)
    assert len(pool) == PLAN.count and set(pool["origin"]) == {method.origin} == {recipe["origin"]}
    assert set(pool["label"]) == {"positive"} and set(pool["split"]) == {"train"}
    assert pool["seed"].tolist() == [image_seed(PLAN.seed, index) for index in range(PLAN.count)]
    assert {"defaug_utils", "numpy"} <= set(recipe["versions"]) and recipe["pool_seed"] == PLAN.seed
    if method.origin == "ddpm":
        assert (pool["mask"] == "").all() and (pool["source_image"] == "").all()
        return
    for row in pool.to_dict("records"):
        mask, source = read_mask(whole / row["mask"]), read_image(method.data / row["source_image"])
        finished, outside = read_image(whole / row["image"]), ~widen_mask(mask, getattr(method, "margin", 0))
        assert mask.any() and (finished[outside] == source[outside]).all()


def test_shards_in_any_order_are_one_run(method: Method, whole: Path, tmp_path: Path):
    for shard in (2, 0):
        with pytest.raises(PoolUnfinished, match=f"shard {shard} of 3 is finished, .* of 5 images"):
            make_pool(tmp_path, method, replace(PLAN, shard=shard, shards=3))
    assert not (tmp_path / "manifest.csv").exists()
    make_pool(tmp_path, method, replace(PLAN, shard=1, shards=3))
    assert read_all(tmp_path) == read_all(whole)


def test_a_grown_pool_is_the_large_one(method: Method, whole: Path, tmp_path: Path):
    make_pool(tmp_path, method, replace(PLAN, count=3))
    finished: list[int] = []
    make_pool(tmp_path, method, PLAN, finished.append)
    assert (finished[0], sum(finished)) == (3, 5)
    assert read_all(tmp_path) == read_all(whole)


def test_stopped_in_the_middle_and_started_again(method: Method, whole: Path, tmp_path: Path, monkeypatch):
    calls = []

    def write_until(path: Path, pixels: np.ndarray) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write_png(path, pixels)

    with monkeypatch.context() as patched:
        patched.setattr(pools, "write_png", write_until)
        with pytest.raises(KeyboardInterrupt):
            make_pool(tmp_path, method, PLAN)
    assert not (tmp_path / "manifest.csv").exists()
    make_pool(tmp_path, method, PLAN)
    assert read_all(tmp_path) == read_all(whole)


def test_any_image_is_made_again_from_its_row_and_the_recipe(method: Method, whole: Path):
    for row in read_manifest(whole / "manifest.csv").iloc[[4, 1]].to_dict("records"):
        again = remake(whole, row["image"], method)
        assert (again.image_u8 == read_image(whole / row["image"])).all()
        assert again.mask is None or (again.mask == read_mask(whole / row["mask"])).all()
        told = {name: value for name, value in again.row.items() if value != ""}
        assert {name: row[name] for name in told} == told


def test_other_settings_are_refused_by_name_and_nothing_is_touched(method: Method, whole: Path):
    before, other = read_all(whole), change(method)
    name = {"memseg": "settings.texture_share", "cut_paste": "triples.scale_range"}.get(
        method.origin, "prompts"
    )
    with pytest.raises(ValueError, match=f"a pool made with other settings: {name}"):
        make_pool(whole, other, PLAN)
    with pytest.raises(ValueError, match=f"can't be remade: {name} .* differ from the pool's recipe"):
        remake(whole, "images/000000.png", other)
    with pytest.raises(ValueError, match=r"pool_seed \(3, requested 4\)"):
        make_pool(whole, method, replace(PLAN, seed=4))
    with pytest.raises(FileNotFoundError, match=r"no image 'images/000099\.png'"):
        remake(whole, "images/000099.png", method)
    assert read_all(whole) == before


@pytest.mark.parametrize("origin", ["memseg", "cut_paste", "paste_refined", "diag", "adabldm"])
def test_a_source_outside_train_is_refused_before_it_is_written(origin, make_method, tmp_path: Path):
    data = save_data(tmp_path / "data")
    method = make_method(origin, data)
    method.describe()  # it has read the data set, and would draw from it
    dataset = read_manifest(data / "manifest.csv")
    write_manifest(dataset.assign(split="test"), data / "manifest.csv")
    with pytest.raises(ManifestError, match="is test, only train images may be sources"):
        make_pool(tmp_path / "pool", method, PLAN)
    assert not list((tmp_path / "pool").rglob("*.png"))


def test_other_data_under_the_same_names_is_another_pool(method: Method, make_method, whole: Path, tmp_path):
    if method.origin == "ddpm":
        pytest.skip("starts from no image")
    data = save_data(tmp_path)
    write_png(data / "images/1.png", np.full((48, 16, 3), 99, np.uint8))
    name = r"triples\.sha256" if method.origin in PASTES else r"sources\.sha256"
    with pytest.raises(ValueError, match=name):
        make_pool(whole, make_method(method.origin, data), PLAN)


def test_of_several_pools_each_shard_is_made_before_one_says_that_it_waits(make_method, tmp_path: Path):
    data = save_data(tmp_path / "data")
    methods = [make_method(origin, data) for origin in ("memseg", "cut_paste")]
    for shard in (0, 1):
        plan = PoolPlan(4, shard=shard, shards=2)
        wanted = {tmp_path / method.origin: (method, plan) for method in methods}
        if shard == 0:
            with pytest.raises(PoolUnfinished, match=r"memseg(.*\n.*)cut_paste"):
                make_pools(wanted)
    assert [len(pool) for pool in make_pools(wanted)] == [4, 4]
