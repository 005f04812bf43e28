"""The licence of real images: recognised or given once, and carried to recipes."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from drawing import Drawing
from layouts import draw_part, write_btad, write_folder, write_ksdd2, write_mvtec

from defaug_utils.core.licences import NOT_STATED, read_licence, write_licence
from defaug_utils.core.pools import GeneratedImage, PoolPlan, PoolUnfinished, make_pool, read_recipe, remake
from defaug_utils.data import public_sets
from defaug_utils.data.datasets import draw_few_shot, draw_validation, load_dataset
from defaug_utils.data.layouts import DatasetError, Listing
from defaug_utils.data.preparation import prepare_dataset
from defaug_utils.data.public_sets import PUBLIC_SETS, find_licence
from defaug_utils.data.surfaces import write_surfaces

SIZE = (8, 24)
NC = "CC BY-NC-SA 4.0"


def list_training(layout: str, counts: dict[str, int]) -> Listing:
    """A data set's listing with so many training images a category, and as many for test."""
    rows = [
        {"image": f"{category}/{split}/{number}.png", "split": split, "category": category}
        for category, count in counts.items()
        for split in ("train", "test")
        for number in range(count)
    ]
    return Listing(Path("set"), layout=layout, rows=rows)


def test_public_sets_are_told_by_layout_and_numbers_of_training_images():
    assert find_licence(list_training("ksdd2", {"": 2331})) == NC
    assert find_licence(list_training("mvtec", {"grid": 264})) == NC
    assert find_licence(list_training("mvtec", PUBLIC_SETS["mvtec"].training_images)) == NC
    assert "BTAD's page" in find_licence(list_training("btad", {"01": 400, "03": 1000}))


@pytest.mark.parametrize(
    ("layout", "counts"),
    [
        ("ksdd2", {"": 2330}),  # one is missing, and nobody left it out
        ("ksdd2", {"": 2332}),
        ("folder", {"": 2331}),
        ("mvtec", {"grid": 263}),
        ("mvtec", {"lattice": 264}),
        ("mvtec", {"grid": 264, "lattice": 264}),
        ("mvtec", {}),
        ("btad", {"01": 3}),
    ],
)
def test_own_parts_in_a_public_sets_layout_get_no_licence(layout: str, counts: dict):
    assert find_licence(list_training(layout, counts)) == ""


def test_images_that_were_left_out_count_as_there():
    listing = list_training("ksdd2", {"": 2329})
    listing.left_out = {"train/1.png": "train/1.png", "train/2_GT.png": "train/2.png"}
    assert find_licence(listing) == NC
    listing.left_out.popitem()
    assert find_licence(listing) == ""


def test_mvtec_ads_numbers_add_up_to_the_published_ones():
    assert len(PUBLIC_SETS["mvtec"].training_images) == 15
    assert sum(PUBLIC_SETS["mvtec"].training_images.values()) == 3629


def test_drawn_surfaces_are_under_the_projects_own_licence(tmp_path):
    write_surfaces(tmp_path / "set", 12, 8, 0, 0.3, (16, 48))
    dataset = load_dataset(tmp_path / "set")
    prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", SIZE)
    assert read_licence(tmp_path / "data") == "MIT"


@pytest.mark.parametrize("write", [write_ksdd2, write_mvtec, write_btad, write_folder])
def test_own_parts_have_no_licence_until_one_is_given(tmp_path, write):
    write(tmp_path / "set")
    dataset = load_dataset(tmp_path / "set")
    prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", SIZE)
    assert read_licence(tmp_path / "data") == NOT_STATED
    prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", SIZE, licence=" ours, not to be given on ")
    assert read_licence(tmp_path / "data") == "ours, not to be given on"
    prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", SIZE)
    assert read_licence(tmp_path / "data") == NOT_STATED, "the parameter was taken back"


def test_a_recognised_licence_survives_the_draws_and_gives_way_to_a_given_one(tmp_path, monkeypatch):
    known = PUBLIC_SETS["mvtec"]._replace(training_images={"set": 5})
    monkeypatch.setitem(public_sets.PUBLIC_SETS, "mvtec", known)
    write_mvtec(tmp_path / "set")
    dataset = load_dataset(tmp_path / "set", leave_out=["train/good/000.png"])
    dataset = draw_validation(draw_few_shot(dataset, 1), 0.3, 0)
    prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", SIZE)
    assert read_licence(tmp_path / "data") == NC
    prepare_dataset(dataset, tmp_path / "set", tmp_path / "data", SIZE, licence="bought")
    assert read_licence(tmp_path / "data") == "bought"


@pytest.mark.parametrize("licence", ["MIT\nand more", "x" * 201, 4.0, None, "bell \a"])
def test_a_licence_that_is_no_line_of_text_is_refused_before_anything_is_written(tmp_path, licence):
    write_ksdd2(tmp_path / "set")
    with pytest.raises(DatasetError, match="licence"):
        prepare_dataset(
            load_dataset(tmp_path / "set"), tmp_path / "set", tmp_path / "data", SIZE, licence=licence
        )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"one\ntwo", b"x" * 300])
def test_a_damaged_note_is_named(tmp_path, content):
    (tmp_path / "licence.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"licence\.txt is not a licence: fix or delete it"):
        read_licence(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 3}', '{"a": {}}', '{"a": {"data_licence": 3}}'])
def test_a_recipe_without_a_licence_states_none(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    if content in ("[]", "{"):
        with pytest.raises(ValueError, match="can't be read"):
            read_licence(tmp_path)
    else:
        assert read_licence(tmp_path) == NOT_STATED


def test_a_folder_that_holds_nothing_states_none(tmp_path):
    assert read_licence(tmp_path) == read_licence(tmp_path / "missing") == NOT_STATED


def draw(indices, seeds):
    images = [np.full((4, 6, 3), seed % 251, np.uint8) for seed in seeds]
    return [GeneratedImage(image_u8, None, {"source_image": "images/train-10000.png"}) for image_u8 in images]


@pytest.fixture
def data(tmp_path) -> Path:
    """A prepared data set, its licence not stated."""
    write_ksdd2(tmp_path / "set")
    prepare_dataset(load_dataset(tmp_path / "set"), tmp_path / "set", tmp_path / "data", SIZE)
    return tmp_path / "data"


def test_a_pool_tells_the_licence_of_its_data_and_is_the_same_whatever_it_is(tmp_path, data):
    method, folder = Drawing(draw, "memseg", {"size": 3}, data=data), tmp_path / "pool"
    first = make_pool(folder, method, PoolPlan(3))
    assert read_recipe(folder)["data_licence"] == read_licence(folder) == NOT_STATED
    write_licence(data, NC)
    again = make_pool(folder, method, PoolPlan(5))
    assert read_recipe(folder)["data_licence"] == read_licence(folder) == NC
    assert again["recipe"].nunique() == 1 and again["recipe"][0] == first["recipe"][0]
    assert list(json.loads((folder / "recipe.json").read_text())) == [first["recipe"][0]]
    assert (remake(folder, "images/000001.png", method).image_u8 == draw([1], [again["seed"][1]])[0][0]).all()


def test_a_pool_from_before_licences_goes_on_and_gets_one(tmp_path, data):
    method, folder = Drawing(draw, "memseg", {"size": 3}, data=data), tmp_path / "pool"
    first = make_pool(folder, method, PoolPlan(3))
    (key,) = first["recipe"].unique()
    former = {name: value for name, value in read_recipe(folder).items() if name != "data_licence"}
    (folder / "recipe.json").write_text(json.dumps({key: former}))
    write_licence(data, "MIT")
    make_pool(folder, method, PoolPlan(4))
    assert json.loads((folder / "recipe.json").read_text()) == {key: former | {"data_licence": "MIT"}}


def test_other_settings_are_still_refused_and_the_licence_is_none_of_them(tmp_path, data):
    folder = tmp_path / "pool"
    make_pool(folder, Drawing(draw, "memseg", {"size": 3}, data=data), PoolPlan(3))
    write_licence(data, NC)
    with pytest.raises(ValueError, match=r"size \(3, requested 4\)") as error:
        make_pool(folder, Drawing(draw, "memseg", {"size": 4}, data=data), PoolPlan(3))
    assert "licence" not in str(error.value)
    assert read_licence(folder) == NOT_STATED, "a refused call changes nothing"


def test_what_starts_from_no_data_tells_no_licence(tmp_path):
    make_pool(tmp_path, Drawing(lambda i, s: draw_bare(s), "ddpm", {}), PoolPlan(2))
    assert "data_licence" not in read_recipe(tmp_path) and read_licence(tmp_path) == NOT_STATED


def draw_bare(seeds):
    return [made._replace(row={}) for made in draw(range(len(seeds)), seeds)]


def test_shards_agree_on_the_recipe(tmp_path, data):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    method = Drawing(draw, "memseg", {"size": 3}, data=data)
    make_pool(whole, method, PoolPlan(4))
    for shard in (1, 0):
        with suppress(PoolUnfinished):  # the first one waits for the other
            make_pool(parts, method, PoolPlan(4, 0, shard, 2))
    assert (whole / "recipe.json").read_bytes() == (parts / "recipe.json").read_bytes()


def test_the_studio_tells_it_too(tmp_path, inpainting_folder):
    from defaug_utils.diffusion.inpainting import InpaintSettings, load_inpainter
    from defaug_utils.widgets.studio import Studio, StudioRequest

    write_ksdd2(tmp_path / "set", size=(16, 48))
    prepare_dataset(load_dataset(tmp_path / "set"), tmp_path / "set", tmp_path / "data", (16, 48), licence=NC)
    settings = InpaintSettings((16, 48), 2, 2.0)
    studio = Studio(tmp_path / "studio", tmp_path / "data", load_inpainter(inpainting_folder), settings)
    mask = draw_part(0, (16, 48), is_positive=True)[1]
    request = StudioRequest("images/train-10000.png", mask, "crack", steps=2)
    kept = studio.decide(next(studio.paint(request)), True)
    assert read_licence(studio.folder) == NC
    np.testing.assert_array_equal(studio.remake(kept.row), kept.after_u8)
