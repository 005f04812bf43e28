"""A pool is the same whatever its batch size, its shards and what interrupted it."""

import errno
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drawing import Drawing
from PIL import Image

from defaug_utils.core import pools
from defaug_utils.core.files import lock_file
from defaug_utils.core.guards import hold_threads
from defaug_utils.core.manifest import ManifestError, image_seed, make_manifest, read_manifest, write_manifest
from defaug_utils.core.pools import (
    GeneratedImage,
    PoolPlan,
    PoolRejected,
    PoolUnfinished,
    find_failed,
    list_failures,
    list_versions,
    make_pool,
    read_recipe,
    recipe_key,
    remake,
)

COUNT = 11
RECIPE = {"size": (6, 4), "opacity": [0.15, 1.0]}
SETTINGS = {"origin": "memseg", "recipe": RECIPE, "pool_seed": 7}


def generate(
    folder: Path, count: int, make: Callable, on_images: Callable | None = None, **given
) -> pd.DataFrame:
    """A pool of drawings."""
    parts = {name: given[name] for name in ("shard", "shards", "passing") if name in given}
    method = Drawing(make, given["origin"], given["recipe"], given.get("group", 1))
    return make_pool(folder, method, PoolPlan(count, given["pool_seed"], **parts), on_images)


def generate_part(*arguments: object, **given: object) -> None:
    """A shard, whether or not it is the last."""
    with suppress(PoolUnfinished):
        generate(*arguments, **given)


def make_batch(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
    return [draw_one(index, seed) for index, seed in zip(indices, seeds, strict=True)]


def draw_one(index: int, seed: int) -> GeneratedImage:
    generator = np.random.default_rng(seed)
    image_u8 = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    mask = generator.random((4, 6)) > 0.5
    row = {"source_image": f"images/{seed % 5}.png", "mask_source": "procedural", "opacity": index / 10}
    return GeneratedImage(image_u8, mask if index != 3 else None, row)


def stop_at(index: int, stop: Callable[[], object]) -> Callable:
    """A `make_batch` that stops when it is asked for image `index`."""

    def make_until(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        if index in indices:
            stop()
        return make_batch(indices, seeds)

    return make_until


def crash() -> None:
    raise RuntimeError("the power went")


def read_all(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files of a pool that was made in one undisturbed run."""
    folder = tmp_path / "whole"
    assert len(generate(folder, COUNT, make_batch, **SETTINGS)) == COUNT
    return read_all(folder)


def test_pool_holds_images_masks_recipe_and_one_row_each(tmp_path: Path):
    folder = tmp_path / "pool"
    pool = generate(folder, COUNT, make_batch, **SETTINGS)
    pd.testing.assert_frame_equal(read_manifest(folder / "manifest.csv", check_files=True), pool)
    recipes = json.loads((folder / "recipe.json").read_text())
    for index, row in enumerate(pool.to_dict("records")):
        expected = draw_one(index, image_seed(7, index))
        assert row["seed"] == image_seed(7, index)
        assert (row["label"], row["split"], row["origin"]) == ("positive", "train", "memseg")
        assert row["recipe"] in recipes
        assert row["opacity"] == expected.row["opacity"]
        assert np.array_equal(np.asarray(Image.open(folder / row["image"])), expected.image_u8)
        if index == 3:
            assert row["mask"] == ""
        else:
            assert np.array_equal(np.asarray(Image.open(folder / row["mask"])) > 0, expected.mask)
    assert list(recipes.values()) == [
        {"size": [6, 4], "opacity": [0.15, 1.0], "origin": "memseg", "pool_seed": 7}
    ]
    assert not list(folder.glob("rows-*")), "the journals are merged into the manifest"


def make_neighbours(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
    """Images that depend on all those made beside them, as the last bits of a network's batch do."""
    shift = np.uint8(sum(indices) % 251)
    return [made._replace(image_u8=made.image_u8 + shift) for made in make_batch(indices, seeds)]


def test_groups_are_made_whole_whatever_was_cut_or_interrupted(tmp_path: Path):
    in_groups = {**SETTINGS, "group": 4}
    asked: list[list[int]] = []

    def record(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        asked.append(list(indices))
        return make_neighbours(indices, seeds)

    generate(tmp_path / "whole", COUNT, record, **in_groups)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], "with one beyond the pool, discarded"
    whole = read_all(tmp_path / "whole")
    assert len([name for name in whole if name.startswith("images")]) == COUNT
    for shard in (2, 0, 1):
        with suppress(PoolUnfinished):
            generate(tmp_path / "cut", COUNT, make_neighbours, shard=shard, shards=3, **in_groups)
    assert read_all(tmp_path / "cut") == whole
    generate(tmp_path / "grown", 6, make_neighbours, **in_groups)
    finished: list[int] = []
    generate(tmp_path / "grown", COUNT, make_neighbours, on_images=finished.append, **in_groups)
    assert finished == [6, 2, 3], "of the second group two were there already"
    assert read_all(tmp_path / "grown") == whole
    generate(tmp_path / "alone", COUNT, make_neighbours, **SETTINGS)
    assert read_all(tmp_path / "alone") != whole, "the neighbours do matter to this method"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_three_shards_are_one_run(tmp_path: Path, whole: dict, order: tuple[int, ...]):
    folder = tmp_path / "pool"
    for shard in order[:2]:
        with pytest.raises(PoolUnfinished, match=f"shard {shard} of 3 is finished"):
            generate(folder, COUNT, make_batch, shard=shard, shards=3, **SETTINGS)
    assert len(generate(folder, COUNT, make_batch, shard=order[2], shards=3, **SETTINGS)) == COUNT
    assert read_all(folder) == whole


def test_killed_shards_may_go_on_under_another_split(tmp_path: Path, whole: dict):
    folder = tmp_path / "pool"
    for shard in range(2):
        with pytest.raises(RuntimeError, match="power"):
            generate(folder, COUNT, stop_at(4 + shard, crash), shard=shard, shards=2, **SETTINGS)
    assert not (folder / "manifest.csv").exists()
    generate(folder, COUNT, make_batch, **SETTINGS)
    assert read_all(folder) == whole


@pytest.mark.parametrize("stopped_at", [0, 5, COUNT - 1])
def test_a_crashed_run_resumes_without_making_an_image_twice(tmp_path: Path, whole: dict, stopped_at: int):
    folder = tmp_path / "pool"
    made: list[int] = []
    with pytest.raises(RuntimeError, match="power"):
        generate(folder, COUNT, stop_at(stopped_at, crash), **SETTINGS)

    def record(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        made.extend(indices)
        return make_batch(indices, seeds)

    generate(folder, COUNT, record, **SETTINGS)
    assert made == list(range(stopped_at, COUNT))
    assert read_all(folder) == whole


def test_a_killed_process_loses_nothing_that_was_finished(tmp_path: Path, whole: dict):
    folder = tmp_path / "pool"
    process = multiprocessing.get_context("fork").Process(
        target=generate,
        args=(folder, COUNT, stop_at(6, lambda: os._exit(9))),
        kwargs=SETTINGS,
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(list((folder / "images").iterdir())) == 6
    generate(folder, COUNT, stop_at(5, crash), **SETTINGS)
    assert read_all(folder) == whole


@pytest.mark.parametrize("torn_bytes", [1, 2, 40])
def test_a_torn_last_journal_line_is_made_again(tmp_path: Path, whole: dict, torn_bytes: int):
    folder = tmp_path / "pool"
    with pytest.raises(RuntimeError):
        generate(folder, COUNT, stop_at(6, crash), **SETTINGS)
    journal = folder / "rows-0-of-1.jsonl"
    journal.write_bytes(journal.read_bytes()[:-torn_bytes])
    (folder / "images" / "000005.png").write_bytes(b"half of an ima")
    made: list[int] = []
    with pytest.raises(RuntimeError):
        generate(folder, COUNT, stop_at(8, crash), **SETTINGS, on_images=made.append)
    lost = 1 if torn_bytes > 1 else 0  # with one byte gone only the line's end is missing
    assert made == [6 - lost] + [1] * (2 + lost)
    generate(folder, COUNT, make_batch, **SETTINGS)
    remade = read_all(folder)
    if not lost:
        remade.pop("images/000005.png")
        whole.pop("images/000005.png")
    assert remade == whole


def test_shards_that_end_together_do_not_stumble_over_each_other(tmp_path: Path, whole: dict):
    folder = tmp_path / "pool"
    context = multiprocessing.get_context("fork")
    shards = [
        context.Process(
            target=generate_part,
            args=(folder, COUNT, make_batch),
            kwargs={**SETTINGS, "shard": shard, "shards": 4},
        )
        for shard in range(4)
    ]
    for process in shards:
        process.start()
    for process in shards:
        process.join()
    assert [process.exitcode for process in shards] == [0, 0, 0, 0]
    assert read_all(folder) == whole


def test_a_shard_waits_where_another_makes_what_the_pool_still_lacks(tmp_path: Path, monkeypatch):
    def make_failures(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        made = make_batch(indices, seeds)
        return [image._replace(row=image.row | {"check_passed": False}) for image in made]

    def refuse_further_images(path: Path, seconds: float = 1.0):
        if path.name == "rows-0-of-1.jsonl":
            raise TimeoutError
        return lock_file(path, seconds)

    plan = {**SETTINGS, "passing": COUNT}
    with monkeypatch.context() as patched:
        patched.setattr(pools, "lock_file", refuse_further_images)
        with pytest.raises(PoolUnfinished, match=r"shard 1 of 2 is finished, .* are missing"):
            generate(tmp_path, COUNT, make_failures, **plan, shard=1, shards=2)
        with pytest.raises(PoolUnfinished, match=r"shard 0 of 2 is finished, another makes what .* lacks"):
            generate(tmp_path, COUNT, make_failures, **plan, shard=0, shards=2)
        with pytest.raises(TimeoutError):
            generate(tmp_path, COUNT, make_failures, **plan)
    with pytest.raises(PoolRejected, match=rf"0 of {2 * COUNT} images .* and {COUNT} are needed"):
        generate(tmp_path, COUNT, make_failures, **plan)


def test_a_part_that_another_process_is_making_is_not_begun_twice(tmp_path: Path, whole: dict):
    folder, part = tmp_path / "pool", SETTINGS | {"shards": 2}

    def try_again(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        if 4 in indices:
            with pytest.raises(TimeoutError, match=r"rows-0-of-2\.jsonl is in use by another process"):
                generate(folder, COUNT, crash, **part)
            generate_part(folder, COUNT, make_batch, **part, shard=1)
        return make_batch(indices, seeds)

    generate(folder, COUNT, try_again, **part)
    assert read_all(folder) == whole


def test_a_journal_merged_by_another_shard_meanwhile_is_no_error(
    tmp_path: Path, whole: dict, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "pool"
    generate(folder, COUNT, make_batch, **SETTINGS)
    vanished = folder / "rows-1-of-2.jsonl"
    found = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*found(self, pattern), vanished])
    assert len(generate(folder, COUNT, crash, **SETTINGS)) == COUNT
    assert read_all(folder) == whole


def test_a_grown_pool_keeps_its_rows_and_their_review(tmp_path: Path, whole: dict):
    folder = tmp_path / "pool"
    pool = generate(folder, 4, make_batch, **SETTINGS)
    pool["accepted"] = pd.array([True, False, None, None], dtype="boolean")
    pool.loc[1, "reviewer_note"] = "off the object"
    write_manifest(pool, folder / "manifest.csv")
    with pytest.raises(RuntimeError):
        generate(folder, COUNT, stop_at(6, crash), **SETTINGS)
    grown = generate(folder, COUNT, stop_at(3, crash), **SETTINGS)
    pd.testing.assert_frame_equal(grown.head(4), pool)
    assert grown["accepted"].isna().sum() == COUNT - 2
    files = read_all(folder)
    assert files.pop("manifest.csv") != whole.pop("manifest.csv")
    assert files == whole


def test_a_finished_pool_is_not_touched_again(tmp_path: Path):
    folder = tmp_path / "pool"
    first = generate(folder, COUNT, make_batch, **SETTINGS)
    finished: list[int] = []
    again = generate(folder, COUNT, crash, on_images=finished.append, **SETTINGS)
    pd.testing.assert_frame_equal(again, first)
    assert finished == [COUNT]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"recipe": {**RECIPE, "size": [6, 5]}}, "size"),
        ({"recipe": {**RECIPE, "steps": 30}}, "steps"),
        ({"pool_seed": 8}, "pool_seed"),
        ({"origin": "diag"}, "origin"),
    ],
)
def test_another_recipe_is_refused_by_name(tmp_path: Path, changed: dict, named: str):
    folder = tmp_path / "pool"
    generate(folder, 2, make_batch, **SETTINGS)
    before = read_all(folder)
    with pytest.raises(ValueError, match=rf"a pool made with other settings: {named} .*: delete"):
        generate(folder, 2, make_batch, **{**SETTINGS, **changed})
    assert read_all(folder) == before


def test_recipe_key_knows_values_not_order_or_sequence_type():
    assert recipe_key({"a": 1, "b": (1, 2)}) == recipe_key({"b": [1, 2], "a": 1})
    assert recipe_key({"a": 1}) != recipe_key({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        recipe_key({"a": float("nan")})


@pytest.mark.parametrize(
    "numbers",
    [{"count": 0}, {"seed": -1}, {"shard": 3, "shards": 3}, {"shard": -1}, {"passing": 5}],
)
def test_impossible_plans_are_refused(numbers: dict):
    with pytest.raises(ValueError, match=rf"(?s){next(iter(numbers))}=.*must be"):
        PoolPlan(**{"count": 2, **numbers})


def test_a_pool_grows_until_enough_images_passed_or_it_is_twice_as_large(tmp_path: Path):
    def make_checked(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        made = make_batch(indices, seeds)
        return [
            m._replace(row={**m.row, "check_passed": i % 3 != 1}) for i, m in zip(indices, made, strict=True)
        ]

    finished: list[int] = []
    pool = generate(tmp_path / "pool", 4, make_checked, finished.append, passing=4, **SETTINGS)
    assert len(pool) == 6 and (~find_failed(pool)).sum() == 4 and len(list_failures(pool)) == 2
    assert sum(finished) == 6, "each image is told once"
    assert len(generate(tmp_path / "pool", 4, crash, passing=4, **SETTINGS)) == 6, "nothing is remade"
    assert len(generate(tmp_path / "pool", 4, make_checked, passing=8, **SETTINGS)) == 8
    assert not find_failed(pool.drop(columns="check_passed")).any()


def test_too_few_images_from_a_method_are_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="shorter"):
        generate(tmp_path / "pool", 4, lambda *asked: make_batch(*asked)[:-1], group=2, **SETTINGS)
    assert not (tmp_path / "pool" / "manifest.csv").exists()


@pytest.mark.parametrize("full_at", range(1, 2 * COUNT, 4))
def test_a_full_disk_is_told_and_the_pool_completes_afterwards(
    tmp_path: Path, whole: dict, monkeypatch: pytest.MonkeyPatch, full_at: int
):
    folder, saved, save = tmp_path / "pool", [], Image.Image.save

    def save_until_full(image: Image.Image, path: Path, **options) -> None:
        save(image, path, **options)
        saved.append(path)
        if len(saved) == full_at:
            path.write_bytes(path.read_bytes()[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", save_until_full)
    with pytest.raises(OSError, match=r"disk is full: .*\.png was not written"):
        generate(folder, COUNT, make_batch, **SETTINGS)
    for path, content in read_all(folder).items():
        assert path.lstrip(".").startswith("rows-") or content == whole[path], "only whole files are there"
    generate(folder, COUNT, make_batch, **SETTINGS)
    assert read_all(folder) == whole


def test_a_disk_that_fills_at_the_journal_or_the_manifest_is_told_too(
    tmp_path: Path, whole: dict, monkeypatch: pytest.MonkeyPatch
):
    folder, open_file, is_full = tmp_path / "pool", Path.open, True

    def open_until_full(path: Path, mode: str = "r", *args, **options):
        if is_full and path.suffix == ".jsonl" and "a" in mode and path.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open_file(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", open_until_full)
    with pytest.raises(OSError, match=r"disk is full: .*rows-0-of-1\.jsonl"):
        generate(folder, COUNT, make_batch, **SETTINGS)
    is_full = False

    def write_nothing(*args, **options) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_csv", write_nothing)
        with pytest.raises(OSError, match=r"disk is full: .*manifest\.csv"):
            generate(folder, COUNT, make_batch, **SETTINGS)
    generate(folder, COUNT, crash, **SETTINGS)
    assert read_all(folder) == whole


def test_a_finished_pool_that_lost_an_image_says_which(tmp_path: Path):
    folder = tmp_path / "pool"
    generate(folder, 3, make_batch, **SETTINGS)
    (folder / "images" / "000001.png").unlink()
    with pytest.raises(ManifestError, match=r"images/000001\.png' does not exist"):
        generate(folder, 3, make_batch, **SETTINGS)


def test_a_pool_keeps_the_number_of_threads_it_was_begun_with(tmp_path: Path):
    """Where PyTorch computes, other threads give other last bits, also after a restart or in a remake."""
    seen = []

    def count_threads(indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        seen.append(torch.get_num_threads())
        return make_batch(indices, seeds)

    method = Drawing(count_threads, recipe={"versions": list_versions("torch")})
    with hold_threads(3), suppress(PoolUnfinished):
        make_pool(tmp_path, method, PoolPlan(2, shard=0, shards=2))
    with hold_threads(1):
        make_pool(tmp_path, method, PoolPlan(2))
        remake(tmp_path, "images/000001.png", method)
        assert torch.get_num_threads() == 1
    assert seen == [3, 3, 3]
    assert read_recipe(tmp_path)["threads"] == 3


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "{}", '{"a": []}', '{"a": {}, "b": {}}', "[" * 100_000]
)
def test_a_damaged_recipe_is_named(tmp_path: Path, text: str):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.json can't be read"):
        read_recipe(tmp_path)
    with pytest.raises(ValueError, match=r"recipe\.json can't be read"):
        generate(tmp_path, COUNT, make_batch, **SETTINGS)


DAMAGED_LINES = [
    *("3", "[1]", '{"index": 0}', '{"index": 0, "row": [1]}', '{"index": 0, "row": {}}', "[" * 100_000),
    '{"index": 0, "row": {"image": "images/vanished.png"}}',
    '{"index": [0], "row": {"image": "images/vanished.png"}}',
]


@pytest.mark.parametrize("line", DAMAGED_LINES)
def test_a_damaged_line_of_a_journal_is_made_again(tmp_path: Path, whole: dict, line: str):
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / "rows-0-of-1.jsonl").write_text(line + "\n")
    generate(folder, COUNT, make_batch, **SETTINGS)
    assert read_all(folder) == whole


def test_the_data_set_is_looked_through_once_for_a_pool_and_not_for_each_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [{"image": f"images/{i}.png", "label": "negative", "split": "train"} for i in range(5)]
    write_manifest(make_manifest(row | {"origin": "real"} for row in rows), tmp_path / "manifest.csv")
    looked, real = [], pools.read_dataset
    monkeypatch.setattr(pools, "read_dataset", lambda folder: looked.append("read") or real(folder))
    check = pools.refuse_sources
    monkeypatch.setattr(
        pools, "refuse_sources", lambda rows, split_of: looked.append(split_of) or check(rows, split_of)
    )
    make_pool(tmp_path / "pool", Drawing(make_batch, data=tmp_path), PoolPlan(COUNT))
    assert looked[0] == "read" and len(looked) == 1 + COUNT
    assert all(split_of is looked[1] for split_of in looked[2:])
