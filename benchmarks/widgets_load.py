"""How long the review grid and the studio take for what a person does, as the number of images grows.

    PYTHONPATH=tests python benchmarks/widgets_load.py --sizes 1000 10000
    PYTHONPATH=tests python benchmarks/widgets_load.py --sizes 1000 --requests 500

The grid opens a pool of so many images of 16 × 16 pixels, the studio a data set of as many, and a folder in
which as many pictures are kept; beyond 1,000 the files are links to the first ones. Times are the kernel's,
of the wall and of the processor; the browser is not in them. A day's use is `--requests` times: go to the
next image, draw, write a prompt, generate two pictures, accept one and reject the other; the process's
memory is told ten times. The tiny model of the tests paints.
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from growth import run_alone
from tiny_models import save_model

from defaug_utils import core, widgets
from defaug_utils.core.manifest import make_manifest
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, load_inpainter
from defaug_utils.protocol import STUDIO_FOLDER

SIDE = 16  # pixels of an image
FILES = 1000  # that differ
TIMES = 40  # each thing is done so often
SAMPLES = 10  # of the memory in a day's use
SETTINGS = InpaintSettings((SIDE, SIDE), 2, 2.0)


class Clock:
    """Seconds of what was done, of the wall and of the processor, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def time(self, name: str, act: Callable[..., object], *arguments: object) -> object:
        """Do something and note how long it took."""
        start, work = time.perf_counter(), time.process_time()
        done = act(*arguments)
        self.seconds[name].append((time.perf_counter() - start, time.process_time() - work))
        return done


def write_files(run: Path, count: int) -> None:
    """A data set, a pool made from it, and a studio's folder in which all images of the pool are kept."""
    generator, names = np.random.default_rng(0), [f"{number:06d}.png" for number in range(count)]
    images_u8 = generator.integers(60, 180, (min(count, FILES), SIDE, SIDE, 3), dtype=np.uint8)
    masks = np.array([draw_mask(number) for number in range(len(images_u8))])
    for place in ("data", "memseg", STUDIO_FOLDER):
        link_files(run / place / "images", names, images_u8)
        link_files(run / place / "masks", names if place != "data" else [], masks)
    rows = pd.DataFrame({"image": [f"images/{name}" for name in names]})
    real = rows.assign(label="negative", split="train", origin="real")
    core.write_manifest(make_manifest(real), run / "data" / "manifest.csv")
    pool = rows.assign(mask=[f"masks/{name}" for name in names], label="positive", split="train")
    pool = pool.assign(origin="memseg", source_image=rows["image"], mask_source="procedural", recipe="r" * 12)
    pool = pool.assign(prompt=[f"prompt {n % 3}" for n in range(count)], seed=range(count), check_passed=True)
    core.write_manifest(make_manifest(pool), run / "memseg" / "manifest.csv")
    told = {"mask_sha256": "0" * 64, "source_sha256": "0" * 64, "negative_prompt": "", "latent_cells": 4}
    kept = pool.assign(**told, origin="diag", accepted=True, check_reason="")
    core.write_manifest(make_manifest(kept), run / STUDIO_FOLDER / "manifest.csv")


def link_files(folder: Path, names: list[str], pixels: np.ndarray) -> None:
    """Write the first images or masks, and link the others to them."""
    for number, name in enumerate(names):
        if number < len(pixels):
            core.write_png(folder / name, pixels[number])
        else:
            os.link(folder / names[number % len(pixels)], folder / name)


def use_grid(run: Path, count: int) -> dict[str, list[float]]:
    """Open the pool, turn pages, decide, undo, filter, read again and close."""
    clock, draw = Clock(), random.Random(0)
    grid = clock.time("grid: open", widgets.ReviewGrid, run / "memseg")
    for _ in range(TIMES):
        turned = draw.randrange(grid.pages)
        clock.time("grid: a page", lambda page=turned: grid.show(page=page))
        key = draw.choice(grid.cards)["key"]
        clock.time("grid: a decision", grid.decide, key, draw.random() < 0.5)
        clock.time("grid: a note", grid.write_note, key, f"note {draw.random()}")
        clock.time("grid: undo", grid.undo)
    for decision in ("open", "accepted", "rejected", ""):
        clock.time("grid: a filter", lambda word=decision: grid.show(decision=word, page=0))
    clock.time("grid: refresh", grid.refresh)
    clock.time("grid: close", grid.close)
    return clock.seconds


def open_model(run: Path) -> Inpainter:
    """The tests' tiny model."""
    return load_inpainter(save_model(run / "model"))


def draw_mask(number: int) -> np.ndarray:
    """A square of a third of the image's side, each somewhere else."""
    mask, (top, left) = np.zeros((SIDE, SIDE), bool), divmod(number, SIDE - 6)
    mask[top % (SIDE - 6) + 1 :, left + 1 :][:5, :5] = True
    return mask


def use_studio(run: Path, count: int) -> dict[str, list[float]]:
    """Open the studio, step through images, draw, save, decide twice and bring a picture back."""
    clock, model = Clock(), open_model(run)
    studio = clock.time("studio: open", widgets.Studio, run / STUDIO_FOLDER, run / "data", model, SETTINGS)
    panel = clock.time("studio: open its panel", widgets.StudioPanel, studio, run / "drawn")
    panel.count.value, panel.steps.value = 2, 2
    for number in range(TIMES):
        clock.time("studio: next image", panel.drawer.step, 1)
        clock.time("studio: a stroke", setattr, panel.drawer.canvas, "value", draw_mask(number))
        clock.time("studio: save the mask", panel.drawer.save)
        panel.generate()
        panel.worker.join()
        clock.time("studio: a decision", panel.decide, panel.cards[0], True)
        clock.time("studio: another on it", panel.decide, panel.cards[0], False)
        clock.time("studio: bring back", panel.reuse, panel.cards[1].image)
    return clock.seconds


def use_all_day(run: Path, requests: int) -> list[tuple[int, float]]:
    """Requests so far and MiB of memory."""
    shutil.rmtree(run / "day", ignore_errors=True)
    studio = widgets.Studio(run / "day" / "kept", run / "data", open_model(run), SETTINGS)
    panel, process, found = widgets.StudioPanel(studio, run / "day" / "drawn"), psutil.Process(), []
    panel.count.value, panel.steps.value = 2, 2
    for number in range(requests + 1):
        if number % max(1, requests // SAMPLES) == 0:
            found.append((number, process.memory_info().rss / 2**20))
        panel.drawer.step(1 if number % 50 else -49)
        panel.drawer.canvas.value = draw_mask(number)
        panel.prompt.value = "crack " + chr(97 + number % 26) * (number // 26 % 26 + 1)
        panel.generate_others()
        panel.worker.join()
        for card, accepted in zip(panel.cards[:2], (True, False), strict=True):
            panel.decide(card, accepted)
    kept = studio.kept.count()
    if sum(kept) != 2 * (requests + 1):
        raise RuntimeError(f"{kept} pictures are kept: {panel.message.value}")
    return found


def measure(use: Callable[[Path, int], dict], run: Path, count: int) -> tuple[dict, float]:
    """What a use gives, and the most memory of its process, MiB."""
    done = use(run, count)
    return done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], help="numbers of images")
    parser.add_argument("--requests", type=int, default=0, help="of a day's use, at the first size only")
    return parser.parse_args()


def main() -> None:
    """Measure, and print tables in Markdown."""
    given, table = read_options(), defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        for count in given.sizes:
            run = Path(place) / str(count)
            run_alone(write_files, run, count)
            for use in (use_grid, use_studio):
                seconds, memory = run_alone(measure, use, run, count)
                for name, found in seconds.items():
                    walls, works = zip(*found, strict=True)
                    told = f"{statistics.median(works):.3f} ({max(works):.3f})"
                    table[name].append(f"{told} | {statistics.median(walls):.3f} ({max(walls):.3f})")
                table[f"{use.__name__}: peak memory, MiB"].append(f"{memory:.0f} | ")
        heads = [f"{count:,}: {what}" for count in given.sizes for what in ("processor", "wall")]
        print("| what: median (longest), s |", " | ".join(heads), "|")
        print("|---" + "|---:" * len(heads) + "|")
        for name, cells in table.items():
            print(f"| {name} |", " | ".join(cells), "|")
        if given.requests:
            print("\n| requests of a day's use | MiB |\n|---:|---:|")
            for number, memory in run_alone(use_all_day, Path(place) / str(given.sizes[0]), given.requests):
                print(f"| {number} | {memory:.0f} |")


if __name__ == "__main__":
    main()
