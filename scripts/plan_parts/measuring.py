"""Measures a few steps of each kind of work on this machine."""

import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from defaug_utils.core.files import write_png
from defaug_utils.core.images import fit_image, fit_mask, read_image
from defaug_utils.core.manifest import make_manifest
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.data.samples import Samples
from defaug_utils.data.surfaces import draw_surface
from defaug_utils.diffusion.autoencoder import adapt_decoder, encode_images, to_floats
from defaug_utils.diffusion.controlnet import TrimapModel, make_controlnet, train_controlnet
from defaug_utils.diffusion.dreambooth import train_dreambooth
from defaug_utils.diffusion.inpainting import inpaint_batch
from defaug_utils.diffusion.inpainting_lora import MaskedDefect, train_inpainting_lora
from defaug_utils.diffusion.loading import ModelError
from defaug_utils.diffusion.text2image import TextJob, generate_images
from defaug_utils.diffusion.training_images import read_training_images
from defaug_utils.evaluation.classifier import score_samples, train_classifier
from defaug_utils.evaluation.destseg import train_destseg, train_student
from defaug_utils.evaluation.detector import train_detector, write_score_maps
from defaug_utils.evaluation.recipes import Start
from defaug_utils.methods.adabldm import blend_jobs
from defaug_utils.methods.cut_paste import CutPaste
from defaug_utils.methods.memseg import MemSeg
from defaug_utils.methods.textures import open_textures
from defaug_utils.training.loop import StepPlan
from plan_parts.bench import (
    STEPS,
    TEXT,
    Bench,
    Stamps,
    count_files,
    read_peak,
    reset_peak,
    time_call,
    time_steps,
)
from plan_parts.workload import OWN_METHOD, Task

IMPORTS = (
    "import diffusers, defaug_utils.book.session, defaug_utils.evaluation.classifier as _, peft, seaborn"
)
TRAININGS = {"classifier step": train_classifier, "detector step": train_detector, "head step": train_destseg}


class Cost(NamedTuple):
    """The measured cost of a task, in seconds and bytes."""

    step: float = 0.0  #: seconds of a denoising step of one image, or of a training step of one batch
    image: float = 0.0  #: seconds of an image besides its steps
    memory: int = 0  #: peak bytes, of the GPU or of this process
    image_bytes: int = 0  #: on disk, per image
    training_bytes: int = 0  #: on disk, per training
    problem: str = ""  #: why nothing was measured; empty if it was


def measure(bench: Bench, task: Task) -> Cost:
    """Measure three steps of a task; if that is impossible, the cost says why."""
    reset_peak()
    before = read_peak()
    try:
        cost = MEASURES[task.kind](bench, task)
    except ModelError as error:
        return Cost(problem=str(error))
    except (MemoryError, torch.OutOfMemoryError):
        return Cost(problem=f"a batch of {task.batch} does not fit in memory")
    finally:
        gc.collect()
    scale = task.batch / bench.limit(task)
    return cost._replace(memory=int(before + scale * (read_peak() - before)))


def time_start(bench: Bench, task: Task) -> Cost:
    """Start a process that imports what a notebook imports."""
    command = [sys.executable, "-c", IMPORTS]
    return Cost(image=time_call(lambda: subprocess.run(command, check=True)))  # noqa: S603


def time_preparation(bench: Bench, task: Task) -> Cost:
    """Draw (if surfaces are drawn), read, fit and write images."""
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
    method.make([0], [0])  # warm-up: reads the textures
    seconds = time_call(lambda: [method.make([seed], [seed]) for seed in range(1, 1 + STEPS)])
    return Cost(image=seconds / STEPS, image_bytes=bench.count_bytes(task.size))


def time_pasting(bench: Bench, task: Task) -> Cost:
    """Images of cut-and-paste."""
    method = CutPaste(bench.place_parts(task.size), bench.make_triples(task.size, task.size))
    seconds = time_call(lambda: [method.make([seed], [seed]) for seed in range(STEPS)])
    return Cost(image=seconds / STEPS, image_bytes=bench.count_bytes(task.size))


def time_text2image(bench: Bench, task: Task) -> Cost:
    """Denoising steps of a text-to-image model."""
    model = bench.open_text2image(task)
    jobs = [TextJob(TEXT, "", seed) for seed in range(bench.limit(task))]
    seconds = time_steps(
        lambda steps: generate_images(model, jobs, replace(task.settings, steps=steps)), len(jobs)
    )
    return Cost(*seconds, image_bytes=bench.count_bytes(task.settings.size))


def time_inpainting(bench: Bench, task: Task) -> Cost:
    """Denoising steps of an inpainting model."""
    model = bench.open_inpainter(task)
    jobs = bench.make_jobs(task)

    def paint(steps: int) -> None:  # runs one step fewer than given: SDXL fails at strength 1
        inpaint_batch(model, jobs, replace(task.settings, steps=steps + 1, strength=0.99))

    return Cost(*time_steps(paint, len(jobs)), image_bytes=bench.count_bytes(task.size))


def time_dreambooth(bench: Bench, task: Task) -> Cost:
    """Training steps of an adapter, on one repeated image."""
    settings, lora = task.settings
    few, folder = bench.limit(task), bench.place_parts(task.size)
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
    triples, few = bench.make_triples(task.size, size), bench.limit(task)
    target, stamps = bench.make_folder(), Stamps()
    plan, how = StepPlan(STEPS + 2, 10**6, precision), replace(settings, batch_size=few)
    train_controlnet(bench.open_text2image(task), triples, target, how, plan, stamps)
    return Cost(stamps.step * task.batch / few, training_bytes=count_files(target))


def time_inpainting_lora(bench: Bench, task: Task) -> Cost:
    """Training steps of an inpainting network's adapter, on one image."""
    settings, lora, precision = task.settings
    few, target, stamps = bench.limit(task), bench.make_folder(), Stamps()
    defect = MaskedDefect(*bench.make_jobs(task)[0][:3], "defect")
    plan, how = StepPlan(STEPS + 2, 10**6, precision), replace(settings, batch_size=few)
    train_inpainting_lora(bench.open_inpainter(task), [defect], target, how, lora, plan, stamps)
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
    """Training steps of a classifier or detector from random weights, and the scoring of an image."""
    few = bench.limit(task)
    samples = draw_samples((STEPS + 2) * few, task.size)
    target, stamps = bench.make_folder(), Stamps()
    recipe = replace(task.settings, batch_size=few)
    trained = TRAININGS[task.kind](samples, target, recipe, task.model, on_step=stamps)
    left, model, scale = count_files(target), trained.model, recipe.normalisation
    if task.kind != "classifier step":
        seconds = time_call(lambda: write_score_maps(model, samples, target, scale)) / 2
    else:
        seconds = time_call(lambda: score_samples(model, samples, scale, splits=("train",)))
        seconds /= (STEPS + 2) * few
    maps = (count_files(target) - left) // 2
    return Cost(stamps.step * task.batch / few, seconds, image_bytes=maps, training_bytes=left)


def time_student(bench: Bench, task: Task) -> Cost:
    """Training steps of DeSTSeg's student on good images, half of those that are drawn."""
    few, target, stamps = bench.limit(task), bench.make_folder(), Stamps()
    samples = draw_samples(2 * (STEPS + 2) * few, task.size)
    train_student(samples, target, replace(task.settings, batch_size=few), Start(task.model), stamps)
    return Cost(stamps.step * task.batch / few, training_bytes=count_files(target))


def refuse(bench: Bench, task: Task) -> Cost:
    """A user's own method, about which nothing is known."""
    return Cost(problem=f"the forecast does not know the method of {task.settings}")


MEASURES: dict[str, Callable[[Bench, Task], Cost]] = {
    "start of a job": time_start,
    "prepared image": time_preparation,
    "MemSeg image": time_memseg,
    "pasted image": time_pasting,
    "text-to-image step": time_text2image,
    "DreamBooth step": time_dreambooth,
    "inpainting step": time_inpainting,
    "inpainting LoRA step": time_inpainting_lora,
    "ControlNet step": time_controlnet,
    "blending step": time_blending,
    "decoder adaptation step": time_adaptation,
    "classifier step": time_network,
    "detector step": time_network,
    "student step": time_student,
    "head step": time_network,
    OWN_METHOD: refuse,
}
