"""Seconds and peak memory of every stage around a pool, as the number of images grows.

    python benchmarks/growth.py --sizes 1000 10000 --folder runs/growth
    python benchmarks/growth.py --sizes 1000 --stages resume review

A data set of so many images of 16 × 16 pixels is loaded, prepared and prepared again; a pool of as many is
begun, interrupted in the middle and finished; every image of it is accepted or rejected; what is accepted is
mixed into a training set, and that is exported in three formats. The method draws a square, so that the time
is the package's own. Each stage runs in a process of its own, once on eight images, so that all libraries are
there, and then on all; so the memory is what the stage takes at most, libraries included.

The seconds are the processor's, of all threads, so that they can be compared when a machine has other work;
a disk that is waited for is not in them. A table in Markdown is printed when a size is done. Without
`--folder` the files are temporary; with it they stay, and a stage that is named alone finds what the stages
before it made.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import numpy as np

from defaug_utils import core, data, protocol
from defaug_utils.core.sources import survey_sources
from defaug_utils.protocol.review_store import PoolReview

SIDE, SQUARE = 16, 5  # pixels of an image and of its defect
FEW = 8  # images on which a stage runs first
REJECTED = 10  # each so-manieth image is rejected
BOARD = ({"text": "white square", "weight": 3}, "bright spot", "pale mark")


class Interrupted(Exception):
    """What ends a stage in the middle."""


@dataclass(frozen=True)
class Squares:
    """A white square on a training negative; image `stop_at` is never made."""

    origin: ClassVar[str] = "memseg"
    group: ClassVar[int] = 1
    data: Path
    stop_at: int = -1

    @cached_property
    def sources(self) -> list[str]:
        """The negatives."""
        return list(core.list_sources(core.read_dataset(self.data))["image"])

    @cached_property
    def prompts(self) -> list:
        """The board."""
        return core.make_prompts(BOARD)

    def describe(self) -> dict:
        """What an image depends on, the negatives' pixels among it."""
        sources = core.list_sources(core.read_dataset(self.data))
        return {"side": SQUARE, "sources": survey_sources(sources, self.data)}

    def make(self, indices: Sequence[int], seeds: Sequence[int]) -> list[core.GeneratedImage]:
        """One square for each seed."""
        if self.stop_at in indices:
            raise Interrupted
        return [self._draw(index, seed) for index, seed in zip(indices, seeds, strict=True)]

    def _draw(self, index: int, seed: int) -> core.GeneratedImage:
        generator = np.random.default_rng(seed)
        source = self.sources[generator.integers(len(self.sources))]
        image_u8, mask = core.read_image(self.data / source).copy(), np.zeros((SIDE, SIDE), bool)
        top, left = generator.integers(0, SIDE - SQUARE, 2)
        mask[top : top + SQUARE, left : left + SQUARE] = True
        image_u8[mask] = 255
        prompt = core.choose_prompt(self.prompts, index).text
        row = {"source_image": source, "mask_source": "procedural", "prompt": prompt, "check_passed": True}
        return core.GeneratedImage(image_u8, mask, row)


def write_originals(run: Path, count: int) -> None:
    """Noise in the layout of own parts: of ten images one has a defect, and one of ten is for test."""
    generator, mask = np.random.default_rng(0), np.zeros((SIDE, SIDE), bool)
    mask[:SQUARE, :SQUARE] = True
    for number in range(count):
        split, is_positive = "test" if number % 10 > 8 else "train", number // 10 % 4 == 0 and number % 10 > 5
        folder, name = run / "originals" / split, f"{number:06d}.png"
        image_u8 = generator.integers(60, 180, (SIDE, SIDE, 3), dtype=np.uint8)
        core.write_png(folder / ("positive" if is_positive else "negative") / name, image_u8)
        if is_positive:
            core.write_png(folder / "masks" / name, mask)


def check_count(rows: Sequence, count: int) -> None:
    """Refuse to call something fast that is not done."""
    if len(rows) != count:
        raise RuntimeError(f"{len(rows)} images instead of {count}")


def prepare(run: Path, count: int) -> None:
    """Load the data set and bring it to one size; a second time, find that all is done."""
    parts = data.draw_validation(data.load_dataset(run / "originals"), 0.1, 0)
    check_count(data.prepare_dataset(parts, run / "originals", run / "data", (SIDE, SIDE)), count)


def begin_pool(run: Path, count: int) -> None:
    """Make half of the pool, until something interrupts it."""
    try:
        core.make_pool(run / "memseg", Squares(run / "data", count // 2), core.PoolPlan(count))
    except Interrupted:
        return


def finish_pool(run: Path, count: int) -> None:
    """Make what a pool lacks; of a finished one, find that nothing does."""
    check_count(core.make_pool(run / "memseg", Squares(run / "data"), core.PoolPlan(count)), count)


def review(run: Path, count: int) -> None:
    """Decide on every image."""
    opened = PoolReview(run / "memseg", "ann")
    for number, image in enumerate(opened.decisions):
        opened.decide(image, number % REJECTED > 0)


def merge(run: Path, count: int) -> None:
    """Bring the decisions into the manifest."""
    check_count(protocol.merge_reviews(run / "memseg"), count)


def mix(run: Path, count: int) -> None:
    """Compose a training set of all accepted images."""
    accepted = count - -(-count // REJECTED)
    (planned,) = core.planned_runs(["full-shot"], ["memseg"], [accepted], [0])
    pools, wanted = protocol.read_pools(run, planned), protocol.Mix(require_review=True)
    rows = protocol.compose_training_set(protocol.read_data(run), pools, planned, wanted)
    core.write_manifest(rows, run / "training-set.csv")


def export(run: Path, count: int, form: str) -> None:
    """Write the training set for another tool."""
    rows = core.read_manifest(run / "training-set.csv")
    data.export_training_set(rows, run, run / form, form, overwrite=True)


STAGES: dict[str, tuple[str, Callable[[Path, int], object]]] = {
    "write": ("*write the originals*", write_originals),
    "prepare": ("load and prepare the data set", prepare),
    "again": ("prepare it again", prepare),
    "make": ("make half of a pool", begin_pool),
    "resume": ("resume it and make the rest", finish_pool),
    "finished": ("find it finished", finish_pool),
    "review": ("decide on every image", review),
    "merge": ("merge the review", merge),
    "mix": ("compose a training set", mix),
    "mvtec": ("export it, MVTec AD", partial(export, form="mvtec")),
    "coco": ("export it, COCO", partial(export, form="coco")),
    "yolo": ("export it, YOLO", partial(export, form="yolo")),
}


def run_stage(name: str, folder: Path, count: int) -> tuple[float, float]:
    """Seconds that a stage takes, and the most memory of its process, MiB."""
    act = STAGES[name][1]
    act(folder / str(FEW), FEW)
    start = time.process_time()
    act(folder / str(count), count)
    return time.process_time() - start, peak_memory()


def peak_memory() -> float:
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def run_alone(function: Callable, *arguments: object) -> object:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def print_table(found: dict[int, dict[str, tuple[float, float]]], names: Sequence[str]) -> None:
    """One row a stage: seconds, milliseconds an image and peak memory at each size."""
    heads = [f"{count:,}: {what}" for count in found for what in ("s", "ms an image", "MiB")]
    print("| stage |", " | ".join(heads), "|")
    print("|---" + "|---:" * len(heads) + "|")
    for name in names:
        cells = [
            cell
            for count, of_size in found.items()
            for seconds, memory in [of_size[name]]
            for cell in (f"{seconds:.1f}", f"{1000 * seconds / count:.2f}", f"{memory:.0f}")
        ]
        print(f"| {STAGES[name][0]} |", " | ".join(cells), "|")
    print(flush=True)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], help="numbers of images")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--folder", type=Path, help="where files stay; temporary when not given")
    return parser.parse_args()


def main() -> None:
    """Run the stages at each size and print the table."""
    given, found = read_options(), {}
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as place:
        for name in given.stages:
            run_alone(STAGES[name][1], Path(place) / str(FEW), FEW)
        for count in given.sizes:
            found[count] = {}
            for name in given.stages:
                found[count][name] = run_alone(run_stage, name, Path(place), count)
                told = "{:.1f} s, {:.0f} MiB".format(*found[count][name])
                print(f"{count:,} {name}: {told}", file=sys.stderr, flush=True)
            print_table(found, given.stages)


if __name__ == "__main__":
    main()
