"""Pools of generated images: one shape for every method, the same images whatever was interrupted or cut."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

import defaug_utils
from defaug_utils.core import guards
from defaug_utils.core.files import append_line, lock_file, read_journal, write_json, write_png
from defaug_utils.core.manifest import (
    image_seed,
    make_manifest,
    read_manifest,
    refuse_sources,
    write_manifest,
)
from defaug_utils.core.sources import read_dataset

MAX_GROWTH = 2  # a pool whose images fail their checks grows up to so many times its count


class PoolUnfinished(Exception):
    """This shard is made, and the pool waits for the others: no failure, but no pool yet either."""


class GeneratedImage(NamedTuple):
    """One image of a pool, before it is written."""

    image_u8: np.ndarray  #: shape (height, width, 3), uint8
    mask: np.ndarray | None  #: shape (height, width), bool, true on the defect; None where none is known
    row: dict  #: manifest columns that the method knows (source_image, mask_source, prompt, …)


class Method(Protocol):
    """What makes images, with all its settings. See `book/adding_a_method.md`."""

    origin: str  #: its row in the registry of origins
    data: Path | None  #: the data set whose training images may be sources; None where there is no source
    group: int  #: images made together, since they depend on their neighbours' last bits; else 1

    def describe(self) -> dict:
        """Everything but the seed that an image depends on, as JSON values; refuses what makes no sense."""

    def make(self, indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        """One image for each index, made from its index, its seed and the whole group alone."""


@dataclass(frozen=True)
class PoolPlan:
    """How much of a pool is made, and which part of it."""

    count: int  #: images of the whole pool, all shards together; a pool may be made larger later
    seed: int = 0  #: from which the images' own seeds are derived
    shard: int = 0  #: the part to make, from 0: the groups g with g mod `shards` = `shard`
    shards: int = 1  #: number of parts
    passing: int = 0  #: images that have to pass their checks; for them the pool grows, up to twice `count`

    def __post_init__(self) -> None:
        limit = MAX_GROWTH * self.count
        demands = {
            "count must be at least 1": self.count >= 1,
            "seed must be at least 0": self.seed >= 0,
            f"shard must be in 0 … {self.shards - 1}": 0 <= self.shard < self.shards,
            f"passing must be in 0 … {limit}, twice the count": 0 <= self.passing <= limit,
        }
        guards.check_demands(str(self), demands)

    @property
    def part(self) -> int:
        """About how many images the shard has."""
        return -(-self.count // self.shards)


def make_pool(
    folder: Path | str, method: Method, plan: PoolPlan, on_images: Callable[[int], None] | None = None
) -> pd.DataFrame:
    """Make a pool of positives, going on where an earlier run of the same recipe stopped.

    On one machine, a pool has the same bytes in any process, in shards and after restarts. So groups are
    always made whole (members beyond `count` are thrown away), and where PyTorch computes, the recipe keeps
    the number of threads that it was begun with. Pools begun with different numbers, or made on another
    processor, may differ by a few grey levels here and there.

    The folder holds `manifest.csv`, which is returned, `recipe.json`, `images/` and `masks/`; images that
    failed their checks stay, see `find_failed`. `on_images` hears the number of images just finished.

    Raises:
        PoolUnfinished: this shard is made, and others are not yet.
        ValueError: the folder holds a pool of another recipe or seed (all differences are named).
        ManifestError: an image started from something else than a training image of the data set.
        FileNotFoundError: there is no data set.
    """
    folder, recipe = Path(folder), describe_pool(method, plan.seed)
    split_of = (
        None if method.data is None else read_dataset(method.data).set_index("image")["split"].to_dict()
    )
    recipe = _claim_pool(folder, recipe)
    writer = _PoolWriter(folder, method, split_of, recipe_key(recipe), on_images or (lambda finished: None))
    limit = MAX_GROWTH * plan.count
    with _hold_threads_of(recipe):
        pool = writer.make(plan)
        while len(pool) < limit and (missing := plan.passing - int((~find_failed(pool)).sum())) > 0:
            pool = writer.make(replace(plan, count=min(limit, len(pool) + missing), shard=0, shards=1))
    return pool


def make_pools(
    wanted: Mapping[Path, tuple[Method, PoolPlan]], on_images: Callable[[int], None] | None = None
) -> list[pd.DataFrame]:
    """Make several pools as `make_pool` does; of shards, each pool's is made before any is said to wait."""
    pools, waiting = [], []
    for folder, (method, plan) in wanted.items():
        try:
            pools.append(make_pool(folder, method, plan, on_images))
        except PoolUnfinished as shard:
            waiting.append(str(shard))
    if waiting:
        raise PoolUnfinished("\n".join(waiting))
    return pools


def remake(folder: Path | str, image: str, method: Method) -> GeneratedImage:
    """Make one image of a pool again with the method that made it; on the same machine, to the same byte.

    Raises:
        FileNotFoundError: there is no pool, or no such image in it.
        ValueError: the method differs from the pool's recipe (all differences are named).
    """
    pool = read_manifest(Path(folder) / "manifest.csv").set_index("image")
    if image not in pool.index or not (Path(folder) / image).is_file():
        raise FileNotFoundError(f"{folder} has no image {image!r}: take one of its manifest")
    recipe = read_recipe(folder, pool.loc[image, "recipe"])
    found = {name: value for name, value in recipe.items() if name != "threads"}  # these are kept below
    differing = guards.list_differences(found, describe_pool(method, recipe.get("pool_seed")))
    if differing:
        raise ValueError(
            f"{image} can't be made again: {'; '.join(differing)} differ from the pool's recipe: "
            "the same method, model, masks and data are needed"
        )
    with _hold_threads_of(recipe):
        if "pool_seed" not in recipe:  # made one by one, each by a seed of its own
            return method.make([0], [int(pool.loc[image, "seed"])])[0]
        index = int(Path(image).stem)
        first = index - index % method.group
        indices = range(first, first + method.group)
        return method.make(indices, [image_seed(recipe["pool_seed"], i) for i in indices])[index - first]


def describe_pool(method: Method, seed: int | None) -> dict:
    """A pool's recipe: what its images depend on, as it reads back from JSON; None where there is no seed."""
    own_seed = {} if seed is None else {"pool_seed": seed}
    return guards.as_json({**method.describe(), "origin": method.origin, **own_seed})


def _hold_threads_of(recipe: dict) -> AbstractContextManager[None]:
    needs_torch = "torch" in recipe.get("versions", {})  # the studio's has no number: that of the process
    return guards.hold_threads(recipe.get("threads")) if needs_torch else nullcontext()


def _claim_pool(folder: Path, recipe: dict) -> dict:
    """The recipe with the threads that its pool was begun with, where PyTorch computes; stored when new."""
    stored = folder / "recipe.json"
    begun = read_recipe(folder) if stored.is_file() else {}
    if "torch" in recipe.get("versions", {}):
        import torch  # only here: what plans or draws runs without it

        recipe = recipe | {"threads": begun.get("threads") or torch.get_num_threads()}
    if begun:
        guards.refuse_other_settings(folder, begun, recipe, "a pool")
    else:
        write_json(stored, {recipe_key(recipe): recipe})
    return recipe


def read_recipe(folder: Path | str, key: str = "") -> dict:
    """The recipe of a pool; of several, as the studio keeps them, the one of a key.

    A ValueError says that it can't be read, or that there is no such one.
    """
    path = Path(folder) / "recipe.json"
    recipes = guards.read_settings(path, "delete the folder to make the pool again, or choose another one")
    found = [recipes[key]] if key in recipes else list(recipes.values())
    if len(found) != 1 or not isinstance(found[0], dict):
        raise ValueError(f"{path} can't be read (expected one recipe, found {len(found)} entries)")
    return found[0]


def recipe_key(recipe: dict) -> str:
    """Short name of a recipe: the first 12 hex digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(recipe, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def list_versions(*libraries: str) -> dict[str, str]:
    """Versions of this package and of libraries that a pixel depends on, for `Method.describe`."""
    return {"defaug_utils": defaug_utils.__version__} | {name: version(name) for name in libraries}


def find_failed(pool: pd.DataFrame) -> pd.Series:
    """Rows whose image passed no automatic check of its method; one without checks has no `check_passed`."""
    return pool.get("check_passed", pd.Series("", pool.index)).astype(str).str.lower() == "false"


def list_failures(pool: pd.DataFrame) -> pd.DataFrame:
    """The images of a pool that passed no attempt, with what was asked for and the reasons."""
    return pool[find_failed(pool)].filter(["image", "prompt", "mask_name", "attempt", "check_reason"])


@dataclass(frozen=True)
class _PoolWriter:
    """Makes and stores the missing images of a pool."""

    folder: Path
    method: Method
    split_of: dict[str, str] | None  #: of the data set, whose training images may be sources
    key: str  #: of the recipe
    report: Callable[[int], None]
    told: set[int] = field(default_factory=set)  #: what was reported

    def _tell(self, finished: set[int]) -> None:
        """Report images, each once."""
        self.report(len(finished - self.told))
        self.told.update(finished)

    def make(self, plan: PoolPlan) -> pd.DataFrame:
        """Make what a plan lacks, group by group, and gather the pool."""
        group = self.method.group
        mine = {index for index in range(plan.count) if index // group % plan.shards == plan.shard}
        wanted = mine - _read_rows(self.folder).keys()
        self._tell(mine - wanted)
        journal = self.folder / f"rows-{plan.shard}-of-{plan.shards}.jsonl"
        for number in sorted({index // group for index in wanted}):
            indices = range(number * group, (number + 1) * group)
            self._make_group(indices, wanted, plan.seed, journal)
            self._tell(wanted.intersection(indices))
        return self._gather(plan)

    def _make_group(self, indices: range, wanted: set[int], pool_seed: int, journal: Path) -> None:
        seeds = [image_seed(pool_seed, index) for index in indices]
        images = self.method.make(indices, seeds)
        if self.split_of is not None:
            refuse_sources([{"image": "an image", **made.row} for made in images], self.split_of)
        for index, seed, made in zip(indices, seeds, images, strict=True):
            if index not in wanted:
                continue
            row = {"label": "positive", "split": "train", **made.row, "image": f"images/{index:06d}.png"}
            write_png(self.folder / row["image"], made.image_u8)
            if made.mask is not None:
                row["mask"] = f"masks/{index:06d}.png"
                write_png(self.folder / row["mask"], made.mask.astype(bool))
            row |= {"seed": seed, "origin": self.method.origin, "recipe": self.key}
            append_line(journal, json.dumps({"index": index, "row": row}).encode())

    def _gather(self, plan: PoolPlan) -> pd.DataFrame:
        with lock_file(self.folder / "manifest.csv"):  # a decision of a reviewer may come in just now
            row_of = _read_rows(self.folder)
            missing = sum(index not in row_of for index in range(plan.count))
            if missing:
                raise PoolUnfinished(
                    f"shard {plan.shard} of {plan.shards} is made, {missing} of {plan.count} images of "
                    f"{self.folder} wait for other shards: the run that finds all of them made goes on"
                )
            manifest = make_manifest(row_of[index] for index in sorted(row_of))
            write_manifest(manifest, self.folder / "manifest.csv")
        for journal in self.folder.glob("rows-*.jsonl"):
            journal.unlink(missing_ok=True)
        return manifest


def _read_rows(folder: Path) -> dict[int, dict]:
    """Rows by index: those of the manifest (with their review) first, then those of the journals."""
    row_of = {}
    for journal in sorted(folder.glob("rows-*.jsonl")):  # another shard may just have merged it
        for entry in read_journal(journal):
            with suppress(ValueError, TypeError, LookupError):  # damaged
                if (folder / entry["row"]["image"]).is_file():  # else its image is made again
                    row_of[int(entry["index"])] = entry["row"]
    if (folder / "manifest.csv").is_file():
        for row in read_manifest(folder / "manifest.csv", check_files=True).to_dict("records"):
            row_of[int(Path(row["image"]).stem)] = row
    return row_of
