"""Pools of generated images: one form for all methods, unaffected by interruptions and shards."""

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
from defaug_utils.core.licences import RECIPE_FILE, REMAKE, drop_licence, tell_licence
from defaug_utils.core.manifest import (
    image_seed,
    make_manifest,
    read_manifest,
    refuse_sources,
    write_manifest,
)
from defaug_utils.core.sources import read_dataset

HOPELESS = 0.1  # share of images that pass; a pool with fewer doesn't grow any further
LEAST_TRIED = 20  # images before that is judged
MAX_GROWTH = 2  # limit to the growth of a pool whose images fail their checks, as a multiple of its count


class PoolUnfinished(Exception):
    """This shard is finished, and the pool is waiting for the others. This is not a failure."""


class PoolRejected(ValueError):
    """So few images of a pool pass their checks that making more of them would not help."""


class GeneratedImage(NamedTuple):
    """One image of a pool, before it is written."""

    image_u8: np.ndarray  #: shape (height, width, 3), uint8
    mask: np.ndarray | None  #: shape (height, width), bool, true on the defect; None if unknown
    row: dict  #: manifest columns that the method knows (source_image, mask_source, prompt, …)


class Method(Protocol):
    """A method that makes images, with all its settings. See `book/adding_a_method.md`."""

    origin: str  #: its row in the registry of origins
    data: Path | None  #: the data set whose training images may be sources; None if there is no source
    group: int  #: images made together, because their last bits depend on each other; otherwise 1

    def describe(self) -> dict:
        """Everything but the seed that an image depends on, as JSON values; refuses invalid settings."""

    def make(self, indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        """One image per index, which depends only on its index, its seed and the whole group."""


@dataclass(frozen=True)
class PoolPlan:
    """How many images a pool has, and which part of it to make."""

    count: int  #: images of the whole pool, all shards together; a pool can be extended later
    seed: int = 0  #: the images' own seeds are derived from it
    shard: int = 0  #: the part to make, from 0: the groups g with g mod `shards` = `shard`
    shards: int = 1  #: number of parts
    passing: int = 0  #: images that must pass their checks; the pool may grow to twice `count` for them

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
        """Approximate number of images in the shard."""
        return -(-self.count // self.shards)


def make_pool(
    folder: Path | str, method: Method, plan: PoolPlan, on_images: Callable[[int], None] | None = None
) -> pd.DataFrame:
    """Make a pool of positives, resuming an earlier run of the same recipe.

    On one machine, a pool has the same bytes whether it is made in one process, in shards or after restarts.
    For this reason groups are always made as a whole (members beyond `count` are discarded), and the recipe
    keeps the number of threads that the pool was started with if PyTorch is used. Pools started with
    different numbers, or made on another CPU, may differ by a few grey levels here and there.

    The folder contains `manifest.csv`, which is returned, `recipe.json`, `images/` and `masks/`. Images that
    failed their checks stay, see `find_failed`. `on_images` is called with the number of finished images.

    Raises:
        PoolUnfinished: this shard is finished, but others are not.
        PoolRejected: `passing` images are wanted, and of at least 20 fewer than a tenth passed their checks.
        TimeoutError: another process is making this shard.
        ValueError: the folder contains a pool with another recipe or seed (all differences are listed).
        ManifestError: an image's source is not a training image of the data set.
        FileNotFoundError: there is no data set.
    """
    folder, recipe = Path(folder), describe_pool(method, plan.seed)
    split_of = (
        None if method.data is None else read_dataset(method.data).set_index("image")["split"].to_dict()
    )
    recipe = _claim_pool(folder, recipe, method.data)
    writer = _PoolWriter(folder, method, split_of, recipe_key(recipe), on_images or (lambda finished: None))
    limit = MAX_GROWTH * plan.count
    with _hold_threads_of(recipe):
        pool = writer.make(plan)
        while (missing := plan.passing - int((~find_failed(pool)).sum())) > 0:
            _refuse_hopeless(folder, pool, plan.passing)
            if len(pool) >= limit:
                break
            try:
                pool = writer.make(replace(plan, count=min(limit, len(pool) + missing), shard=0, shards=1))
            except TimeoutError as error:
                if plan.shards == 1:
                    raise
                told = f"shard {plan.shard} of {plan.shards} is finished, another makes what {folder}"
                raise PoolUnfinished(f"{told} still lacks: run again when it is finished") from error
    return pool


def _refuse_hopeless(folder: Path, pool: pd.DataFrame, passing: int) -> None:
    """Stop a pool in which hardly an image passes, and say why they fail."""
    failed = find_failed(pool)
    if len(pool) < LEAST_TRIED or (~failed).mean() >= HOPELESS:
        return
    reasons = pool.get("check_reason", pd.Series("", pool.index))[failed].astype(str)
    kinds = reasons.str.extract(r"^([a-z ]*[a-z])", expand=False).value_counts().head(3)
    often = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    raise PoolRejected(
        f"{(~failed).sum()} of {len(pool)} images of {folder} passed their checks, and {passing} are needed; "
        f"why they failed: {often or 'no reason is given'}. Look at them, change prompts, masks or strength, "
        "or relax the checks; then delete the folder and make the pool again"
    )


def make_pools(
    wanted: Mapping[Path, tuple[Method, PoolPlan]], on_images: Callable[[int], None] | None = None
) -> list[pd.DataFrame]:
    """Make several pools, see `make_pool`; the shards of all pools are made before waiting for others."""
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
    """Remake one image of a pool with its method; on the same machine, the bytes are identical.

    Raises:
        FileNotFoundError: there is no pool, or no such image in it.
        ValueError: the method differs from the pool's recipe (all differences are listed).
    """
    pool = read_manifest(Path(folder) / "manifest.csv").set_index("image")
    if image not in pool.index or not (Path(folder) / image).is_file():
        raise FileNotFoundError(f"{folder} has no image {image!r}: choose one from its manifest")
    recipe = read_recipe(folder, pool.loc[image, "recipe"])
    found = drop_licence(recipe)
    found.pop("threads", None)  # these are kept below
    differing = guards.list_differences(found, describe_pool(method, recipe.get("pool_seed")))
    if differing:
        raise ValueError(
            f"{image} can't be remade: {'; '.join(differing)} differ from the pool's recipe: "
            "use the same method, model, masks and data"
        )
    with _hold_threads_of(recipe):
        if "pool_seed" not in recipe:  # made one by one, each with its own seed
            return method.make([0], [int(pool.loc[image, "seed"])])[0]
        index = int(Path(image).stem)
        first = index - index % method.group
        indices = range(first, first + method.group)
        return method.make(indices, [image_seed(recipe["pool_seed"], i) for i in indices])[index - first]


def describe_pool(method: Method, seed: int | None) -> dict:
    """A pool's recipe: what its images depend on, as read back from JSON; the seed may be None."""
    own_seed = {} if seed is None else {"pool_seed": seed}
    return guards.as_json({**method.describe(), "origin": method.origin, **own_seed})


def _hold_threads_of(recipe: dict) -> AbstractContextManager[None]:
    needs_torch = "torch" in recipe.get("versions", {})  # the studio uses the process's number
    return guards.hold_threads(recipe.get("threads")) if needs_torch else nullcontext()


def _claim_pool(folder: Path, recipe: dict, data_folder: Path | None) -> dict:
    """The recipe with the number of threads that its pool was started with.

    It is stored if new, and again if the licence of the data has changed: images don't depend on that.
    """
    stored = folder / RECIPE_FILE
    begun = read_recipe(folder) if stored.is_file() else {}
    if "torch" in recipe.get("versions", {}):
        import torch  # only here: what plans or draws runs without it

        recipe = recipe | {"threads": begun.get("threads") or torch.get_num_threads()}
    if begun:
        guards.refuse_other_settings(folder, drop_licence(begun), recipe, "a pool")
    told = tell_licence(recipe, data_folder)
    if begun != told:
        write_json(stored, {recipe_key(recipe): told})
    return recipe


def read_recipe(folder: Path | str, key: str = "") -> dict:
    """Read the recipe of a pool, or the one with the given key if there are several, as in the studio's pool.

    Raises a ValueError if it can't be read or does not exist.
    """
    path = Path(folder) / RECIPE_FILE
    recipes = guards.read_settings(path, REMAKE)
    found = [recipes[key]] if key in recipes else list(recipes.values())
    if len(found) != 1 or not isinstance(found[0], dict):
        raise ValueError(f"{path} can't be read (expected one recipe, found {len(found)} entries)")
    return found[0]


def recipe_key(recipe: dict) -> str:
    """Short name of a recipe without its licence: 12 hex digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(drop_licence(recipe), sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def list_versions(*libraries: str) -> dict[str, str]:
    """Versions of this package and of libraries that influence the pixels, for `Method.describe`."""
    return {"defaug_utils": defaug_utils.__version__} | {name: version(name) for name in libraries}


def find_failed(pool: pd.DataFrame) -> pd.Series:
    """Rows whose image failed the automatic checks of its method; methods without checks fail none."""
    return _is_false(pool, "check_passed")


def find_unrestored(pool: pd.DataFrame) -> pd.Series:
    """Rows whose image is the whole of a model's output: its pixels differ from the source's everywhere."""
    return _is_false(pool, "paste_back")


def _is_false(pool: pd.DataFrame, column: str) -> pd.Series:
    """Where a column that a pool may lack says false, as a word or a value."""
    return pool.get(column, pd.Series("", pool.index)).astype(str).str.lower() == "false"


def list_failures(pool: pd.DataFrame) -> pd.DataFrame:
    """The images of a pool that failed every attempt, with their prompts and the reasons."""
    return pool[find_failed(pool)].filter(["image", "prompt", "mask_name", "attempt", "check_reason"])


@dataclass(frozen=True)
class _PoolWriter:
    """Makes and stores the missing images of a pool."""

    folder: Path
    method: Method
    split_of: dict[str, str] | None  #: of the data set, whose training images may be sources
    key: str  #: of the recipe
    report: Callable[[int], None]
    told: set[int] = field(default_factory=set)  #: images that were reported

    def _tell(self, finished: set[int]) -> None:
        """Report images, each once."""
        self.report(len(finished - self.told))
        self.told.update(finished)

    def make(self, plan: PoolPlan) -> pd.DataFrame:
        """Make the missing images of a plan, group by group, and collect the pool."""
        journal = self.folder / f"rows-{plan.shard}-of-{plan.shards}.jsonl"
        with lock_file(journal, 0):
            self._make_shard(plan, journal)
            return self._gather(plan)

    def _make_shard(self, plan: PoolPlan, journal: Path) -> None:
        group = self.method.group
        mine = {index for index in range(plan.count) if index // group % plan.shards == plan.shard}
        wanted = mine - _read_rows(self.folder).keys()
        self._tell(mine - wanted)
        for number in sorted({index // group for index in wanted}):
            indices = range(number * group, (number + 1) * group)
            self._make_group(indices, wanted, plan.seed, journal)
            self._tell(wanted.intersection(indices))

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
        with lock_file(self.folder / "manifest.csv"):  # a reviewer may be storing a decision
            row_of = _read_rows(self.folder)
            missing = sum(index not in row_of for index in range(plan.count))
            if missing:
                raise PoolUnfinished(
                    f"shard {plan.shard} of {plan.shards} is finished, {missing} of {plan.count} images of "
                    f"{self.folder} are missing from other shards: run again when these are finished"
                )
            manifest = make_manifest(row_of[index] for index in sorted(row_of))
            write_manifest(manifest, self.folder / "manifest.csv")
        for journal in self.folder.glob("rows-*.jsonl"):
            journal.unlink(missing_ok=True)
        for lock in self.folder.glob(".rows-*.lock"):
            with suppress(OSError):  # Windows doesn't remove an open file
                lock.unlink()
        return manifest


def _read_rows(folder: Path) -> dict[int, dict]:
    """Rows by index: first from the manifest (with their review), then from the journals."""
    row_of = {}
    for journal in sorted(folder.glob("rows-*.jsonl")):  # another shard may have just merged it
        for entry in read_journal(journal):
            with suppress(ValueError, TypeError, LookupError):  # damaged
                if (folder / entry["row"]["image"]).is_file():  # otherwise the image is remade
                    row_of[int(entry["index"])] = entry["row"]
    if (folder / "manifest.csv").is_file():
        for row in read_manifest(folder / "manifest.csv", check_files=True).to_dict("records"):
            row_of[int(Path(row["image"]).stem)] = row
    return row_of
