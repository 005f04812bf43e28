"""Copies: generated images that repeat a real image, found by feature distance.

In&Out suspects that fine-tuning on few images memorises them (Capogrosso et al. 2024). An image counts as a
copy where it is as close to a real image as hardly any two real images are to each other.

A copy that is softer than its original, or mirrored, lies far from it in features of texture and is missed:
few copies found do not prove that nothing was memorised. Where images leave a model softer than they went in,
take the real images' features after the same way through its autoencoder.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

QUANTILE = 0.05  # a choice of this project, not of a paper


def nearest_distances(real: np.ndarray) -> np.ndarray:
    """Distance of every real image to the nearest other one.

    Args:
        real: features, shape (images, channels), at least two images.

    Returns:
        Shape (images,), Euclidean.

    Raises:
        ValueError: the features don't suit; lists what is wrong.
    """
    _check_features({"real": real}, least=2)
    distances = cdist(real, real)
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1)


def copy_threshold(real: np.ndarray, quantile: float = QUANTILE) -> float:
    """The distance up to which an image counts as a copy.

    It is a quantile of the distances of real images to their nearest other one, so the same rule would call
    about that share of the real images copies of each other: the rate of false alarms for new images of the
    real kind. Five images give a rough threshold (the quantile lies near their least distance); take all
    real training images where there are more. A real image stored twice pulls the threshold towards 0.

    Args:
        real: features, shape (images, channels), at least two images.
        quantile: in [0, 1]; 0 is the least distance of two real images.

    Raises:
        ValueError: features or quantile don't suit.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile {quantile} must be between 0 and 1")
    return float(np.quantile(nearest_distances(real), quantile))


def find_copies(
    generated: np.ndarray,
    trained: np.ndarray,
    threshold: float,
    images: Sequence[str] | None = None,
    trained_images: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The nearest real neighbour of every generated image, and whether it is a copy of it.

    Args:
        generated: features, shape (images, channels).
        trained: features of the real images that the model was trained on, by the same network.
        threshold: from `copy_threshold`, of features of the same network.
        images: names of the generated images; their numbers when not given.
        trained_images: the same of the real ones.

    Returns:
        One row a generated image, in their order: image, nearest_real, distance, threshold, is_copy (distance
        up to the threshold). Of equally near real images the first is named.

    Raises:
        ValueError: features, names or threshold don't suit; lists what is wrong.
    """
    _check_features({"generated": generated, "trained": trained})
    names = [_check_names(images, len(generated)), _check_names(trained_images, len(trained))]
    if not 0 <= threshold < np.inf:
        raise ValueError(f"threshold {threshold} must be a distance, 0 or more")
    distances = cdist(generated, trained)
    nearest = distances.argmin(axis=1)
    distance = distances[np.arange(len(generated)), nearest]
    return pd.DataFrame(
        {
            "image": names[0],
            "nearest_real": [names[1][place] for place in nearest],
            "distance": distance,
            "threshold": threshold,
            "is_copy": distance <= threshold,
        }
    )


def count_copies(copies: pd.DataFrame, by: Sequence[str] = ("share", "epoch")) -> pd.DataFrame:
    """Copies among the images of every setting.

    Args:
        copies: tables of `find_copies` put together, with the columns named in `by`.
        by: what tells settings apart; merge weight (share) and epoch.

    Returns:
        One row a setting, sorted: the columns of `by`, images, copies, copied_reals (different real images
        among the copied), share_of_copies, median_distance.

    Raises:
        ValueError: no images, or a column is missing.
    """
    wanted = (*by, "nearest_real", "distance", "is_copy")
    missing = [name for name in wanted if name not in copies.columns]
    if missing or copies.empty:
        raise ValueError(f"{len(copies)} images, columns missing: {', '.join(missing) or 'none'}")
    groups = copies.assign(copied=copies["nearest_real"].where(copies["is_copy"])).groupby(list(by))
    counts = groups.agg(
        images=("is_copy", "size"),
        copies=("is_copy", "sum"),
        copied_reals=("copied", "nunique"),
        share_of_copies=("is_copy", "mean"),
        median_distance=("distance", "median"),
    )
    return counts.reset_index()


def _check_features(features: dict[str, np.ndarray], least: int = 1) -> None:
    problems = [
        f"{name} features have shape {array.shape}, expected (images, channels)"
        for name, array in features.items()
        if array.ndim != 2
    ]
    tables = {name: array for name, array in features.items() if array.ndim == 2}
    problems += [
        f"{name}: {len(array)} images, expected at least {least}"
        for name, array in tables.items()
        if len(array) < least
    ]
    problems += [f"{name} features are not finite" for name, a in tables.items() if not np.isfinite(a).all()]
    channels = {name: array.shape[1] for name, array in tables.items()}
    if len(set(channels.values())) > 1:
        problems.append(f"channels differ ({channels}): take one network and layer for all")
    if problems:
        raise ValueError("; ".join(problems))


def _check_names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [str(number) for number in range(count)]
    if len(names) != count:
        raise ValueError(f"{len(names)} names for {count} images")
    return list(names)
