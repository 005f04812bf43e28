"""The bench of the forecast: drawn parts, models or their stand-ins, a clock, and the peak of memory."""

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache

from defaug_utils.book.workload import Task
from defaug_utils.core.files import write_png
from defaug_utils.core.images import fit_image, fit_mask, read_image
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.data.surfaces import draw_surface
from defaug_utils.diffusion.inpainting import Inpainter, InpaintJob, load_inpainter
from defaug_utils.diffusion.loading import HUB_ID, INDEX, ModelError
from defaug_utils.diffusion.stand_ins import open_stand_in
from defaug_utils.diffusion.text2image import TextToImage, load_text2image
from defaug_utils.masks.patches import read_defects
from defaug_utils.masks.trimaps import TripleSet, TripleSettings, read_good_images
from defaug_utils.training.memory import pick_device

STEPS = 3  # of each kind, that count
AT_ONCE = 8  # images at most on a processor, whose time grows with their number
LARGE, LARGE_AT_ONCE = ("resnet18", "resnet50"), 2  # of these
PARTS = 2  # good ones, and as many defective ones
TEXT = "background"


@dataclass(frozen=True)
class Bench:
    """Where is measured: a folder that may be filled, and a device."""

    folder: Path
    device: str

    def place_parts(self, size: tuple[int, int]) -> Path:
        """A small prepared data set of a size (width, height)."""
        folder, rows = self.folder / f"data-{size[0]}-{size[1]}", []
        if folder.is_dir():
            return folder
        for number in range(2 * PARTS):
            drawn = draw_surface(number, "scratch" if number < PARTS else None)
            row = {"image": f"{number}.png", "label": "negative", "split": "train", "origin": "real"}
            write_png(folder / row["image"], fit_image(drawn.image_u8, size))
            if number < PARTS:
                row |= {"label": "positive", "mask": f"{number}_mask.png", "defect_type": "scratch"}
                write_png(folder / row["mask"], fit_mask(drawn.mask, size))
            rows.append(row)
        write_manifest(make_manifest(rows), folder / "manifest.csv")
        return folder

    def make_folder(self) -> Path:
        """An empty one."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def count_bytes(self, size: tuple[int, int]) -> int:
        """Bytes of an image of a size (width, height) on the disk."""
        return (self.place_parts(size) / f"{PARTS}.png").stat().st_size

    def make_triples(self, size: tuple[int, int], working: tuple[int, int]) -> TripleSet:
        """Triples of the parts of a size, at a working size."""
        folder = self.place_parts(size)
        dataset = read_dataset(folder)
        goods = read_good_images(list_sources(dataset), folder, working)
        return TripleSet(read_defects(dataset, folder, working), goods, TripleSettings(template=TEXT))

    def make_jobs(self, task: Task) -> list[InpaintJob]:
        """Good parts and masks, as many as are painted at once."""
        folder = self.place_parts(task.size)
        image_u8 = read_image(folder / f"{PARTS}.png")
        mask = np.zeros(image_u8.shape[:2], bool)
        mask[: max(1, len(mask) // 4), : max(1, mask.shape[1] // 4)] = True
        return [InpaintJob(image_u8, mask, TEXT, "", seed) for seed in range(self.limit(task))]

    def limit(self, task: Task) -> int:
        """Images at once: all on a GPU, few on a processor, and very few of a large network."""
        if self.device != "cpu":
            return task.batch
        return min(task.batch, AT_ONCE if task.model not in LARGE else LARGE_AT_ONCE)

    def open_text2image(self, task: Task) -> TextToImage:
        """The model that a task works with, or its stand-in."""
        dtype = getattr(torch, task.precision)
        if self.needs_stand_in(task.model):
            return open_stand_in(task.model, "text to image", self.device, dtype, task.clip_skip)
        return load_text2image(task.model, self.device, dtype, task.clip_skip)

    def open_inpainter(self, task: Task) -> Inpainter:
        """The same for a model that inpaints."""
        dtype = getattr(torch, task.precision)
        if self.needs_stand_in(task.model):
            return open_stand_in(task.model, "inpainting", self.device, dtype)
        return load_inpainter(task.model, self.device, dtype)

    def needs_stand_in(self, model: str) -> bool:
        """Whether a model would have to be fetched; on a processor that raises a ModelError."""
        is_cached = HUB_ID.fullmatch(model) and isinstance(try_to_load_from_cache(model, INDEX), str)
        if Path(model).exists() or is_cached:
            return False
        if self.device == "cpu":
            raise ModelError(f"no model: {model} is not on this machine, nor a GPU for a stand-in")
        return True


def open_bench(folder: Path | str) -> Bench:
    """Measure in a folder, on the GPU when there is one."""
    return Bench(Path(folder), str(pick_device()))


def reset_peak() -> None:
    """Reset the peak of memory use, if the system allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def read_peak() -> int:
    """Bytes of the GPU at most since then; without one of this process, else since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_clock() -> float:
    """Seconds: of the wall once a GPU is done, else of the processor, so that other work doesn't count."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() + sum(os.times()[2:4])  # of this process and of those that it waited for


def time_call(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = read_clock()
    call()
    return read_clock() - start


def time_steps(run: Callable[[int], object], images: int) -> tuple[float, float]:
    """Seconds of a step and of the rest, an image, of a call that takes a number of steps."""
    run(1)  # what only a first call does
    short, long = (time_call(lambda count=count: run(count)) for count in (1, 1 + STEPS))
    step = max(0.0, long - short) / STEPS
    return step / images, max(0.0, short - step) / images


@dataclass
class Stamps:
    """The time after every step of a training, for `on_step`."""

    moments: list[float] = field(default_factory=list)

    def __call__(self, *_: object) -> None:
        """A step is finished."""
        self.moments.append(read_clock())

    @property
    def step(self) -> float:
        """Seconds of a step, without the first one and the last, which writes the files."""
        return statistics.median(late - early for early, late in pairwise(self.moments[:-1]))


def count_files(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
