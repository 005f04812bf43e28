"""What a few steps of each kind of work take on this machine, measured on parts that are drawn for it."""

import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache

from defaug_utils.book.workload import Task
from defaug_utils.core.files import write_png
from defaug_utils.core.images import fit_image, fit_mask, read_image
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.data.samples import Samples
from defaug_utils.data.surfaces import draw_surface
from defaug_utils.diffusion.autoencoder import adapt_decoder, encode_images, to_floats
from defaug_utils.diffusion.controlnet import TrimapModel, make_controlnet, train_controlnet
from defaug_utils.diffusion.dreambooth import train_dreambooth
from defaug_utils.diffusion.inpainting import Inpainter, InpaintJob, inpaint_batch, load_inpainter
from defaug_utils.diffusion.loading import HUB_ID, INDEX, ModelError
from defaug_utils.diffusion.stand_ins import open_stand_in
from defaug_utils.diffusion.text2image import TextJob, TextToImage, generate_images, load_text2image
from defaug_utils.diffusion.training_images import read_training_images
from defaug_utils.evaluation.classifier import score_samples, train_classifier
from defaug_utils.evaluation.detector import train_detector, write_score_maps
from defaug_utils.masks.patches import read_defects
from defaug_utils.masks.trimaps import TripleSet, TripleSettings, read_good_images
from defaug_utils.methods.adabldm import blend_jobs
from defaug_utils.methods.cut_paste import CutPaste
from defaug_utils.methods.memseg import MemSeg
from defaug_utils.methods.textures import open_textures
from defaug_utils.training.loop import StepPlan
from defaug_utils.training.memory import pick_device

STEPS = 3  # of each kind, that count
AT_ONCE = 8  # images at most on a processor, whose time grows with their number
PARTS = 2  # good ones, and as many defective ones
TEXT = "background"
IMPORTS = (
    "import diffusers, defaug_utils.book.session, defaug_utils.evaluation.classifier as _, peft, seaborn"
)


class Cost(NamedTuple):
    """What was measured of a task: seconds and bytes."""

    step: float = 0.0  #: seconds of a step: of denoising, of one image; of a training, of one batch
    image: float = 0.0  #: seconds of an image beside its steps
    memory: int = 0  #: bytes at most, of a GPU or else of this process
    image_bytes: int = 0  #: that an image takes on the disk
    training_bytes: int = 0  #: that a training leaves on the disk
    problem: str = ""  #: why nothing was measured


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
        return [InpaintJob(image_u8, mask, TEXT, "", seed) for seed in range(self.limit(task.batch))]

    def limit(self, batch: int) -> int:
        """Images at once: all on a GPU, few on a processor."""
        return batch if self.device != "cpu" else min(batch, AT_ONCE)

    def open_text2image(self, task: Task) -> TextToImage:
        """The model that a task works with, or its stand-in."""
        dtype = getattr(torch, task.precision)
        if self.needs_stand_in(task.model):
            return open_stand_in(task.model, "text to image", self.device, dtype, task.clip_skip)
        return load_text2image(task.model, self.device, dtype, task.clip_skip)

    def open_inpainter(self, task: Task) -> Inpainter:
        """Likewise."""
        dtype = getattr(torch, task.precision)
        if self.needs_stand_in(task.model):
            return open_stand_in(task.model, "inpainting", self.device, dtype)
        return load_inpainter(task.model, self.device, dtype)

    def needs_stand_in(self, model: str) -> bool:
        """Whether a model would have to be fetched; on a processor a ModelError refuses that."""
        is_cached = HUB_ID.fullmatch(model) and isinstance(try_to_load_from_cache(model, INDEX), str)
        if Path(model).exists() or is_cached:
            return False
        if self.device == "cpu":
            raise ModelError(f"no model: {model} is not on this machine, nor a GPU for a stand-in")
        return True


def open_bench(folder: Path | str) -> Bench:
    """Measure in a folder, on the GPU when there is one."""
    return Bench(Path(folder), str(pick_device()))


def measure(bench: Bench, task: Task) -> Cost:
    """Measure a task by three of its steps; where that can't be done the cost says why."""
    reset_peak()
    try:
        cost = MEASURES[task.kind](bench, task)
    except ModelError as error:
        return Cost(problem=str(error))
    except (MemoryError, torch.OutOfMemoryError):
        return Cost(problem=f"a batch of {task.batch} does not fit in memory")
    finally:
        gc.collect()
    scale = task.batch / bench.limit(task.batch)
    return cost._replace(memory=int(scale * read_peak()))


def reset_peak() -> None:
    """Begin to watch memory anew, where the system lets us."""
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


def time_start(bench: Bench, task: Task) -> Cost:
    """A process that imports what a notebook imports."""
    command = [sys.executable, "-c", IMPORTS]
    return Cost(image=time_call(lambda: subprocess.run(command, check=True)))  # noqa: S603


def time_preparation(bench: Bench, task: Task) -> Cost:
    """Draw (where surfaces are drawn), read, fit and write."""
    drawn, folder = draw_surface(0, None).image_u8, bench.make_folder()
    source, target = folder / "source.png", folder / "target.png"
    write_png(source, drawn)

    def prepare() -> None:
        for seed in range(STEPS if task.settings else 0):
            write_png(source, draw_surface(seed, None).image_u8)
        for _ in range(STEPS):
            write_png(target, fit_image(read_image(source), task.size))

    seconds = time_call(prepare) / STEPS
    return Cost(image=seconds, image_bytes=count_files(folder) if task.settings else target.stat().st_size)


def time_memseg(bench: Bench, task: Task) -> Cost:
    """Images of MemSeg."""
    folder = bench.place_parts(task.size)
    method = MemSeg(folder, open_textures(""), task.settings, None)
    method.make([0], [0])  # reads the textures
    seconds = time_call(lambda: [method.make([seed], [seed]) for seed in range(1, 1 + STEPS)])
    return Cost(image=seconds / STEPS, image_bytes=bench.count_bytes(task.size))


def time_pasting(bench: Bench, task: Task) -> Cost:
    """Images of cut-and-paste."""
    method = CutPaste(bench.place_parts(task.size), bench.make_triples(task.size, task.size))
    seconds = time_call(lambda: [method.make([seed], [seed]) for seed in range(STEPS)])
    return Cost(image=seconds / STEPS, image_bytes=bench.count_bytes(task.size))


def time_text2image(bench: Bench, task: Task) -> Cost:
    """Denoising steps of pictures from text."""
    model = bench.open_text2image(task)
    jobs = [TextJob(TEXT, "", seed) for seed in range(bench.limit(task.batch))]
    seconds = time_steps(
        lambda steps: generate_images(model, jobs, replace(task.settings, steps=steps)), len(jobs)
    )
    return Cost(*seconds, image_bytes=bench.count_bytes(task.settings.size))


def time_inpainting(bench: Bench, task: Task) -> Cost:
    """Denoising steps of an inpainting model."""
    model = bench.open_inpainter(task)
    jobs = bench.make_jobs(task)

    def paint(steps: int) -> None:  # so many of one more: SDXL can't run all of them
        inpaint_batch(model, jobs, replace(task.settings, steps=steps + 1, strength=0.99))

    return Cost(*time_steps(paint, len(jobs)), image_bytes=bench.count_bytes(task.size))


def time_dreambooth(bench: Bench, task: Task) -> Cost:
    """Training steps of an adapter, on one picture that is shown often."""
    settings, lora = task.settings
    few, folder = bench.limit(task.batch), bench.place_parts(task.size)
    dataset = read_dataset(folder)
    images = read_training_images(list_sources(dataset).iloc[:1], dataset, folder, settings.buckets)
    settings = replace(
        settings, epochs=STEPS + 2, repeats=few, batch_size=few, prior_weight=0.0, save_every=10**6
    )
    target, stamps = bench.make_folder(), Stamps()
    train_dreambooth(bench.open_text2image(task), images, target, settings, lora, stamps)
    return Cost(stamps.step * task.batch / few, training_bytes=count_files(target))


def time_controlnet(bench: Bench, task: Task) -> Cost:
    """Training steps of a ControlNet on triples of drawn parts."""
    settings, precision, size = task.settings
    triples, few = bench.make_triples(task.size, size), bench.limit(task.batch)
    target, stamps = bench.make_folder(), Stamps()
    plan, how = StepPlan(STEPS + 2, 10**6, precision), replace(settings, batch_size=few)
    train_controlnet(bench.open_text2image(task), triples, target, how, plan, stamps)
    return Cost(stamps.step * task.batch / few, training_bytes=count_files(target))


def time_blending(bench: Bench, task: Task) -> Cost:
    """Denoising steps of AdaBLDM, and what its editing of images adds."""
    model, jobs = bench.open_text2image(task), bench.make_jobs(task)
    controlnet, dtype = make_controlnet(model), getattr(torch, task.precision)
    both = TrimapModel(model, controlnet if controlnet.dtype == dtype else controlnet.to(dtype))

    def blend(steps: int, editing: tuple[int, int] | None = None) -> None:
        settings = replace(task.settings, steps=steps, latent_editing=None, image_editing=editing)
        blend_jobs(both, jobs, settings)

    step, image = time_steps(blend, len(jobs))
    if task.settings.image_editing:
        first, end = task.settings.image_editing
        plain, edited = time_call(lambda: blend(1)), time_call(lambda: blend(1, (0, 1)))
        image += (end - first) * max(0.0, edited - plain) / len(jobs)
    return Cost(step, image, image_bytes=bench.count_bytes(task.size))


def time_adaptation(bench: Bench, task: Task) -> Cost:
    """Steps of AdaBLDM's decoder on one image."""
    settings, size = task.settings
    vae, job = bench.open_text2image(task).pipeline.vae, bench.make_jobs(task)[0]
    good = to_floats([fit_image(job.image_u8, size)]).to(bench.device)
    mask = torch.from_numpy(fit_mask(job.mask, size))[None, None].to(bench.device)
    with torch.no_grad():
        latents = encode_images(vae, good)
    seconds = time_steps(
        lambda steps: adapt_decoder(vae, latents, good, mask, replace(settings, steps=steps)), 1
    )
    return Cost(*seconds, image_bytes=bench.count_bytes(task.size))


def draw_samples(count: int, size: tuple[int, int]) -> Samples:
    """Noise with masks: `count` training images, half of them positive, and two for testing."""
    shape, generator = (count + 2, size[1], size[0]), np.random.default_rng(0)
    labels = torch.tensor([float(number % 2) for number in range(count + 2)])
    names = ("negative", "positive")
    rows = [
        {"image": f"{number}.png", "split": "train" if number < count else "test", "origin": "real"}
        | {"label": names[number % 2]}
        for number in range(count + 2)
    ]
    images_u8 = torch.from_numpy(generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
    masks = torch.zeros(shape, dtype=torch.bool)
    masks[1::2, :8, :8] = True
    return Samples(images_u8, labels, make_manifest(rows), masks)


def time_network(bench: Bench, task: Task) -> Cost:
    """Training steps of a classifier or detector from random weights, and what scoring an image takes."""
    few = bench.limit(task.batch)
    samples = draw_samples((STEPS + 2) * few, task.size)
    target, stamps = bench.make_folder(), Stamps()
    recipe = replace(task.settings, batch_size=few)
    is_detector = task.kind == "detector step"
    train = train_detector if is_detector else train_classifier
    trained = train(samples, target, recipe, task.model, on_step=stamps)
    left, count = count_files(target), (STEPS + 2) * few
    if is_detector:
        seconds = (
            time_call(lambda: write_score_maps(trained.model, samples, target, recipe.normalisation)) / 2
        )
    else:
        scored = ("train",)
        score = lambda: score_samples(trained.model, samples, recipe.normalisation, splits=scored)  # noqa: E731
        seconds = time_call(score) / count
    maps = (count_files(target) - left) // 2
    return Cost(stamps.step * task.batch / few, seconds, image_bytes=maps, training_bytes=left)


MEASURES: dict[str, Callable[[Bench, Task], Cost]] = {
    "start of a job": time_start,
    "prepared image": time_preparation,
    "MemSeg image": time_memseg,
    "pasted image": time_pasting,
    "text-to-image step": time_text2image,
    "DreamBooth step": time_dreambooth,
    "inpainting step": time_inpainting,
    "ControlNet step": time_controlnet,
    "blending step": time_blending,
    "decoder adaptation step": time_adaptation,
    "classifier step": time_network,
    "detector step": time_network,
}
