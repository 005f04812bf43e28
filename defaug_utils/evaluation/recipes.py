"""Training classifiers and detectors: named recipes, the images of an epoch, and the training itself."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from defaug_utils.core.guards import check_demands, describe_settings
from defaug_utils.core.manifest import image_seed
from defaug_utils.data.samples import Samples, hash_samples
from defaug_utils.evaluation.jitter import draw_jitter
from defaug_utils.training.backbones import normalise_images
from defaug_utils.training.loop import OnStep, StepLoss, StepPlan, Training, open_accelerator, run_steps
from defaug_utils.training.memory import pick_device


@dataclass(frozen=True)
class Recipe:
    """How a classifier or detector is trained; the result is the last epoch's model."""

    optimiser: str  #: "sgd" or "adam"
    learning_rate: float  #: of the first epoch
    batch_size: int  #: images per step
    epochs: int  #: passes
    balanced: bool  #: an epoch shows all positives and as many negatives, least used first; else all images
    momentum: float = 0.0  #: of SGD
    normalisation: str = "imagenet"  #: a name in `backbones.NORMALISATIONS`
    flips: bool = False  #: flip each image randomly, left-right and top-bottom
    decay: bool = False  #: lower the learning rate by half a cosine over epochs; else it is constant
    freeze_batch_norm_after: int = 0  #: epochs after which BatchNorm keeps its running statistics; 0: never
    augment: bool = False  #: only classifiers: jitter each image, see `jitter_images`
    warmup: float = 0.0  #: share of all steps during which the learning rate rises linearly
    largest_gradient: float = 0.0  #: norm to clip a step's gradient to; 0: no clipping


NEED_WEIGHTS = (
    "diag",
    "diag_paper",
    "diag_frozen",
)  # recipes that fine-tune: with random weights they would not be DIAG's
RECIPES = {
    # In&Out, section 4, on the KSDD2 training procedure of Božič et al. 2021
    "in_and_out": Recipe("sgd", 0.01, batch_size=5, epochs=50, balanced=True),
    # the same, with that procedure's input values and batch size
    "segdecnet": Recipe("sgd", 0.01, batch_size=1, epochs=50, balanced=True, normalisation="unit"),
    # DIAG's published code
    "diag": Recipe("adam", 1e-4, batch_size=32, epochs=30, balanced=False),
    # the same for as many epochs as DIAG's paper says
    "diag_paper": Recipe("adam", 1e-4, batch_size=32, epochs=50, balanced=False),
    # what that code actually does: it stays in evaluation mode after its first evaluation
    "diag_frozen": Recipe("adam", 1e-4, 32, 30, balanced=False, freeze_batch_norm_after=1),
    # ours, for a small backbone and half a minute on one CPU core
    "workshop": Recipe("adam", 8e-3, batch_size=8, epochs=25, balanced=True, flips=True, decay=True),
}


def choose_recipe(name: str, **overrides: float | bool) -> Recipe:
    """A named recipe with some values replaced; 0 (or False) keeps the recipe's value.

    Raises a ValueError for an unknown name, or for all values out of range.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is not one of {', '.join(RECIPES)}")
    recipe = replace(RECIPES[name], **{key: value for key, value in overrides.items() if value})
    demands = {
        f"epochs, batch size and learning rate must be positive: {recipe}": (
            min(recipe.epochs, recipe.batch_size) >= 1 and recipe.learning_rate > 0
        ),
        f"warmup {recipe.warmup} must be a share of the steps, in [0, 1)": 0 <= recipe.warmup < 1,
        f"largest_gradient {recipe.largest_gradient} must be 0 or more": recipe.largest_gradient >= 0,
    }
    check_demands(f"recipe {name!r}", demands)
    return recipe


def fit_epochs(recipe: Recipe, labels: np.ndarray, training_images: int) -> Recipe:
    """The recipe with enough epochs to show about this many training images in total; 0 keeps the recipe.

    The length of a balanced recipe's epoch depends on the number of positives: with the same number of
    epochs, a training set with more positives would also be trained for longer. Labels are as for
    `plan_epochs`.
    """
    if training_images < 0:
        raise ValueError(f"training_images {training_images} must be 1 or more, or 0 for the recipe's epochs")
    if not training_images:
        return recipe
    (epoch,) = plan_epochs(labels, replace(recipe, epochs=1), seed=0)
    return replace(recipe, epochs=max(1, round(training_images / len(epoch))))


def learning_rate_of(recipe: Recipe, epoch: int) -> float:
    """The learning rate of an epoch (from 0), after the warm-up."""
    share = (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2 if recipe.decay else 1.0
    return recipe.learning_rate * share


def warmup_share(recipe: Recipe, step: int, steps: int) -> float:
    """The share of the learning rate at a step (from 0) of the warm-up (Goyal et al. 2017)."""
    return min(1.0, (step + 1) / max(1.0, recipe.warmup * steps))


def plan_epochs(labels: np.ndarray, recipe: Recipe, seed: int) -> list[np.ndarray]:
    """Positions in labels (1 for positive) that every epoch shows, in order.

    They depend only on labels, the recipe's `balanced` and `epochs`, and the seed: epoch e has its own random
    generator, derived from (seed, e).
    """
    negatives, positives = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    uses = np.zeros(len(negatives), int)
    plan = []
    for epoch in range(recipe.epochs):
        generator = np.random.default_rng([seed, epoch])
        chosen = np.arange(len(negatives))
        if recipe.balanced:
            least_used_first = np.lexsort((generator.random(len(negatives)), uses))
            chosen = np.resize(least_used_first, len(positives))
            np.add.at(uses, chosen, 1)
        plan.append(generator.permutation(np.concatenate([positives, negatives[chosen]])))
    return plan


def split_batches(indices: np.ndarray, batch_size: int) -> list[Tensor]:
    """Split into batches; a single last image joins the previous batch (BatchNorm needs two)."""
    starts = list(range(0, len(indices), batch_size))
    if len(starts) > 1 and batch_size > 1 and len(indices) - starts[-1] == 1:
        starts.pop()
    ends = [*starts[1:], len(indices)]
    return [torch.from_numpy(indices[a:b]) for a, b in zip(starts, ends, strict=True)]


class Batch(NamedTuple):
    """The images of one step."""

    epoch: int  #: from 0
    images: Tensor  #: positions of its images
    flips: Tensor  #: shape (2, images), bool: flipped top-bottom, and left-right
    jitter: Tensor | None = None  #: shape (3, images), from `draw_jitter`; None for no jitter


def plan_batches(labels: np.ndarray, recipe: Recipe, seed: int) -> list[Batch]:
    """All batches of a training, see `plan_epochs`; an epoch's flips and jitter are drawn from (seed, epoch).

    Jitter has its own generator, so that flips are the same with and without it.
    """
    batches = []
    for epoch, shown in enumerate(plan_epochs(labels, recipe, seed)):
        epoch_seed = image_seed(seed, epoch)
        generator = torch.Generator().manual_seed(epoch_seed)
        of_jitter = torch.Generator().manual_seed(image_seed(epoch_seed, 1))
        for images in split_batches(shown, recipe.batch_size):
            chances = torch.stack([torch.rand(len(images), generator=generator) for _ in range(2)])
            jitter = draw_jitter(len(images), of_jitter) if recipe.augment else None
            batches.append(Batch(epoch, images, (chances < 0.5) & recipe.flips, jitter))
    return batches


def flip_images(images: Tensor, flips: Tensor) -> Tensor:
    """Flip some of the images (batch, channels, height, width), see `Batch`."""
    for axis, chosen in zip((2, 3), flips.to(images.device), strict=True):
        images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
    return images


def show_masked(masked: Samples, batch: Batch, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch's normalised images (batch, 3, height, width) and masks (batch, height, width), flipped."""
    inputs = normalise_images(masked.images_u8[batch.images].to(device), recipe.normalisation)
    masks = masked.masks[batch.images].to(device, torch.float32)
    flipped = flip_images(torch.cat([inputs, masks[:, None]], dim=1), batch.flips)
    return flipped[:, :3], flipped[:, 3]


def refuse_augment(recipe: Recipe) -> None:
    """Refuse, for detectors, a recipe whose augmentation would not transform the masks."""
    if recipe.augment:
        raise ValueError("augment rotates images without their masks: it can't be used for detectors")


class TrainedNetwork(NamedTuple):
    """The last epoch's network, and its training."""

    model: nn.Module  #: in evaluation mode
    history: pd.DataFrame  #: one row per epoch: epoch (from 1), loss (mean over its images), seconds
    resumed_epochs: int  #: epochs from an earlier call
    at_chance: bool | None = None  #: learned nothing, see `stayed_at_chance`; None: not judged (detectors)

    @property
    def numbers(self) -> dict[str, float | bool]:
        """Duration, final loss and, for a classifier, whether it stayed at chance."""
        loss, seconds = self.history["loss"].iloc[-1], self.history["seconds"].sum()
        judged = {} if self.at_chance is None else {"at_chance": self.at_chance}
        return {"epochs": len(self.history), "final_loss": float(loss), "seconds": float(seconds)} | judged


class Start(NamedTuple):
    """A network's initial state; see `build_classifier` for `backbone` and `weights`."""

    backbone: str
    weights: str = ""
    seed: int = 0  #: of random weights, the order of images and their flips
    detector: str = ""  #: kind of a detector, "" for a classifier


def train_network(
    build: Callable[[str, str], nn.Module],
    measure_loss: Callable[[nn.Module, Batch], Tensor],
    samples: Samples,
    folder: Path | str,
    recipe: Recipe,
    start: Start,
    on_step: OnStep | None = None,
) -> TrainedNetwork:
    """Train a network on the train split, or resume an earlier call, see `train_classifier`.

    `build` makes the network from a backbone and its weights; `measure_loss` returns the loss of a batch,
    whose images are positions in `samples`, on the network's device.
    """
    device, train = pick_device(), torch.from_numpy(samples.indices("train"))
    batches = plan_batches(samples.labels[train].numpy(), recipe, start.seed)
    with _repeatable(device, start.seed):
        network = build(start.backbone, start.weights).to(device, memory_format=torch.channels_last)
        every = len(batches) // recipe.epochs
        plan = StepPlan(len(batches), every, _pick_precision(device), row="epoch", is_final=True)

        def compute_loss(module: nn.Module, step: int, _: slice) -> StepLoss:  # BatchNorm needs all images
            batch = batches[step]
            if 0 < recipe.freeze_batch_norm_after <= batch.epoch:
                freeze_batch_norm(module)
            loss = measure_loss(module, batch._replace(images=train[batch.images]))
            return StepLoss(loss, {"epoch": batch.epoch + 1}, len(batch.images))

        accelerator = open_accelerator(plan.precision, device.type)
        if accelerator.num_processes > 1:
            raise ValueError(
                f"{accelerator.num_processes} processes can't train one classifier or detector, whose "
                "BatchNorm needs the whole batch: train several at the same time, each in one process"
            )
        training = Training(
            network,
            make_optimiser(network, recipe),
            compute_loss,
            accelerator,
            rate_of=lambda step: (
                learning_rate_of(recipe, batches[step].epoch) * warmup_share(recipe, step, len(batches))
            ),
            largest_gradient=recipe.largest_gradient or None,
        )
        run = run_steps(training, plan, folder, _describe_training(recipe, start, samples), on_step)
    return TrainedNetwork(network.eval(), run.history, run.resumed_steps // plan.save_every)


def _describe_training(recipe: Recipe, start: Start, samples: Samples) -> dict:
    """Everything that a trained network depends on, as JSON values, including the content of weights."""
    height, width = samples.images_u8.shape[1:3]
    weights = Path(start.weights)
    return {
        **describe_settings(recipe, "augment", "warmup", "largest_gradient"),
        "backbone": start.backbone,
        "weights": start.weights,
        "weights_content": sha256(weights.read_bytes()).hexdigest()[:16] if weights.is_file() else "",
        "seed": start.seed,
        "input_size": [width, height],
        "training_set": hash_samples(samples, "train"),
        **({"detector": start.detector} if start.detector else {}),
    }


@contextmanager
def _repeatable(device: torch.device, seed: int) -> Iterator[None]:
    """Seed PyTorch and, on the CPU, allow only deterministic operations; restore both afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(before or device.type == "cpu")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all of a model's parameters."""
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(model.parameters(), recipe.learning_rate, recipe.momentum)
    if recipe.optimiser == "adam":
        return torch.optim.Adam(model.parameters(), recipe.learning_rate)
    raise ValueError(f"optimiser {recipe.optimiser!r} is neither sgd nor adam")


def _pick_precision(device: torch.device) -> str:
    """Precision of the forward pass: half on a GPU, float32 on the CPU."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def freeze_batch_norm(network: nn.Module) -> None:
    """Make BatchNorm use its running statistics and keep them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
