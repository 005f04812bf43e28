"""A linear classifier on a frozen backbone: the value of known positives if only a line is learned."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from defaug_utils.core.guards import check_demands
from defaug_utils.data.samples import Samples, list_scored
from defaug_utils.training.backbones import FeatureNetwork, read_in_batches

LAYERS = ("eighth", "sixteenth", "thirty_second")
INVERSE_PENALTY = 1.0  # scikit-learn's default C: few positives are not enough to choose it
LARGEST_STEPS = 10_000  # of the solver, which stops far earlier


def classify_linearly(
    samples: Samples, network: FeatureNetwork, layers: Sequence[str] = LAYERS
) -> pd.DataFrame:
    """Fit on the train split and score the val and test images, see `pool_features` and `fit_line`.

    Returns a table like `score_samples`, but with logits as scores. Nothing is random.

    Raises:
        ValueError: the train split lacks a class, a layer is unknown, or features are not finite.
    """
    train, (scored, table) = samples.indices("train"), list_scored(samples)
    is_positive = samples.labels[train].numpy() == 1
    demands = {
        "the train split has no positive: a linear classifier needs known defects": is_positive.any(),
        "the train split has no negative": not is_positive.all(),
    }
    check_demands("linear classifier", demands)
    known, asked = (
        pool_features(network, samples.images_u8[part].numpy(), layers) for part in (train, scored)
    )
    return table.assign(score=fit_line(known, is_positive).decision_function(asked))


def pool_features(network: FeatureNetwork, images_u8: np.ndarray, layers: Sequence[str]) -> np.ndarray:
    """Mean and maximum of every channel of some layers, shape (images, 2 × channels), float64.

    Images have the shape (images, height, width, 3), uint8.
    """
    batches = []
    for maps in read_in_batches(network, images_u8, layers):
        pooled = [reduce(dim=(2, 3)) for layer in layers for reduce in (maps[layer].mean, maps[layer].amax)]
        batches.append(torch.cat(pooled, dim=1).double().cpu().numpy())
    return np.concatenate(batches)


def fit_line(features: np.ndarray, is_positive: np.ndarray) -> Pipeline:
    """Logistic regression on standardised features (images, channels); its decision function gives logits.

    Both classes have the same total weight, and C is always 1.
    """
    line = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=LARGEST_STEPS)
    return make_pipeline(StandardScaler(), line).fit(features, is_positive)
