"""Generated pools: resumable, shardable, the same whatever was interrupted."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from defaug_utils.core.files import append_line, lock_file, write_json, write_png
from defaug_utils.core.manifest import image_seed, make_manifest, read_manifest, write_manifest


class GeneratedImage(NamedTuple):
    """One image of a pool, before it is written.

    Attributes:
        image_u8: shape (height, width, 3), uint8.
        mask: shape (height, width), bool, true on the defect; None where none is known.
        row: manifest columns that the method knows (source_image, mask_source, prompt, …).
    """

    image_u8: np.ndarray
    mask: np.ndarray | None
    row: dict


MakeBatch = Callable[[Sequence[int], Sequence[int]], Sequence[GeneratedImage]]


def recipe_key(recipe: dict) -> str:
    """Short name of a recipe: the first 12 hex digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(recipe, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def generate_pool(
    folder: Path | str,
    count: int,
    make_batch: MakeBatch,
    origin: str,
    recipe: dict,
    pool_seed: int,
    batch_size: int = 1,
    shard: int = 0,
    shard_count: int = 1,
    on_images: Callable[[int], None] | None = None,
    group_size: int = 1,
) -> pd.DataFrame | None:
    """Generate a pool of positives, going on where an earlier run of the same recipe stopped.

    Args:
        folder: where `manifest.csv`, `recipe.json`, `images/` and `masks/` go.
        count: size of the whole pool, all shards together; a pool may be made larger later.
        make_batch: takes indices and their seeds, returns one `GeneratedImage` each; must depend on
            nothing else, so that batch size, shards and restarts don't change an image. Where an image
            depends on those made beside it, ask for groups.
        origin: the method's word in the manifest, such as "memseg".
        recipe: everything else the images depend on, as JSON values.
        pool_seed: seed from which the images' own seeds are derived.
        batch_size: images asked for at a time; counts only without groups.
        shard: which part to make, from 0.
        shard_count: into how many parts the pool is cut (part k has the groups g with
            g mod shard_count = k).
        on_images: called with the number of images just finished (for a progress bar).
        group_size: image i belongs to group i // group_size. Groups above 1 are always made whole, with
            members that are finished already or lie beyond `count` (these are thrown away), so that an
            image has the same neighbours in its batch whatever was interrupted or cut into shards.

    Returns:
        The pool's manifest, or None while other shards are unfinished.

    Raises:
        ValueError: the folder holds a pool of another recipe or seed, or the numbers make no sense.
    """
    folder = Path(folder)
    if min(count, batch_size, group_size) < 1 or not 0 <= shard < shard_count:
        raise ValueError(
            f"count {count}, batch_size {batch_size} and group_size {group_size} must be at least 1, "
            f"shard {shard} in 0 … {shard_count - 1}"
        )
    key = _claim_folder(folder, {**recipe, "origin": origin, "pool_seed": pool_seed})
    report = on_images or (lambda finished: None)
    journal = folder / f"rows-{shard}-of-{shard_count}.jsonl"
    mine = [index for index in range(count) if index // group_size % shard_count == shard]
    finished = _finished_rows(folder)
    wanted = [index for index in mine if index not in finished]
    report(len(mine) - len(wanted))
    for indices in _cut_batches(wanted, batch_size, group_size):
        seeds = [image_seed(pool_seed, index) for index in indices]
        missing = set(wanted).intersection(indices)
        for index, seed, generated in zip(indices, seeds, make_batch(indices, seeds), strict=True):
            if index in missing:
                row = _write_image(folder, index, generated)
                row |= {"seed": seed, "origin": origin, "recipe": key}
                append_line(journal, json.dumps({"index": index, "row": row}).encode())
        report(len(missing))
    return _finish_pool(folder, count)


def find_failed(pool: pd.DataFrame) -> pd.Series:
    """Rows whose image passed no automatic check of its method: the column `check_passed` says false.

    Args:
        pool: its manifest; a method without checks has no such column, and no failure.

    Returns:
        True where it failed, shape (rows,).
    """
    if "check_passed" not in pool:
        return pd.Series(False, index=pool.index)
    return pool["check_passed"].astype(str).str.lower() == "false"


def fill_pool(
    pool: pd.DataFrame, count: int, most: int, make_larger: Callable[[int], pd.DataFrame | None]
) -> pd.DataFrame:
    """Make a pool larger, image by image that is missing, until enough of them passed their checks.

    Args:
        pool: as far as it is made.
        count: images that have to pass.
        most: size beyond which the pool does not grow.
        make_larger: takes a size and returns the pool of that size, such as `make_diag_pool` without shards.

    Returns:
        The pool; where `most` was not enough, with fewer than `count` that passed.
    """
    while len(pool) < most and (missing := count - int((~find_failed(pool)).sum())) > 0:
        pool = make_larger(min(most, len(pool) + missing))
    return pool


def _cut_batches(wanted: list[int], batch_size: int, group_size: int) -> list[Sequence[int]]:
    """The indices to ask for at a time: those wanted, or the whole groups that hold them."""
    if group_size == 1:
        return [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    groups = sorted({index // group_size for index in wanted})
    return [range(group * group_size, (group + 1) * group_size) for group in groups]


def _claim_folder(folder: Path, recipe: dict) -> str:
    recipe = json.loads(json.dumps(recipe))  # as it reads back: a tuple is a list
    key, stored = recipe_key(recipe), folder / "recipe.json"
    if stored.is_file():
        (found,) = json.loads(stored.read_text(encoding="utf-8")).values()
        differing = sorted(name for name in {*found, *recipe} if found.get(name) != recipe.get(name))
        if differing:
            raise ValueError(
                f"{folder} holds a pool made with other settings ({', '.join(differing)} differ): "
                "delete the folder to make it again, or choose another one"
            )
    else:
        write_json(stored, {key: recipe})
    return key


def _write_image(folder: Path, index: int, generated: GeneratedImage) -> dict:
    row = {"label": "positive", "split": "train", **generated.row}
    row["image"] = f"images/{index:06d}.png"
    write_png(folder / row["image"], generated.image_u8)
    if generated.mask is not None:
        row["mask"] = f"masks/{index:06d}.png"
        write_png(folder / row["mask"], generated.mask.astype(bool))
    return row


def _read_journals(folder: Path) -> list[dict]:
    """All finished rows; a line torn by a kill is passed over, so its image is made again.

    A journal that another shard has just merged into the manifest is passed over, too.
    """
    rows = []
    for journal in sorted(folder.glob("rows-*.jsonl")):
        with suppress(FileNotFoundError):
            for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
    return rows


def _finished_rows(folder: Path) -> dict[int, dict]:
    """Rows by index: those of the manifest (with their review) first, then those of the journals."""
    row_of = {entry["index"]: entry["row"] for entry in _read_journals(folder)}
    if (folder / "manifest.csv").is_file():
        for row in read_manifest(folder / "manifest.csv", check_files=True).to_dict("records"):
            row_of[int(Path(row["image"]).stem)] = row
    return row_of


def _finish_pool(folder: Path, count: int) -> pd.DataFrame | None:
    with lock_file(folder / "manifest.csv"):  # a decision of a reviewer may come in just now
        row_of = _finished_rows(folder)
        if any(index not in row_of for index in range(count)):
            return None
        manifest = make_manifest(row_of[index] for index in sorted(row_of))
        write_manifest(manifest, folder / "manifest.csv")
    for journal in folder.glob("rows-*.jsonl"):
        journal.unlink(missing_ok=True)
    return manifest
