"""Small stages of the book, and the inputs that they share."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from layouts import write_ksdd2, write_mvtec
from tiny_models import save_model

from defaug_utils.book.batch import build_book, stage_book
from defaug_utils.core.files import lock_file, write_csv, write_png
from defaug_utils.core.manifest import image_seed, make_manifest, read_manifest, write_manifest
from defaug_utils.core.origins import Run, run_name
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.core.prompts import make_prompts
from defaug_utils.core.sources import list_sources
from defaug_utils.data.datasets import draw_few_shot, load_dataset
from defaug_utils.data.preparation import prepare_dataset
from defaug_utils.data.samples import Samples
from defaug_utils.diffusion.autoencoder import AdaptationSettings
from defaug_utils.diffusion.controlnet import (
    ControlNetSettings,
    TrimapModel,
    make_controlnet,
    train_controlnet,
)
from defaug_utils.diffusion.dreambooth import LORA, train_dreambooth
from defaug_utils.diffusion.dreambooth_plan import DreamBoothSettings
from defaug_utils.diffusion.inpainting import InpaintSettings, load_inpainter
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.text2image import TextSettings, TextToImage, load_text2image
from defaug_utils.diffusion.training_images import BucketSettings, choose_training_rows, read_training_images
from defaug_utils.evaluation.classifier import ClassifierPlan, finish_classifier, train_classifier
from defaug_utils.evaluation.detector import DetectorPlan, compose_detector_set, finish_detector
from defaug_utils.evaluation.pool_quality import measure_pools
from defaug_utils.evaluation.recipes import choose_recipe
from defaug_utils.masks.patches import read_defects
from defaug_utils.masks.sources import open_masks
from defaug_utils.masks.trimaps import TripleSet, read_good_images
from defaug_utils.methods.adabldm import AdaBLDM
from defaug_utils.methods.blending import BlendSettings
from defaug_utils.methods.cut_paste import CutPaste
from defaug_utils.methods.ddpm import DDPM
from defaug_utils.methods.diag import DIAG
from defaug_utils.methods.memseg import MemSeg
from defaug_utils.methods.painting import CheckLimits
from defaug_utils.methods.textures import open_textures
from defaug_utils.protocol.review_store import PoolReview
from defaug_utils.report.results import gather_results, summarise_results
from defaug_utils.training.backbones import open_features
from defaug_utils.training.loop import StepPlan
from defaug_utils.widgets.studio import Studio, StudioRequest

SIZE = (32, 96)
COUNT = 12
BACKBONE = "resnet10_quarter"
WEIGHTS = Path(__file__).parents[2] / "models" / "backbones" / f"{BACKBONE}.safetensors"
PROMPTS = make_prompts(["white marks", "crack"], "dark")
TOLD = "told.txt"  # images whose decision was confirmed, beside a stage's folder


def write_inputs(folder: Path) -> None:
    """Inputs of all stages, made once: data sets, models, and a run with a pool and finished trainings."""
    write_ksdd2(folder / "set", train=(12, 4), test=(6, 2), size=(92, 252))
    write_mvtec(folder / "grid", per_type=4)
    few = draw_few_shot(load_dataset(folder / "grid"), 2)
    prepare_dataset(few, folder / "grid", folder / "data", SIZE)
    save_model(folder / "inpainting")
    save_model(folder / "text2image", unet_channels=4)
    dreambooth(folder, folder / "adapter")
    memseg(folder, folder / "memseg")
    plan = ClassifierPlan("workshop", BACKBONE, epochs=1, batch_size=4)
    for seed in range(3):
        finish_classifier(folder, run_name("few-shot", "none", 0, seed), make_samples(), plan)
    write_pages(folder / "pages")
    for path in folder.rglob("*"):  # readable without the rights of root, too
        path.chmod(path.stat().st_mode | 0o044)


def write_pages(folder: Path) -> None:
    """Sources of a small book: two pages and an executed notebook."""
    for name in ("book", "notebooks"):
        (folder / name).mkdir(parents=True)
    (folder / "_config.yml").write_text("title: Small\nexecute: {execute_notebooks: 'off'}\n")
    chapters = "chapters: [{file: book/more}, {file: notebooks/01_all}]"
    (folder / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\n{chapters}\n")
    for name in ("index", "more"):
        (folder / "book" / f"{name}.md").write_text(f"# About {name}\n\nWords.\n")
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# All\n", "\n", "Words."]}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "notebooks" / "01_all.ipynb").write_text(json.dumps(notebook))


def make_samples() -> Samples:
    """Noise, in all splits."""
    generator, rows = np.random.default_rng(0), []
    for index in range(24):
        label, split = ("negative", "positive")[index % 2], ("train", "train", "test")[index % 3]
        rows.append({"image": f"{index}.png", "label": label, "split": split, "origin": "real"})
    images = torch.from_numpy(generator.integers(0, 255, (24, 32, 32, 3), dtype=np.uint8))
    labels = torch.tensor([float(row["label"] == "positive") for row in rows])
    return Samples(images, labels, make_manifest(rows))


def open_text_model(shared: Path) -> TextToImage:
    """The tiny model that makes images from text."""
    return load_text2image(shared / "text2image", clip_skip=1)


def make_triples(shared: Path) -> TripleSet:
    """Triples of the prepared data set's defects and good images."""
    data = read_manifest(shared / "data" / "manifest.csv")
    goods = read_good_images(list_sources(data), shared / "data", SIZE)
    return TripleSet(read_defects(data, shared / "data", SIZE), goods, count=8)


def prepare(shared: Path, folder: Path) -> None:
    """Prepare a data set."""
    prepare_dataset(load_dataset(shared / "set"), shared / "set", folder, (46, 126))


def memseg(shared: Path, folder: Path) -> None:
    """A pool of simulated anomalies."""
    make_pool(folder, MemSeg(shared / "data", open_textures("")), PoolPlan(COUNT, 3))


def refill(shared: Path, folder: Path) -> None:
    """The same pool, grown to twice as many images."""
    make_pool(folder, MemSeg(shared / "data", open_textures("")), PoolPlan(2 * COUNT, 3))


def cut_paste(shared: Path, folder: Path) -> None:
    """A pool of pasted defects."""
    make_pool(folder, CutPaste(shared / "data", make_triples(shared)), PoolPlan(COUNT, 3))


def diag(shared: Path, folder: Path) -> None:
    """A pool that a tiny diffusion model inpaints, in groups."""
    method = DIAG(
        data=shared / "data",
        inpainter=load_inpainter(shared / "inpainting"),
        prompts=PROMPTS,
        masks=open_masks("procedural"),
        settings=InpaintSettings(SIZE, steps=3),
        limits=CheckLimits(contrast=0, completeness=0),
        group=3,
    )
    make_pool(folder, method, PoolPlan(COUNT, 3))


def ddpm(shared: Path, folder: Path) -> None:
    """A pool of a tiny model with a merged adapter."""
    method = DDPM(
        model=open_text_model(shared),
        prompts=PROMPTS,
        settings=TextSettings(SIZE, steps=3),
        data=shared / "data",
        lora=shared / "adapter" / LORA,
        share=0.6,
        group=3,
    )
    make_pool(folder, method, PoolPlan(COUNT, 3))


def adabldm(shared: Path, folder: Path) -> None:
    """A pool that a tiny model blends, with decoders adapted to each image."""
    model = open_text_model(shared)
    method = AdaBLDM(
        data=shared / "data",
        prompts=PROMPTS,
        masks=open_masks("procedural"),
        model=TrimapModel(model, make_controlnet(model)),
        settings=BlendSettings(SIZE, 3, latent_editing=(2, 3), image_editing=(2, 3)),
        adaptation=AdaptationSettings(steps=2),
        limits=CheckLimits(contrast=0, completeness=0),
        group=3,
    )
    make_pool(folder, method, PoolPlan(6, 3))


def controlnet(shared: Path, folder: Path) -> None:
    """A ControlNet of a tiny model."""
    settings, plan = ControlNetSettings(batch_size=2), StepPlan(6, save_every=2)
    train_controlnet(open_text_model(shared), make_triples(shared), folder, settings, plan)


def classifier(shared: Path, folder: Path) -> None:
    """A classifier on noise, with a checkpoint per epoch."""
    recipe = choose_recipe("workshop", epochs=6, batch_size=4)
    train_classifier(make_samples(), folder, recipe, BACKBONE, seed=1)


def detector(shared: Path, folder: Path) -> None:
    """A detector of defect pixels, its score maps and metrics, in a run whose data set is a link."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (folder / "data").symlink_to(shared / "data")
    run, plan = Run("full-shot", "none", 0, 1), DetectorPlan(BACKBONE, training_images=24, batch_size=4)
    finish_detector(folder, run_name(*run), compose_detector_set(folder, run), plan)


def dreambooth(shared: Path, folder: Path) -> None:
    """An adapter of a tiny model."""
    data = read_manifest(shared / "data" / "manifest.csv")
    buckets = BucketSettings(area=SIZE[0] * SIZE[1], smallest=8, largest=96, step=4)
    rows = choose_training_rows(data, "few-shot", seed=0, few_shot_count=3)
    settings = DreamBoothSettings(
        epochs=3, repeats=2, batch_size=2, save_every=2, seed=5, buckets=buckets, gradient_checkpointing=False
    )
    images = read_training_images(rows, data, shared / "data", buckets, None)
    train_dreambooth(
        open_text_model(shared),
        images,
        folder,
        settings,
        LoraPlan(linear_rank=2, linear_alpha=1, conv_rank=1),
    )


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
    decide_all(shared, folder)


def decide_all(shared: Path, folder: Path) -> None:
    """Decisions on all images of an existing pool."""
    store = PoolReview(folder)
    for index, image in enumerate(store.decisions):
        store.decide(image, index % 3 > 0)
        confirm(folder, image, index % 3 > 0)
        time.sleep(0.005)


def confirm(folder: Path, image: str, accepted: bool) -> None:
    """Record that a decision was confirmed."""
    with folder.with_name(TOLD).open("ab", buffering=0) as told:
        told.write(f"{image} {accepted}\n".encode())


def studio(shared: Path, folder: Path) -> None:
    """Images that are painted by hand and judged one by one."""
    settings = InpaintSettings(SIZE, steps=3)
    opened = Studio(folder, shared / "data", load_inpainter(shared / "inpainting"), settings)
    mask = np.zeros(SIZE[::-1], bool)
    mask[20:40, 8:24] = True
    request = StudioRequest(next(iter(opened.categories)), mask, "crack", steps=3)
    for number, image in enumerate(opened.paint(request, COUNT // 2)):
        kept = opened.decide(image, number % 3 > 0, f"number {number}")
        confirm(folder, kept.row["image"], number % 3 > 0)


def results(shared: Path, folder: Path) -> None:
    """The tables of chapter 8, from finished trainings and a pool."""
    runs = gather_results(shared)
    write_csv(runs, folder / "runs.csv")
    write_csv(summarise_results(runs), folder / "summary.csv")
    quality = measure_pools(shared, open_features(BACKBONE, str(WEIGHTS)), draws=2)
    write_csv(quality, folder / "pool_quality.csv")


def book(shared: Path, folder: Path) -> None:
    """The build of a book from executed notebooks, as the engine does it."""
    with lock_file(folder / "built", 0):
        executed = {"01_all": shared / "pages" / "notebooks" / "01_all.ipynb"}
        stage_book(shared / "pages", executed, folder)
        build_book(folder)
        (folder / "built").touch()


Stage = Callable[[Path, Path], None]  # gets the folder of shared inputs, and its own
POOLS = (memseg, cut_paste, diag, ddpm, adabldm)
TRAININGS = (dreambooth, controlnet, classifier, detector)
STAGES: dict[str, Stage] = {
    stage.__name__: stage for stage in (prepare, *POOLS, *TRAININGS, review, studio, results, book)
}
