"""Small stages of the book that are killed at random moments or run with scarce resources, then resumed."""

import errno
import json
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from layouts import write_ksdd2, write_mvtec
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_models import save_model

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import image_seed, make_manifest, read_manifest, write_manifest
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.core.prompts import make_prompts
from defaug_utils.core.sources import list_sources
from defaug_utils.data.datasets import draw_few_shot, load_dataset
from defaug_utils.data.preparation import prepare_dataset
from defaug_utils.data.samples import Samples
from defaug_utils.diffusion.dreambooth import train_dreambooth
from defaug_utils.diffusion.dreambooth_plan import DreamBoothSettings
from defaug_utils.diffusion.inpainting import InpaintSettings, load_inpainter
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.text2image import load_text2image
from defaug_utils.diffusion.training_images import BucketSettings, choose_training_rows, read_training_images
from defaug_utils.evaluation.classifier import train_classifier
from defaug_utils.evaluation.recipes import choose_recipe
from defaug_utils.masks.patches import read_defects
from defaug_utils.masks.sources import open_masks
from defaug_utils.masks.trimaps import TripleSet, read_good_images
from defaug_utils.methods.cut_paste import CutPaste
from defaug_utils.methods.diag import DIAG
from defaug_utils.methods.memseg import MemSeg
from defaug_utils.methods.painting import CheckLimits
from defaug_utils.methods.textures import open_textures
from defaug_utils.protocol.review_store import PoolReview

SIZE = (32, 96)
STAGE_SECONDS = 120  # a stage takes a few
COUNT = 12
TOLD = "told.txt"  # images whose decision was confirmed, beside a stage's folder


def write_inputs(folder: Path) -> None:
    """Inputs of all stages, made once."""
    write_ksdd2(folder / "set", train=(12, 4), test=(6, 2), size=(92, 252))
    write_mvtec(folder / "grid", per_type=4)
    few = draw_few_shot(load_dataset(folder / "grid"), 2)
    prepare_dataset(few, folder / "grid", folder / "data", SIZE)
    save_model(folder / "inpainting")
    save_model(folder / "text2image", unet_channels=4)


def prepare(shared: Path, folder: Path) -> None:
    """Prepare a data set."""
    prepare_dataset(load_dataset(shared / "set"), shared / "set", folder, (46, 126))


def memseg(shared: Path, folder: Path) -> None:
    """A pool of simulated anomalies."""
    make_pool(folder, MemSeg(shared / "data", open_textures("")), PoolPlan(COUNT, 3))


def cut_paste(shared: Path, folder: Path) -> None:
    """A pool of pasted defects."""
    data = read_manifest(shared / "data" / "manifest.csv")
    goods = read_good_images(list_sources(data), shared / "data", SIZE)
    triples = TripleSet(read_defects(data, shared / "data", SIZE), goods)
    make_pool(folder, CutPaste(shared / "data", triples), PoolPlan(COUNT, 3))


def diag(shared: Path, folder: Path) -> None:
    """A pool that a tiny diffusion model inpaints, in groups."""
    method = DIAG(
        data=shared / "data",
        inpainter=load_inpainter(shared / "inpainting"),
        prompts=make_prompts(["white marks", "crack"], "dark"),
        masks=open_masks("procedural"),
        settings=InpaintSettings(SIZE, steps=3),
        limits=CheckLimits(contrast=0, completeness=0),
        group=3,
    )
    make_pool(folder, method, PoolPlan(COUNT, 3))


def classifier(shared: Path, folder: Path) -> None:
    """A classifier on noise, with a checkpoint per epoch."""
    generator, rows = np.random.default_rng(0), []
    for index in range(24):
        label, split = ("negative", "positive")[index % 2], ("train", "train", "test")[index % 3]
        rows.append({"image": f"{index}.png", "label": label, "split": split, "origin": "real"})
    images = torch.from_numpy(generator.integers(0, 255, (24, 32, 32, 3), dtype=np.uint8))
    labels = torch.tensor([float(row["label"] == "positive") for row in rows])
    recipe = choose_recipe("workshop", epochs=6, batch_size=4)
    train_classifier(Samples(images, labels, make_manifest(rows)), folder, recipe, "resnet10_quarter", seed=1)


def dreambooth(shared: Path, folder: Path) -> None:
    """An adapter of a tiny model."""
    data = read_manifest(shared / "data" / "manifest.csv")
    buckets = BucketSettings(area=SIZE[0] * SIZE[1], smallest=8, largest=96, step=4)
    rows = choose_training_rows(data, "few-shot", seed=0, few_shot_count=3)
    settings = DreamBoothSettings(
        epochs=3, repeats=2, batch_size=2, save_every=2, seed=5, buckets=buckets, gradient_checkpointing=False
    )
    images = read_training_images(rows, data, shared / "data", buckets, None)
    model = load_text2image(shared / "text2image", clip_skip=1)
    train_dreambooth(model, images, folder, settings, LoraPlan(linear_rank=2, linear_alpha=1, conv_rank=1))


def review(shared: Path, folder: Path) -> None:
    """Decisions on a pool; confirmed ones are recorded next to the folder."""
    rows = []
    for index in range(40):
        row = {"image": f"images/{index}.png", "label": "positive", "split": "train", "origin": "memseg"}
        rows.append(row | {"seed": image_seed(0, index), "recipe": "abc"})
    if not (folder / "manifest.csv").is_file():
        for row in rows:
            write_png(folder / row["image"], np.zeros((4, 4, 3), np.uint8))
        write_manifest(make_manifest(rows), folder / "manifest.csv")
    store = PoolReview(folder)
    told = os.open(folder.with_name(TOLD), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for index, image in enumerate(store.decisions):
        store.decide(image, index % 3 > 0)
        os.write(told, f"{image} {index % 3 > 0}\n".encode())
        time.sleep(0.005)


STAGES: dict[str, Callable[[Path, Path], None]] = {
    stage.__name__: stage for stage in (prepare, memseg, cut_paste, diag, classifier, dreambooth, review)
}


class Attempt(NamedTuple):
    """How a stage ended in its process."""

    status: int  #: 0 for success, minus the signal if it was killed
    seconds: float
    message: str  #: of the error, empty if there was none


def run_stage(
    stage: str,
    shared: Path,
    folder: Path,
    kill_after: float = STAGE_SECONDS,
    limit: Callable[[], None] | None = None,
) -> Attempt:
    """Run a stage in its own process group, and kill the whole group after some seconds."""
    note = folder.with_name("error.txt")
    note.unlink(missing_ok=True)
    started, child = time.monotonic(), os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            if limit:
                limit()
            STAGES[stage](shared, folder)
            os._exit(0)
        except BaseException as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            os.seteuid(os.getuid())
            os.closerange(3, 4)
            kind = "told" if isinstance(error, ValueError | OSError | RuntimeError) else "traceback"
            note.write_text(f"{kind}: {type(error).__name__}: {error}\n{traceback.format_exc()[-800:]}")
            os._exit(1)
    with suppress(OSError):  # the child does the same; either may come first
        os.setpgid(child, child)
    while time.monotonic() < started + kill_after:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.002)
    else:
        os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    message = note.read_text() if note.is_file() else ""
    return Attempt(os.waitstatus_to_exitcode(status), time.monotonic() - started, message)


def read_results(folder: Path) -> dict[str, object]:
    """A stage's results, by name, without what may differ: times, locks, journals."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".") or path.suffix in (".jsonl", ".lock"):
            continue
        if path.suffix == ".safetensors":
            found[name] = {key: value.numpy().tobytes() for key, value in load_file(path).items()}
        elif path.suffix == ".csv" and path.name != "manifest.csv":
            found[name] = read_table(path)
        else:
            found[name] = path.read_bytes()
    if folder.with_name(TOLD).is_file():  # it doesn't matter whether they are in the log or the manifest
        found.pop("review.csv", None)
        found["decisions"] = PoolReview(folder).decisions
    return found


def read_table(path: Path) -> str:
    """A table without its times."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.drop(columns=["seconds", "time"], errors="ignore").to_csv()


def list_differing(found: dict[str, object], whole: dict[str, object]) -> list[str]:
    """Names of results that differ from an undisturbed run."""
    passed = {"manifest.csv"} if "decisions" in whole else set()
    return sorted(name for name in {*found, *whole} - passed if found.get(name) != whole.get(name))


def count_half_made(folder: Path, whole: dict[str, object]) -> int:
    """Files under their final names, right after a kill, that differ from a complete run."""
    wrong = 0
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if (
            path.name.startswith(".")
            or path.suffix in (".jsonl", ".lock")
            or name in ("history.csv", "review.csv")
        ):
            continue
        if path.name == "checkpoint.safetensors":
            try:
                load_file(path)
            except SafetensorError:
                wrong += 1
        elif path.suffix == ".csv" and path.name != "manifest.csv":
            wrong += read_table(path) != whole.get(name)
        elif path.suffix != ".safetensors":
            wrong += path.read_bytes() != whole.get(name)
    return wrong


def list_finished(folder: Path) -> dict[str, int]:
    """Images that a journal lists as finished, with the time of their last change."""
    names = []
    for journal in folder.glob("*.jsonl"):
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            names.append((entry["row"] if isinstance(entry, dict) else entry[2])["image"])
    return {name: (folder / name).stat().st_mtime_ns for name in names}


def count_lost(folder: Path, finished: dict[str, int]) -> int:
    """Finished images that were remade, and confirmed decisions that are missing."""
    lost = sum((folder / name).stat().st_mtime_ns != changed for name, changed in finished.items())
    told = folder.with_name(TOLD)
    if told.is_file():
        decided = {image: said.accepted for image, said in PoolReview(folder).decisions.items()}
        lines = [line.split() for line in told.read_text().splitlines()]
        lost += sum(str(decided[image]) != accepted for image, accepted in lines)
    return lost


def try_kill(stage: str, shared: Path, folder: Path, whole: tuple, rng: random.Random) -> dict:
    """Kill a stage at a random moment, resume it, and count the faults."""
    results, seconds = whole
    moment = rng.uniform(0, seconds)
    killed = run_stage(stage, shared, folder, moment)
    half_made, finished = count_half_made(folder, results), list_finished(folder)
    lost = count_lost(folder, {}) if (folder / "manifest.csv").is_file() and stage == "review" else 0
    ended = run_stage(stage, shared, folder)
    found = read_results(folder)
    differing = list_differing(found, results)
    return {
        "killed": int(killed.status == -signal.SIGKILL),
        "lost": lost + count_lost(folder, finished),
        "half_made": half_made,
        "unequal": len(differing) if ended.status == 0 else -1,
        "seconds": round(moment, 3),
        "detail": " ".join(differing)[:200] or ended.message[:200],
    }


# Scarce resources: what is done in the stage's process before it starts.


def fill_disk(call: int) -> Callable[[], None]:
    """Make the call-th and all later renamings of a finished file fail as on a full disk."""

    def limit() -> None:
        calls, replace = [0], os.replace

        def fail(*paths: object, **options: object) -> None:
            calls[0] += 1
            if calls[0] >= call:
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(*paths, **options)

        os.replace = fail

    return limit


def limit_files(size: int) -> Callable[[], None]:
    """Let no file grow beyond so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def limit_handles() -> None:
    """Leave a process two more open files."""
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def lose_home() -> None:
    """No HOME and no other folder of the user's."""
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "USERPROFILE"):
        os.environ.pop(name, None)


def become_nobody() -> None:
    """Lose the right to write; a file system does not refuse root."""
    if os.geteuid() == 0:
        os.seteuid(65534)


FAILING = {
    "disk-full-at-1": fill_disk(1),
    "disk-full-at-5": fill_disk(5),
    "files-of-300-bytes": limit_files(300),
    "no-handles": limit_handles,
    "read-only": become_nobody,
}
LONG_NAME = f"Prüf teile {'x' * 150} Größe – ä"


def try_resource(stage: str, kind: str, shared: Path, folder: Path, whole: tuple) -> dict:
    """Run a stage with something scarce: it ends well, or tells so and is finished later, all files equal."""
    told, links = "", folder.with_name("inputs")
    if kind == "strange-path":
        folder = folder.parent / LONG_NAME / "run 1"
    if kind == "linked-data":
        links.symlink_to(shared)
        shared = links
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "read-only":
        folder.chmod(0o555)
    limit = lose_home if kind == "no-home" else FAILING.get(kind)
    first = run_stage(stage, shared, folder, limit=limit)
    told = first.message.split("\n")[0]
    folder.chmod(0o755)
    ended = run_stage(stage, shared, folder) if first.status else first
    found = read_results(folder)
    is_equal = ended.status == 0 and not list_differing(found, whole[0])
    is_told = first.status == 0 or (
        kind in FAILING and told.startswith("told") and str(folder.parents[1]) in told
    )
    detail = "" if is_equal and is_told else f"{told or first.message} / {ended.message}"
    return {"survived": int(is_equal and is_told), "status": first.status, "detail": (detail or told)[:300]}


KINDS = (*FAILING, "no-home", "strange-path", "linked-data")
