"""Finding objects by the features of a pretrained backbone (AdaBLDM: Li et al. 2024, section 3.2).

The features of a category's images form two clusters; the one along the image border is background.
Colour is added to the features: of a smooth part on a smooth plate, a small backbone sees only the rim.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from skimage.morphology import closing, footprint_rectangle
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from defaug_utils.training.backbones import FeatureNetwork, open_features

THRESHOLD = 127  # of 0 … 255 (AdaBLDM's code)
CLOSING = (5, 5)  # pixels (AdaBLDM's code)
MAX_FIT_IMAGES = 32  # per category; more images hardly change the discriminant
COLOUR_WEIGHT = 4.0  # ours; of Lab colours (0 … 1) relative to features of unit length

# image (height, width, 3), uint8 → features (rows, columns, channels)
ReadFeatures = Callable[[np.ndarray], np.ndarray]


class ForegroundSteps(NamedTuple):
    """How an object was found; the first two maps have the features' shape, the others the image's."""

    is_object_cluster: np.ndarray  #: bool: the object's cluster is the nearer one
    separation: np.ndarray  #: float: the discriminant's value, above 0 where the object is more likely
    separation_u8: np.ndarray  #: the same, scaled to 0 … 255
    thresholded: np.ndarray  #: bool
    foreground: np.ndarray  #: bool, after closing


@dataclass(frozen=True)
class ObjectFinder:
    """Finds the object on images of one category; calling it returns just the mask."""

    read_features: ReadFeatures
    clusters: KMeans
    object_cluster: int
    line: LinearDiscriminantAnalysis  #: separates the two clusters
    border_share: float  #: share of the positions at the border that belong to the background cluster

    def find_steps(self, image_u8: np.ndarray) -> ForegroundSteps:
        """All steps for one image, shape (height, width, 3), uint8."""
        features = self.read_features(image_u8)
        flat = features.reshape(-1, features.shape[2]).astype(np.float64)
        nearest = (self.clusters.predict(flat) == self.object_cluster).reshape(features.shape[:2])
        separation = self.line.decision_function(flat).reshape(features.shape[:2])
        raised = cv2.resize(separation, image_u8.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        raised = raised - raised.min()
        separation_u8 = np.rint(255 * (raised / (raised.max() or 1))).astype(np.uint8)
        thresholded = separation_u8 > THRESHOLD
        foreground = closing(np.pad(thresholded, CLOSING, mode="edge"), footprint_rectangle(CLOSING))
        inner = foreground[CLOSING[0] : -CLOSING[0], CLOSING[1] : -CLOSING[1]]
        return ForegroundSteps(nearest, separation, separation_u8, thresholded, inner)

    def __call__(self, image_u8: np.ndarray) -> np.ndarray:
        """Shape (height, width), bool, true on the object."""
        return self.find_steps(image_u8).foreground

    def describe(self) -> dict:
        """Everything that the result depends on, as JSON values."""
        numbers = np.concatenate([self.clusters.cluster_centers_.ravel(), self.line.coef_.ravel()])
        digest = hashlib.sha256(np.round(numbers, 6).tobytes()).hexdigest()[:16]
        features = getattr(self.read_features, "describe", dict)()
        learned = {"border_share": round(self.border_share, 4), "sha256": digest}
        return {"method": "k-means and LDA", "features": features, **learned}


def open_object_finder(
    images_u8: Sequence[np.ndarray],
    backbone: str,
    weights: str,
    device: str = "cpu",
    colour_weight: float = COLOUR_WEIGHT,
    seed: int = 0,
) -> ObjectFinder:
    """Learn from good images with a backbone: `open_features`, `FeatureReader`, `fit_object_finder`."""
    network = open_features(backbone, weights, device)
    return fit_object_finder(images_u8, FeatureReader(network, colour_weight=colour_weight), seed)


def fit_object_finder(
    images_u8: Sequence[np.ndarray], read_features: ReadFeatures, seed: int = 0
) -> ObjectFinder:
    """Learn object and background from good images of one category.

    The first `MAX_FIT_IMAGES` images (height, width, 3), uint8, are used; one is enough. Raises a ValueError
    if there is no image, if all positions look the same, or if the border belongs to neither cluster.
    """
    maps = [read_features(image_u8) for image_u8 in images_u8[:MAX_FIT_IMAGES]]
    if not maps:
        raise ValueError("an object can't be found without images to learn from")
    flat = np.concatenate([one.reshape(-1, one.shape[-1]) for one in maps]).astype(np.float64)
    if np.ptp(flat, axis=0).max() == 0:
        raise ValueError(f"all positions of {len(maps)} image(s) look the same: there is no object to find")
    clusters = KMeans(2, n_init=3, random_state=seed).fit(flat)
    borders = [np.ones(one.shape[:2], bool) for one in maps]
    for border in borders:
        border[1:-1, 1:-1] = False
    is_border = np.concatenate([border.ravel() for border in borders])
    share = float((clusters.labels_[is_border] == 1).mean())
    if share == 0.5:
        raise ValueError("each cluster contains half of the border: the parts fill the frame, as textures do")
    object_cluster = 0 if share > 0.5 else 1
    line = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    line.fit(flat, clusters.labels_ == object_cluster)
    return ObjectFinder(read_features, clusters, object_cluster, line, max(share, 1 - share))


@dataclass(frozen=True)
class FeatureReader:
    """Features of a backbone and Lab colours, as a function of an image (height, width, 3), uint8."""

    network: FeatureNetwork
    layers: Sequence[str] = ("quarter", "eighth")  #: the finest first; all maps get its resolution
    colour_weight: float = COLOUR_WEIGHT  #: of the last three channels; 0 omits them, as in AdaBLDM

    def __post_init__(self) -> None:
        if self.colour_weight < 0:
            raise ValueError(f"colour_weight {self.colour_weight} is negative: use 0 to omit colours")

    def __call__(self, image_u8: np.ndarray) -> np.ndarray:
        """Shape (rows, columns, channels), float32."""
        maps = self.network.read_maps(image_u8[None].copy(), self.layers)  # arrays from files are read-only
        arrays = [maps[layer][0].permute(1, 2, 0).cpu().numpy() for layer in self.layers]
        size = arrays[0].shape[1::-1]
        stretched = [_bring_to(array, size) for array in arrays]
        if self.colour_weight:
            lab = cv2.cvtColor(image_u8, cv2.COLOR_RGB2LAB).astype(np.float32) / 255
            stretched.append(self.colour_weight * cv2.resize(lab, size, interpolation=cv2.INTER_AREA))
        return np.concatenate(stretched, axis=2)

    def describe(self) -> dict:
        """Backbone, fingerprint and settings."""
        return self.network.describe() | {"layers": list(self.layers), "colour_weight": self.colour_weight}


def _bring_to(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (OpenCV takes few channels at a time) and scale, so that no layer dominates the others."""
    parts = [array[..., start : start + 4] for start in range(0, array.shape[2], 4)]
    resized = np.concatenate([cv2.resize(part, size).reshape(*size[::-1], -1) for part in parts], axis=2)
    return resized / max(float(np.sqrt((resized**2).sum(axis=2).mean())), 1e-12)
