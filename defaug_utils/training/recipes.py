"""How a classifier is trained: the papers' recipes by name, and which images an epoch shows."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.

    Attributes:
        optimiser: "sgd" or "adam".
        learning_rate: of the first epoch.
        batch_size: images a step.
        epochs: passes; the last epoch's model is the result.
        balanced: an epoch is all positives and as many negatives, the least used first; else all images.
        momentum: of SGD.
        normalisation: a name in `classifier.NORMALISATIONS`.
        flips: mirror each image at random, left-right and top-bottom.
        decay: lower the learning rate from epoch to epoch by half a cosine; else it is constant.
        freeze_batch_norm_after: epochs after which BatchNorm keeps its running statistics; 0 for never.
    """

    optimiser: str
    learning_rate: float
    batch_size: int
    epochs: int
    balanced: bool
    momentum: float = 0.0
    normalisation: str = "imagenet"
    flips: bool = False
    decay: bool = False
    freeze_batch_norm_after: int = 0


RECIPES = {
    # In&Out, section 4, on the KSDD2 training procedure of Božič et al. 2021
    "in_and_out": Recipe("sgd", 0.01, batch_size=5, epochs=50, balanced=True),
    # the same with that procedure's own input values and batch size
    "segdecnet": Recipe("sgd", 0.01, batch_size=1, epochs=50, balanced=True, normalisation="unit"),
    # DIAG's published code; its paper says 50 epochs
    "diag": Recipe("adam", 1e-4, batch_size=32, epochs=30, balanced=False),
    # what that code really does: it never leaves evaluation mode after its first evaluation
    "diag_frozen": Recipe("adam", 1e-4, 32, 30, balanced=False, freeze_batch_norm_after=1),
    # ours, for a small backbone and half a minute on one processor core
    "workshop": Recipe("adam", 8e-3, batch_size=8, epochs=25, balanced=True, flips=True, decay=True),
}


def choose_recipe(name: str, **overrides: float | bool) -> Recipe:
    """A named recipe with some values replaced; 0 (or False) keeps the recipe's own value."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is none of {', '.join(RECIPES)}")
    recipe = replace(RECIPES[name], **{key: value for key, value in overrides.items() if value})
    if min(recipe.epochs, recipe.batch_size) < 1 or recipe.learning_rate <= 0:
        raise ValueError(f"recipe {name!r}: epochs, batch size and learning rate must be positive: {recipe}")
    return recipe


def fit_epochs(recipe: Recipe, labels: np.ndarray, training_images: int) -> Recipe:
    """The recipe with as many epochs as show about so many training images in all.

    An epoch of a balanced recipe is as long as there are positives: with the same number of epochs, a
    training set with more positives would also be trained for longer.

    Args:
        recipe: how to train.
        labels: of the training part, shape (images,), 1 for positive.
        training_images: images shown in all epochs together, one counted each time; 0 keeps the recipe.

    Returns:
        A new recipe, of at least one epoch.

    Raises:
        ValueError: the number is negative.
    """
    if training_images < 0:
        raise ValueError(
            f"training_images {training_images} must be at least 1, or 0 for the recipe's epochs"
        )
    if not training_images:
        return recipe
    (epoch,) = plan_epochs(labels, replace(recipe, epochs=1), seed=0)
    return replace(recipe, epochs=max(1, round(training_images / len(epoch))))


def learning_rate_of(recipe: Recipe, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0."""
    share = (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2 if recipe.decay else 1.0
    return recipe.learning_rate * share


def plan_epochs(labels: np.ndarray, recipe: Recipe, seed: int) -> list[np.ndarray]:
    """Which images every epoch shows, in which order: a function of labels, recipe and seed alone.

    Args:
        labels: shape (images,), 1 for positive.
        recipe: its `balanced` and `epochs` count.
        seed: epoch e draws from a generator of its own, derived from (seed, e).

    Returns:
        For every epoch, positions in `labels`.
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
    """Cut into batches; a last single image joins the batch before it (BatchNorm needs two)."""
    starts = list(range(0, len(indices), batch_size))
    if len(starts) > 1 and batch_size > 1 and len(indices) - starts[-1] == 1:
        starts.pop()
    ends = [*starts[1:], len(indices)]
    return [torch.from_numpy(indices[a:b]) for a, b in zip(starts, ends, strict=True)]
