"""Distances between two sets of features, and the diversity of one set.

Heusel et al. 2017 (Fréchet distance), Bińkowski et al. 2018 (kernel distance), Zhang et al. 2018 (the
distance of two images, which diversity averages over all pairs).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch.nn.functional import normalize

from defaug_utils.training.backbones import DIAG_LAYERS, FeatureNetwork, read_in_batches

KEPT_FEATURES = 2000  # at most, per set, for the kernel distance and for draws
KERNEL_SUBSETS = 100  # Bińkowski et al. 2018, section 4


class Moments(NamedTuple):
    """Mean (channels,) and covariance (channels, channels) of features."""

    mean: np.ndarray
    covariance: np.ndarray


class FeatureSummary:
    """Statistics of a set of images for the distances, accumulated batch by batch.

    `count` is the number of images so far; `kept`, shape (at most `limit`, channels), are the features of all
    images, or of a random sample by seed.
    """

    def __init__(self, limit: int = KEPT_FEATURES, seed: int = 0) -> None:
        """Start empty."""
        self.count, self.kept = 0, np.empty((0, 0))
        self._limit, self._generator = limit, np.random.default_rng(seed)
        self._mean = self._scatter = self._direction_sum = np.zeros(())
        self._square_sum = 0.0

    def add(self, features: np.ndarray, directions: np.ndarray) -> None:
        """Add finite features (batch, channels) and directions (batch, channels, rows, columns).

        Directions have unit length (or 0) along the channels.
        """
        features, directions = features.astype(np.float64), directions.astype(np.float64)
        batch, places = len(features), directions[0, 0].size
        centred = features - features.mean(0)
        gap, total = features.mean(0) - self._mean, self.count + batch
        between = np.outer(gap, gap) * self.count * batch / total  # Chan et al. 1979
        self._scatter = self._scatter + centred.T @ centred + between
        self._mean = self._mean + gap * batch / total
        self._direction_sum = self._direction_sum + directions.sum(0) / np.sqrt(places)
        self._square_sum += float((directions**2).sum()) / places
        self._keep(features)

    def _keep(self, features: np.ndarray) -> None:
        """Keep every image with the same probability (reservoir sampling)."""
        free = max(0, self._limit - len(self.kept))
        self.kept = np.concatenate([self.kept.reshape(-1, features.shape[1]), features[:free]])
        self.count += min(free, len(features))
        for feature in features[free:]:
            self.count += 1
            place = int(self._generator.integers(self.count))
            if place < self._limit:
                self.kept[place] = feature

    @property
    def moments(self) -> Moments:
        """Mean and unbiased covariance of at least two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, found {self.count}")
        return Moments(self._mean, self._scatter / (self.count - 1))

    @property
    def diversity(self) -> float:
        """Mean squared distance of two images' directions, averaged over positions and all pairs of images.

        This is LPIPS at one layer with all weights 1 (Zhang et al. 2018, Eq. 1), averaged over all pairs
        without forming them: 0 for equal images, 2 if no two images share a channel.
        """
        if self.count < 2:
            return float("nan")
        together = float((self._direction_sum**2).sum()) / self.count
        return max(0.0, 2 * (self._square_sum - together) / (self.count - 1))


def summarise_images(
    network: FeatureNetwork,
    images_u8: Iterable[np.ndarray],
    layers: Sequence[str] = DIAG_LAYERS,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, FeatureSummary]:
    """Summarise a set of images, layer by layer; a feature is a layer's output averaged over positions.

    The seed decides which features are kept if there are too many; `on_images` is called with the number of
    images just processed.
    """
    summaries = {layer: FeatureSummary(seed=seed) for layer in layers}
    for answers in read_in_batches(network, images_u8, layers, size, batch_size):
        for layer, maps in answers.items():
            directions = normalize(maps, dim=1)  # unit length at every position (Zhang et al. 2018, Eq. 1)
            summaries[layer].add(maps.mean(dim=(2, 3)).cpu().numpy(), directions.cpu().numpy())
        if on_images:
            on_images(len(maps))
    return summaries


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Fréchet distance of two normal distributions (Heusel et al. 2017, Eq. 6).

    The trace of the root of the product Σ₁Σ₂ comes from the eigenvalues of the symmetric matrix
    Σ₁^½ Σ₂ Σ₁^½, which are real and not negative even if there are fewer images than channels.
    """
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ second.covariance @ root).clip(min=0)
    gap = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return max(0.0, float(gap @ gap + traces - 2 * np.sqrt(shared).sum()))


def squared_kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y / channels + 1)³.

    Bińkowski et al. 2018, Eqs. 3 and 4, for features (images, channels) of at least two images each. For two
    sets from the same distribution it is 0 on average, and therefore about as often negative as positive.
    """
    kernels = [_kernel(features, features) for features in (first, second)]
    within = [(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in kernels]
    return float(sum(within) - 2 * _kernel(first, second).mean())


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3


def compare_features(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two sets of features (images, channels), at least two images each."""
    moments = [Moments(one.mean(0), np.atleast_2d(np.cov(one, rowvar=False))) for one in (first, second)]
    return frechet_distance(*moments)


def spread_over_draws(
    distance: Callable[[np.ndarray, np.ndarray], float],
    first: np.ndarray,
    second: np.ndarray | None,
    count: int,
    draws: int = KERNEL_SUBSETS,
    seed: int = 0,
) -> tuple[float, float]:
    """A distance between equal numbers of images from both sides, over repeated draws.

    The Fréchet distance grows for smaller sets, whatever they show: compare values only at the same count.
    The kernel distance does not, and is usually given with its spread over subsets.

    Args:
        distance: `squared_kernel_distance` or `compare_features`.
        first: features, shape (images, channels).
        second: the same for the other set; None for two disjoint parts of the first.
        count: images drawn from each side without replacement, at least 2.

    Returns:
        Mean and standard deviation (n − 1 in the denominator); NaN if a side has too few images.
    """
    is_enough = len(first) >= 2 * count if second is None else min(len(first), len(second)) >= count
    if count < 2 or not is_enough:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)

    def draw_sides() -> list[np.ndarray]:
        if second is None:
            return np.split(first[generator.choice(len(first), 2 * count, replace=False)], 2)
        return [side[generator.choice(len(side), count, replace=False)] for side in (first, second)]

    values = [distance(*draw_sides()) for _ in range(draws)]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if draws > 1 else float("nan")
