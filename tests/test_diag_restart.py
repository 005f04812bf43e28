"""A DIAG pool whose process is killed in the middle: the same rows and bytes as one left in peace."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from tiny_models import save_model

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.core.pools import PoolPlan, PoolUnfinished, make_pool
from defaug_utils.core.prompts import make_prompts
from defaug_utils.diffusion.inpainting import InpaintSettings, load_inpainter
from defaug_utils.masks.sources import open_masks
from defaug_utils.methods.diag import DIAG
from defaug_utils.methods.painting import CheckLimits

COUNT, GROUP = 10, 3  # the last group is not full


def make_part(
    folder: Path, data: Path, model: Path, on_images: Callable[[int], None] | None = None, **shards: int
) -> None:
    method = DIAG(
        data=data,
        inpainter=load_inpainter(model),
        prompts=make_prompts(["white marks", "crack"], "dark"),
        masks=open_masks("procedural"),
        settings=InpaintSettings((32, 96), steps=4),
        limits=CheckLimits(contrast=0, completeness=0),
        group=GROUP,
    )
    with suppress(PoolUnfinished):
        make_pool(folder, method, PoolPlan(COUNT, 5, **shards), on_images)


def save_data(folder: Path) -> Path:
    generator, rows = np.random.default_rng(1), []
    for number in range(6):
        row = {"image": f"images/{number}.png", "label": "negative", "split": "train", "origin": "real"}
        write_png(folder / row["image"], generator.integers(60, 200, (96, 32, 3), dtype=np.uint8))
        rows.append(row)
    write_manifest(make_manifest(rows), folder / "manifest.csv")
    return folder


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def count_rows(folder: Path) -> int:
    journals = list(folder.glob("rows-*.jsonl"))
    return sum(journal.read_bytes().count(b"\n") for journal in journals)


def make_until_killed(folder: Path, data: Path, model: Path) -> None:
    """Make a pool and die without warning after its second group."""

    def die(finished: int) -> None:
        if count_rows(folder) >= 2 * GROUP:
            os.kill(os.getpid(), signal.SIGKILL)

    make_part(folder, data, model, die)


def test_killed_and_restarted_or_in_shards_it_is_the_same_pool(tmp_path: Path):
    model, data = save_model(tmp_path / "model"), save_data(tmp_path / "data")
    command = [sys.executable, __file__, tmp_path / "killed", data, model]
    killed = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert count_rows(tmp_path / "killed") == 2 * GROUP
    assert not (tmp_path / "killed" / "manifest.csv").exists()
    make_part(tmp_path / "killed", data, model)
    make_part(tmp_path / "whole", data, model)
    for shard in (1, 2, 0):
        make_part(tmp_path / "shards", data, model, shard=shard, shards=3)
    whole = read_all(tmp_path / "whole")
    assert len(whole) == 2 * COUNT + 3, "images, masks, manifest, its lock, and recipe"
    assert read_all(tmp_path / "killed") == whole
    assert read_all(tmp_path / "shards") == whole


if __name__ == "__main__":
    make_until_killed(*map(Path, sys.argv[1:]))
