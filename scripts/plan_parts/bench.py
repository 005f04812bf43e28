"""The test bench of the forecast: drawn parts, models or their stand-ins, a clock, and peak memory."""

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
from defaug_utils.training.loop import StepDone
from defaug_utils.training.memory import pick_device
from plan_parts.workload import Task

STEPS = 3  # measured steps of each kind
AT_ONCE = 8  # largest batch on a CPU, where time is proportional to it
LARGE, LARGE_AT_ONCE = ("resnet18", "resnet50"), 2  # of these
PARTS = 2  # good ones, and as many defective ones
TEXT = "background"


@dataclass(frozen=True)
class Bench:
    """Where measurements run: a folder for their files, and a device."""

    folder: Path
    device: str

    def place_parts(self, size: tuple[int, int]) -> Path:
        """A small prepared data set with images of a size (width, height)."""
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
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def count_bytes(self, size: tuple[int, int]) -> int:
        """Bytes on disk of an image of a size (width, height)."""
        return (self.place_parts(size) / f"{PARTS}.png").stat().st_size

    def make_triples(self, size: tuple[int, int], working: tuple[int, int]) -> TripleSet:
        """Triples of the parts of a size, at a working size."""
        folder = self.place_parts(size)
        dataset = read_dataset(folder)
        goods = read_good_images(list_sources(dataset), folder, working)
        return TripleSet(read_defects(dataset, folder, working), goods, TripleSettings(template=TEXT))

    def make_jobs(self, task: Task) -> list[InpaintJob]:
        """Good parts with masks, as many as are painted at once."""
        folder = self.place_parts(task.size)
        image_u8 = read_image(folder / f"{PARTS}.png")
        mask = np.zeros(image_u8.shape[:2], bool)
        mask[: max(1, len(mask) // 4), : max(1, mask.shape[1] // 4)] = True
        return [InpaintJob(image_u8, mask, TEXT, "", seed) for seed in range(self.limit(task))]

    def limit(self, task: Task) -> int:
        """Images at once: the whole batch on a GPU, fewer on a CPU, and very few for a large network."""
        if self.device != "cpu":
            return task.batch
        return min(task.batch, AT_ONCE if task.model not in LARGE else LARGE_AT_ONCE)

    def open_text2image(self, task: Task) -> TextToImage:
        """The text-to-image model of a task, or its stand-in."""
        dtype = getattr(torch, task.precision)
        if self.needs_stand_in(task.model):
            return open_stand_in(task.model, "text to image", self.device, dtype, task.clip_skip)
        return load_text2image(task.model, self.device, dtype, task.clip_skip)

    def open_inpainter(self, task: Task) -> Inpainter:
        """The inpainting model of a task, or its stand-in."""
        dtype = getattr(torch, task.precision)
        if self.needs_stand_in(task.model):
            return open_stand_in(task.model, "inpainting", self.device, dtype)
        return load_inpainter(task.model, self.device, dtype)

    def needs_stand_in(self, model: str) -> bool:
        """Whether a model would have to be downloaded; on a CPU, that raises a ModelError."""
        is_cached = HUB_ID.fullmatch(model) and isinstance(try_to_load_from_cache(model, INDEX), str)
        if Path(model).exists() or is_cached:
            return False
        if self.device == "cpu":
            raise ModelError(f"no model: {model} is not on this machine, nor a GPU for a stand-in")
        return True


def open_bench(folder: Path | str) -> Bench:
    """Measure in a folder, on the GPU if there is one."""
    return Bench(Path(folder), str(pick_device()))


def reset_peak() -> None:
    """Reset the peak of memory use, if the system allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def read_peak() -> int:
    """Peak memory of the GPU or, without one, of this process, in bytes, since the reset if there was one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_clock() -> float:
    """Wall time in seconds once the GPU has finished; without one, CPU time, unaffected by other work."""
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
    """Seconds per image of a step and of everything else, for a call with a given number of steps."""
    run(1)  # warm-up
    short, long = (time_call(lambda count=count: run(count)) for count in (1, 1 + STEPS))
    step = max(0.0, long - short) / STEPS
    return step / images, max(0.0, short - step) / images


@dataclass
class Stamps:
    """Records the time after every training step, for `on_step`; of several trainings, that of the last."""

    moments: list[float] = field(default_factory=list)

    def __call__(self, done: StepDone) -> None:
        """Record a finished step."""
        if done.step == 1:
            self.moments.clear()
        self.moments.append(read_clock())

    @property
    def step(self) -> float:
        """Median seconds of a step, without the first and the last one, which writes the files."""
        return statistics.median(late - early for early, late in pairwise(self.moments[:-1]))


def count_files(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
