"""The work of each job of a profile: images, steps and trainings, counted as in the notebooks."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from defaug_utils.book.plan import BookPlan, Job
from defaug_utils.book.profiles import read_defaults
from defaug_utils.core.origins import Run, find_judge, generates_images
from defaug_utils.diffusion.autoencoder import AdaptationSettings
from defaug_utils.diffusion.controlnet import ControlNetSettings
from defaug_utils.diffusion.dreambooth_plan import DreamBoothSettings, plan_steps
from defaug_utils.diffusion.inpainting import InpaintSettings
from defaug_utils.diffusion.inpainting_lora import InpaintingLoraSettings
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.text2image import TextSettings
from defaug_utils.diffusion.training_images import BucketSettings, choose_bucket, list_buckets
from defaug_utils.evaluation.classifier import ClassifierPlan
from defaug_utils.evaluation.destseg import plan_student
from defaug_utils.evaluation.detector import DetectorPlan
from defaug_utils.evaluation.recipes import Recipe, plan_epochs, split_batches
from defaug_utils.methods.blending import BlendSettings
from defaug_utils.methods.memseg import MemSegSettings

OWN_METHOD = "own method"
SWEEP = 6  # images of chapter 4 at other guidances and strengths
TRIED, ABLATED = 2, 4  # images per sampling in chapter 5's training, and of its stages
EXPLAINED = 10  # images that the chapter on diffusion samples
COMPARED = 6  # masks that chapter 11 paints before and after the training
Values = Mapping[str, object]


class Task(NamedTuple):
    """One kind of work, and everything that its time depends on."""

    kind: str
    settings: Hashable = None  #: of the package, with an arbitrary number of steps, images or epochs
    model: str = ""  #: diffusion model, or a network's name in `BACKBONES`
    size: tuple[int, int] = (0, 0)  #: (width, height) of the data's images, or of a network's input
    batch: int = 1  #: images at once
    precision: str = "float32"  #: of the model's weights
    clip_skip: int = 1


class Work(NamedTuple):
    """A task, and how often a job does it."""

    task: Task
    images: int = 0  #: made, or scored by a network
    steps: int = 0  #: denoising steps of one image, or training steps of one batch
    trainings: int = 0  #: each stores its files in the run's folder


@dataclass(frozen=True)
class Workload:
    """A profile and its data."""

    book: BookPlan
    given: Mapping[str, Values]  #: parameters by notebook, defaults included
    data: pd.DataFrame  #: rows of the prepared data set, with their split and label
    shards: int = 1  #: jobs that each pool is cut into
    processes: int = 1  #: of each training of a diffusion model

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the prepared images."""
        return (self.given["01_data_prep"]["image_width"], self.given["01_data_prep"]["image_height"])

    def count(self, split: str, label: str = "") -> int:
        """Images of a split, or of one of its labels."""
        rows = self.data[self.data["split"] == split]
        return int((rows["label"] == label).sum() if label else len(rows))

    def count_known(self, scenario: str, few_shot_count: int) -> int:
        """Real training positives that a scenario knows."""
        known = {"zero-shot": 0, "few-shot": few_shot_count}
        return known.get(scenario, self.count("train", "positive"))

    def count_types(self) -> int:
        """Defect types of the training positives."""
        rows = self.data[(self.data["split"] == "train") & (self.data["label"] == "positive")]
        return rows["defect_type"].nunique()

    def list_work(self, job: Job) -> list[Work]:
        """The work of a job, including its start."""
        chapter = job.name.partition("/")[0]
        counters: dict[str, Callable[[Job], list[Work]]] = {
            "diffusion": self._explain_diffusion,
            "classifiers": self._train_classifiers,
            "classifier": self._show_classifier,
            "detectors": self._train_detectors,
            "data_prep": self._prepare_data,
            "02_memseg": self._paint_memseg,
            "03_lora_finetune": self._finetune,
            "04_diag_inpainting": self._inpaint,
            "05_adabldm": self._blend,
            "10_own_defect": self._try_own_defects,
            "11_diag_tuned": self._tune,
        }
        count = counters.get(job.rule) or counters.get(chapter) or self._name_unknown
        return [Work(Task("start of a job"), images=1), *self._take_part(job, count(job))]

    def _take_part(self, job: Job, work: list[Work]) -> list[Work]:
        """What a job does of a pool's work. Shards share the notebook's few other images, too."""
        jobs = {one.rule for one in self.list_jobs() if one.name == job.name}
        if job.rule == "training":
            return [_divide(one, self.processes) for one in work if one.trainings]
        if job.rule == "shard":
            return [_divide(one, self.shards) for one in work if not one.trainings]
        return [one for one in work if ("training" if one.trainings else "shard") not in jobs]

    def list_jobs(self, target: str = "book") -> list[Job]:
        """All jobs of a target, see `BookPlan.list_jobs`."""
        return self.book.list_jobs(target, self.shards, self.processes)

    def _name_unknown(self, job: Job) -> list[Work]:
        """The work of a user's own method; none for a page that makes nothing."""
        return [Work(Task(OWN_METHOD, job.name.partition("/")[0]))] if job.rule == "pool" else []

    def _explain_diffusion(self, job: Job) -> list[Work]:
        p = self.given["00_diffusion"]
        settings = TextSettings((p["width"], p["height"]), 1, p["guidance"])
        return [Work(Task("text-to-image step", settings, p["model"]), EXPLAINED, EXPLAINED * p["steps"])]

    def _prepare_data(self, job: Job) -> list[Work]:
        is_drawn = not self.given["01_data_prep"]["data_root"]
        return [Work(Task("prepared image", is_drawn, size=self.size), images=len(self.data))]

    def _paint_memseg(self, job: Job) -> list[Work]:
        p = self.given["02_memseg"]
        foreground = "whole" if p["foreground"] == "object" else p["foreground"]
        opacity, grid = (p["opacity_low"], p["opacity_high"]), (p["grid_rows"], p["grid_columns"])
        settings = MemSegSettings(p["texture_share"], opacity, grid, foreground=foreground)
        return [Work(Task("MemSeg image", settings, size=self.size), images=p["pool_count"])]

    def _finetune(self, job: Job) -> list[Work]:
        p, scenario = self.given["03_lora_finetune"], self.book.pools[job.name].scenario
        settings, steps = self.plan_dreambooth(scenario)
        lora = LoraPlan(p["linear_rank"], p["linear_alpha"], p["conv_rank"], p["conv_alpha"])
        model = {"model": p["model"], "precision": p["precision"], "clip_skip": p["clip_skip"]}
        working = (p["working_width"], p["working_height"])
        text = Task(
            "text-to-image step", TextSettings(working, 1, p["guidance"]), batch=p["group_size"], **model
        )
        prompts = p["prompts"].get(scenario, [p["identifier"]])
        searched = p["kept_times"] * sum(share != 1 for share in p["copy_shares"])
        groups = 1 + p["kept_times"] + 1 + len(prompts) + searched  # before, during and after the training
        pictures = p["sample_count"] * groups
        pictures += fill_groups(p["pool_count"], p["group_size"]) + p["group_size"]
        if job.name == next(name for name in self.book.pools if name.startswith("03_lora")):
            pictures += fill_groups(p["regularisation_count"], p["group_size"])  # shared by all notebooks
        trained = Task("DreamBooth step", (settings, lora), size=self.size, batch=p["batch_size"], **model)
        return [Work(text, pictures, pictures * p["steps"]), Work(trained, steps=steps, trainings=1)]

    def plan_dreambooth(self, scenario: str) -> tuple[DreamBoothSettings, int]:
        """Settings of a scenario's fine-tuning, for one epoch, and its steps."""
        p = self.given["03_lora_finetune"]
        word = f"{p['identifier']} {p['class_prompt']}"
        sides = (p[f"bucket_{side}"] for side in ("area", "smallest", "largest", "step"))
        settings = DreamBoothSettings(
            p["identifier"],
            word,
            p["class_prompt"],
            epochs=p["epochs"][scenario],
            repeats=p["repeats"],
            batch_size=p["batch_size"],
            prior_weight=p["prior_weight"],
            class_images=p["class_images"],
            precision=p["training_precision"],
            gradient_checkpointing=p["gradient_checkpointing"],
            buckets=BucketSettings(*sides),
        )
        buckets = list_buckets(settings.buckets)
        instances = p["instances"][scenario] or self.count("train", "positive")
        own = [choose_bucket(self.size, buckets)] * instances
        working = (p["working_width"], p["working_height"])
        of_class = [choose_bucket(working, buckets)] * (p["regularisation_count"] if p["prior_weight"] else 0)
        return replace(settings, epochs=1), len(plan_steps(own, of_class, settings))

    def _inpaint(self, job: Job) -> list[Work]:
        p = self.given["04_diag_inpainting"]
        settings = replace(read_inpainting(p), feather=p["feather"])
        pictures = 1 + SWEEP + len(p["prompts"]) * p["board_seeds"]
        pictures += fill_groups(p["pool_count"], p["batch_size"]) + p["batch_size"]
        pictures += fill_groups(p["real_mask_count"], p["batch_size"])
        task = self._name_inpainting(settings, p["model"], p)
        return [Work(task, pictures, pictures * settings.effective_steps)]

    def _name_inpainting(self, settings: InpaintSettings, model: str, p: Values) -> Task:
        settings = replace(settings, steps=1, strength=1.0)  # both are arbitrary
        return Task("inpainting step", settings, model, self.size, p["batch_size"], p["precision"])

    def _tune(self, job: Job) -> list[Work]:
        p = self.given["11_diag_tuned"]
        settings = replace(read_inpainting(p), feather=p["feather"])
        pictures = 2 * COMPARED + fill_groups(p["pool_count"], p["batch_size"]) + p["batch_size"]
        painted = self._name_inpainting(settings, p["model"], p)
        size, rate, batch = settings.size, p["learning_rate"], p["training_batch"]
        how = InpaintingLoraSettings(size, settings.padding_mask_crop, batch, rate, p["flips"])
        lora = LoraPlan(p["linear_rank"], p["linear_alpha"], p["conv_rank"], p["conv_alpha"])
        tuning = (how, lora, p["training_precision"])
        trained = Task("inpainting LoRA step", tuning, p["model"], self.size, batch, p["precision"])
        return [
            Work(painted, pictures, pictures * settings.effective_steps),
            Work(trained, steps=p["training_steps"], trainings=1),
        ]

    def _blend(self, job: Job) -> list[Work]:
        p = self.given["05_adabldm"]
        model = {"model": p["model"], "precision": p["precision"], "clip_skip": p["clip_skip"]}
        working = (p["working_width"], p["working_height"])
        editing = (p["latent_editing"], p["image_editing"])
        stages = (tuple(borders) or None for borders in editing)
        settings = BlendSettings(working, p["steps"], p["guidance"], *stages, p["dilation"])
        how = ControlNetSettings(p["training_batch"], p["learning_rate"]), p["training_precision"], working
        controlnet = Task("ControlNet step", how, size=self.size, batch=p["training_batch"], **model)
        trainings = self.count_types() if p["controlnet_per"] == "type" else 1
        samples = trainings * -(-p["training_steps"] // p["sample_every"])
        made = fill_groups(p["pool_count"], p["batch_size"])
        blended = max(made, fill_groups(p["plain_count"], p["batch_size"])) + p["batch_size"]
        blended += TRIED * samples + ABLATED + p["compared_count"]
        decoded = made + p["batch_size"] + 1 + p["compared_count"]
        adaptation = AdaptationSettings(
            p["adapted_parameters"],
            1,
            p["adaptation_rate"],
            p["background_weight"],
            precision=p["adaptation_precision"],
        )
        blending = Task("blending step", settings, batch=p["batch_size"], size=self.size, **model)
        decoder = Task("decoder adaptation step", (adaptation, working), size=self.size, **model)
        return [
            Work(controlnet, steps=trainings * p["training_steps"], trainings=trainings),
            Work(blending, blended, blended * p["steps"]),
            Work(decoder, decoded, decoded * p["adaptation_steps"]),
            Work(Task("pasted image", size=self.size), p["pool_count"]),
            *self._refine(p),
        ]

    def _refine(self, p: Values) -> list[Work]:
        if not p["refined_count"]:
            return []
        settings = InpaintSettings(
            tuple(p["refined_size"]),
            p["steps"],
            p["refined_guidance"],
            p["refined_strength"],
            p["refined_size"][0] // 8,
        )
        pictures = fill_groups(p["refined_count"], p["batch_size"])
        task = self._name_inpainting(settings, p["inpainting_model"], p)
        return [Work(task, pictures, pictures * settings.effective_steps)]

    def _train_classifiers(self, job: Job) -> list[Work]:
        return [self._train_classifier(run) for run in self.book.trained["classifier"][job.name]]

    def _train_classifier(self, run: Run) -> Work:
        p, few = self.given["07_classifier"], self.given["06_in_and_out"]["few_shot_count"]
        return self._count_training(run, p, few)

    def _count_training(self, run: Run, p: Values, few: int) -> Work:
        names = ("recipe", "backbone", "weights", "epochs", "batch_size", "learning_rate")
        positives = self.count_known(run.scenario, few) + run.n_aug * generates_images(run.arm)
        labels = make_labels(self.count("train", "negative"), positives)
        recipe = ClassifierPlan(*(p.get(name, 0) for name in names)).fit_recipe(labels, run)
        size, scored = pick_size(p, self.size), len(self.data)
        task = Task("classifier step", replace(recipe, epochs=1), p["backbone"], size, recipe.batch_size)
        if find_judge(run.arm) != "network":
            return Work(task, scored)
        return Work(task, scored, count_steps(labels.tobytes(), recipe), trainings=1)

    def _try_own_defects(self, job: Job) -> list[Work]:
        """Painting the stored drawings, and two trainings that show equally many images."""
        p = self.given["10_own_defect"]
        settings = read_inpainting(p)
        task = self._name_inpainting(settings, p["model"], {**p, "batch_size": 1})
        pictures = len(list(Path(p["drawings"]).glob("*.png")))
        (run,) = self.book.own
        trained = self._count_training(run, p, p["few_shot_count"])
        return [Work(task, pictures, pictures * settings.effective_steps), trained, trained]

    def _show_classifier(self, job: Job) -> list[Work]:
        trained = self._train_classifier(self.book.shown_run)
        return [trained._replace(steps=0, trainings=0)]

    def _train_detectors(self, job: Job) -> list[Work]:
        return [
            work for run in self.book.trained["segmenter"][job.name] for work in self._train_detector(run)
        ]

    def _train_detector(self, run: Run) -> list[Work]:
        p = self.given["09_pixel_level"]
        size = pick_size(p, self.size)
        names = ("backbone", "weights", "training_images", "batch_size", "learning_rate")
        plan = DetectorPlan(*(p[name] for name in names), size, p["detector"])
        counts = [self.count("train", "negative"), self.count_known(run.scenario, p["few_shot_count"])]
        labels = make_labels(counts[0], counts[1] + run.n_aug)
        rows = pd.DataFrame({"split": "train", "label": np.where(labels, "positive", "negative")})
        rows["origin"] = np.repeat(["real", run.arm], [sum(counts), run.n_aug])
        recipe = plan.fit_recipe(rows)

        def name_step(kind: str, recipe: Recipe) -> Task:
            return Task(kind, replace(recipe, epochs=1), p["backbone"], size, recipe.batch_size)

        steps = count_steps(labels.tobytes(), recipe)
        if plan.kind == "unet":
            return [Work(name_step("detector step", recipe), self.count("test"), steps, trainings=1)]
        student = plan_student(recipe, rows)
        known = make_labels(counts[0], run.n_aug)
        return [
            Work(
                name_step("student step", replace(student, balanced=False)),
                steps=count_steps(known.tobytes(), student),
                trainings=1,
            ),
            Work(name_step("head step", recipe), self.count("test"), steps, trainings=1),
        ]


def _divide(work: Work, count: int) -> Work:
    return work._replace(images=-(-work.images // count), steps=-(-work.steps // count))


def read_inpainting(p: Values) -> InpaintSettings:
    """The inpainting settings among a notebook's parameters; a negative crop takes the whole image."""
    crop = p["padding_mask_crop"] if p["padding_mask_crop"] >= 0 else None
    working = (p["working_width"], p["working_height"])
    return InpaintSettings(working, p["steps"], p["guidance"], p["strength"], crop)


def fill_groups(count: int, group: int) -> int:
    """Number of images that are made for `count`, because groups are made as a whole."""
    return -(-count // group) * group


def pick_size(p: Values, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a network's input; (0, 0) means that of the images."""
    asked = (p["input_width"], p["input_height"])
    return asked if min(asked) > 0 else size


def make_labels(negatives: int, positives: int) -> np.ndarray:
    """Labels of a training part, 1 for positive."""
    return np.repeat([0, 1], [negatives, positives])


@cache
def count_steps(labels: bytes, recipe: Recipe) -> int:
    """Training steps for labels (int64, as bytes); all epochs have the same length."""
    (epoch,) = plan_epochs(np.frombuffer(labels, int), replace(recipe, epochs=1), seed=0)
    return recipe.epochs * len(split_batches(epoch, recipe.batch_size))


def fill_in(parameters: Mapping[str, Values], notebook_folder: Path | str = "notebooks") -> dict[str, Values]:
    """The parameters of every notebook: those of the profile, and defaults for the rest."""
    return {name: read_defaults(name, notebook_folder) | values for name, values in parameters.items()}
