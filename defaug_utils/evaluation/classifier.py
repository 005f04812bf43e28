"""The classifier: training by a recipe, scores, and saliency maps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerAttribution, LayerGradCam
from scipy.stats import entropy, mannwhitneyu
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ResNetForImageClassification

from defaug_utils.core.files import write_csv, write_json
from defaug_utils.core.guards import check_demands
from defaug_utils.core.origins import AUGMENTED, Run, find_judge, generates_images, parse_run_name
from defaug_utils.data.samples import Samples, list_scored
from defaug_utils.evaluation.jitter import jitter_images
from defaug_utils.evaluation.linear_classifier import classify_linearly
from defaug_utils.evaluation.metrics import MAX_FALSE_POSITIVE_RATE, measure_scores
from defaug_utils.evaluation.patch_memory import MemoryPlan, fit_memory, score_by_memory
from defaug_utils.evaluation.recipes import (
    NEED_WEIGHTS,
    Batch,
    Recipe,
    Start,
    TrainedNetwork,
    choose_recipe,
    fit_epochs,
    flip_images,
    plan_epochs,
    split_batches,
    train_network,
)
from defaug_utils.protocol.mixing import find_leaks
from defaug_utils.training.backbones import build_classifier, normalise_images, open_features
from defaug_utils.training.loop import OnStep
from defaug_utils.training.memory import pick_device

LAST_EPOCHS = 5  # their median loss shows whether anything was learned
SMALLEST_PSEUDO_R2 = 0.05
LARGEST_P = 0.05
SALIENCY_COLOUR = (0, 90, 255)  # unlike the orange of mask outlines


def train_classifier(
    samples: Samples,
    folder: Path | str,
    recipe: Recipe,
    backbone: str,
    seed: int = 0,
    weights: str = "",
    on_step: OnStep | None = None,
) -> TrainedNetwork:
    """Train on the train split, or resume an earlier call with the same settings.

    On the CPU the result is exactly reproducible for the same settings, number of threads and versions.

    Args:
        folder: for the checkpoint and `history.csv`.
        backbone, weights: as for `build_classifier`.
        seed: of random weights, and the order and flips of images.
        on_step: called after every step, see `run_steps`.

    Raises:
        ValueError: the folder contains a training with other settings or images; it is not changed.
        FloatingPointError: a loss is not finite.
    """

    def measure_loss(model: nn.Module, batch: Batch) -> Tensor:
        device = next(model.parameters()).device
        images_u8 = samples.images_u8[batch.images].to(device)
        if batch.jitter is not None:
            images_u8 = jitter_images(images_u8, batch.jitter)
        if recipe.flips:  # before normalising: bytes are a quarter the size of floats
            images_u8 = flip_images(images_u8.permute(0, 3, 1, 2), batch.flips).permute(0, 2, 3, 1)
        logits = model(normalise_images(images_u8, recipe.normalisation)).logits[:, 0]
        return binary_cross_entropy_with_logits(logits.float(), samples.labels[batch.images].to(device))

    start = Start(backbone, weights, seed)
    trained = train_network(build_classifier, measure_loss, samples, folder, recipe, start, on_step)
    scores = score_samples(trained.model, samples, recipe.normalisation, splits=("train",))
    return trained._replace(at_chance=stayed_at_chance(trained.history, scores, recipe.balanced))


def stayed_at_chance(history: pd.DataFrame, scores: pd.DataFrame, is_balanced: bool) -> bool:
    """Whether a classifier learned nothing, judged by its training part: either of two signs is enough.

    1. Its loss is within 5 % of the loss of guessing, the entropy of the shown classes (ln 2 if they are
       balanced): McFadden's pseudo-R² (1974) is below 0.05. The median of the last five epochs is used, so
       that a single epoch doesn't decide.
    2. The finished model ranks training positives no higher than training negatives (one-sided Mann-Whitney
       test, p ≥ 0.05; a single positive can pass it with 20 negatives or more). This also finds a model whose
       loss fell, but whose BatchNorm statistics are useless.

    Args:
        history: of the training, with the column loss.
        scores: of the training images, from `score_samples` for the split train.
        is_balanced: whether an epoch shows as many negatives as positives, see `Recipe`.

    Raises:
        ValueError: the history is empty, or a class has no scores.
    """
    is_positive = (scores["label"] == "positive").to_numpy()
    demands = {
        "the history has no epoch": len(history) > 0,
        f"{is_positive.sum()} of {len(scores)} training scores are positives': both classes are needed": (
            0 < is_positive.sum() < len(scores)
        ),
    }
    check_demands("can't judge whether the training learned anything", demands)
    share = 0.5 if is_balanced else is_positive.mean()
    guessing = entropy([share, 1 - share])
    loss = history["loss"].tail(LAST_EPOCHS).median()
    ranked = mannwhitneyu(scores["score"][is_positive], scores["score"][~is_positive], alternative="greater")
    return bool(loss > (1 - SMALLEST_PSEUDO_R2) * guessing or not ranked.pvalue < LARGEST_P)


@dataclass(frozen=True)
class ClassifierPlan:
    """How all classifiers of a comparison are trained and evaluated; 0 keeps the recipe's value."""

    recipe: str  #: a name in `RECIPES`
    backbone: str  #: a name in `BACKBONES`
    weights: str = ""  #: as for `build_classifier`
    epochs: int = 0
    batch_size: int = 0  #: images per step
    learning_rate: float = 0.0  #: of the first epoch
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE  #: see `measure_scores`
    feature_backbone: str = ""  #: for arms without a trained network, as for `open_features`
    feature_weights: str = ""
    memory_share: float = MemoryPlan.share  #: share of all patches that the arm "patch_memory" keeps

    def __post_init__(self) -> None:
        """Refuse a recipe that fine-tunes a pretrained network if no weights are given."""
        if self.recipe in NEED_WEIGHTS and not self.weights:
            raise ValueError(
                f"recipe {self.recipe!r} starts from pretrained weights, but none are given: set weights to "
                "a hub id such as microsoft/resnet-50, a folder or a .safetensors file, or choose another "
                "recipe"
            )

    def fit_recipe(self, labels: np.ndarray, run: Run) -> Recipe:
        """The recipe for a run's training labels, see `choose_recipe`.

        The arms "none_equal" and "augmented" get as many epochs as are needed to show the images that `n_aug`
        more positives would; "augmented" also jitters each image, see `jitter_images`.
        """
        given = {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        recipe = choose_recipe(self.recipe, **given)
        if run.n_aug == 0 or generates_images(run.arm):
            return recipe
        (epoch,) = plan_epochs(np.append(labels, np.ones(run.n_aug)), replace(recipe, epochs=1), seed=0)
        fitted = fit_epochs(recipe, labels, recipe.epochs * len(epoch))
        return replace(fitted, augment=fitted.augment or run.arm == AUGMENTED)


class FinishedClassifier(NamedTuple):
    """The result of `finish_classifier`."""

    trained: TrainedNetwork | None  #: None if no network was trained
    scores: pd.DataFrame  #: see `score_samples`
    numbers: dict  #: see `measure_scores`, with their settings; as in `metrics.json`


def finish_classifier(
    run_dir: Path | str, name: str, samples: Samples, plan: ClassifierPlan, on_step: OnStep | None = None
) -> FinishedClassifier:
    """Train the classifier of a run (see `train_classifier`) and measure it.

    The arms "linear" and "patch_memory" train no network: see `classify_linearly` and `fit_memory`.
    The folder `classifier/<name>` receives `scores.csv` and `metrics.json`, which `gather_results` reads.
    `name` is the run's, see `run_name`; its seed is the classifier's.
    """
    run, folder = parse_run_name(name), Path(run_dir) / "classifier" / name
    trained, started, judge = None, time.monotonic(), find_judge(run.arm)
    if judge == "network":
        recipe = plan.fit_recipe(samples.labels[samples.indices("train")].numpy(), run)
        trained = train_classifier(samples, folder, recipe, plan.backbone, run.seed, plan.weights, on_step)
        scores = score_samples(trained.model, samples, recipe.normalisation)
    else:
        network = open_features(plan.feature_backbone, plan.feature_weights, pick_device())
        memory = MemoryPlan(share=plan.memory_share, seed=run.seed)
        scores = (
            classify_linearly(samples, network)
            if judge == "line"
            else score_by_memory(fit_memory(samples, network, memory), network, samples)
        )
    write_csv(scores, folder / "scores.csv")
    height, width = samples.images_u8.shape[1:3]
    setup = {name: getattr(plan, name) for name in ("recipe", "backbone", "weights")}
    setup |= {"device": pick_device().type, "input_width": width, "input_height": height}
    took = trained.numbers if trained else {"seconds": time.monotonic() - started}
    numbers = measure_scores(scores, plan.max_false_positive_rate) | took | count_training(samples)
    numbers |= setup | {"leak": find_leaks(samples.table, run.scenario)}
    write_json(folder / "metrics.json", numbers)
    return FinishedClassifier(trained, scores, numbers)


def count_training(samples: Samples) -> dict[str, int]:
    """Number of images in the train split (`n_train`), of positives, and of generated ones."""
    train = samples.table[samples.table["split"] == "train"]
    positives = train[train["label"] == "positive"]
    generated = int((positives["origin"] != "real").sum())
    return {"n_train": len(train), "n_train_positive": len(positives), "n_train_generated": generated}


@torch.inference_mode()
def score_samples(
    model: ResNetForImageClassification,
    samples: Samples,
    normalisation: str,
    batch_size: int = 32,
    splits: Sequence[str] = ("val", "test"),
) -> pd.DataFrame:
    """Score the val and test images, or other splits, by the model's probability of "positive".

    The model must be in evaluation mode, with the normalisation of its training. The table has the columns
    image, split, label and score (float64 in [0, 1]).
    """
    device = next(model.parameters()).device
    indices, table = list_scored(samples, splits)
    logits = [
        model(normalise_images(samples.images_u8[batch].to(device), normalisation)).logits[:, 0].cpu()
        for batch in split_batches(indices, batch_size)
    ]
    return table.assign(score=torch.cat(logits).double().sigmoid().numpy())


def explain_images(
    model: ResNetForImageClassification, images_u8: np.ndarray, normalisation: str = "imagenet"
) -> list[np.ndarray]:
    """Tint images blue where the model sees a defect, see `saliency_map`."""
    maps = saliency_map(model, images_u8, normalisation)
    return [overlay_saliency(image, saliency) for image, saliency in zip(images_u8, maps, strict=True)]


def saliency_map(
    model: ResNetForImageClassification, images_u8: np.ndarray, normalisation: str = "imagenet"
) -> np.ndarray:
    """Where the model sees a defect: Grad-CAM of the logit at the last stage (Selvaraju et al. 2017).

    Images have the shape (batch, height, width, 3), uint8, and maps (batch, height, width), float32 in
    [0, 1]. Each map is divided by its maximum, and is 0 everywhere if nothing indicates a defect.
    """
    device = next(model.parameters()).device
    inputs = normalise_images(torch.as_tensor(images_u8).to(device), normalisation)
    grad_cam = LayerGradCam(lambda batch: model(batch).logits[:, 0], model.resnet.encoder.stages[-1])
    coarse = grad_cam.attribute(inputs, relu_attributions=True)
    maps = LayerAttribution.interpolate(coarse.detach(), inputs.shape[2:], interpolate_mode="bilinear")[:, 0]
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return (maps / largest.clamp(min=torch.finfo(maps.dtype).tiny)).cpu().numpy()


def overlay_saliency(image_u8: np.ndarray, saliency: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Tint an image (height, width, 3) blue by its saliency (height, width), in [0, 1]."""
    weight = opacity * saliency[..., None]
    return np.rint((1 - weight) * image_u8 + weight * np.array(SALIENCY_COLOUR)).astype(np.uint8)
