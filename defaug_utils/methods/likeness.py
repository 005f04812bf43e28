"""Whether a painted defect resembles a known one, by a network's features of square crops around both."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from defaug_utils.masks.patches import find_box, list_masked_positives, read_masked
from defaug_utils.training.backbones import FeatureNetwork, average_features

LAYER = "eighth"  # part of the side at which features are read, as in DIAG's distances
CROP_SIDE = 64  # pixels; crops are resized to it, so that defects of different size can be compared
CROP_MARGIN = 8  # pixels around the defect: the surface next to it counts, too
LEAST_KNOWN = 3  # known defects, from whose distances the threshold is taken


@dataclass(frozen=True, eq=False)
class Likeness:
    """Known defects and the largest distance to the nearest of them that still counts as alike."""

    network: FeatureNetwork
    features: np.ndarray  #: of the known defects' crops, shape (defects, channels)
    known: tuple[str, ...]  #: their images
    threshold: float  #: the largest distance of a known defect to the nearest other one

    def describe(self) -> dict:
        """For recipes, which then say which real defects the pool depends on."""
        return {
            "network": self.network.describe(),
            "layer": LAYER,
            "crop": [CROP_SIDE, CROP_MARGIN],
            "known": list(self.known),
            "threshold": round(self.threshold, 4),
        }

    def measure(self, image_u8: np.ndarray, mask: np.ndarray) -> float:
        """Distance of a defect, given by its mask (height, width), bool, to the nearest known one."""
        features = average_features(self.network, [crop_square(image_u8, mask)], LAYER)
        return float(cdist(features, self.features).min())


def fit_likeness(known: pd.DataFrame, data_folder: Path | str, network: FeatureNetwork) -> Likeness:
    """Read the known defects' features, and take the threshold from their own distances.

    Args:
        known: rows of the data set's manifest, the real positives that the scenario knows.
        data_folder: folder of that manifest.

    Raises:
        ManifestError: no positive has a mask.
        ValueError: fewer than three have one.
    """
    rows = list_masked_positives(known, Path(data_folder), "draw where their defects are")
    if len(rows) < LEAST_KNOWN:
        raise ValueError(
            f"{len(rows)} known defects have a mask, at least {LEAST_KNOWN} are needed to tell how much "
            "real ones differ: draw more masks, or don't ask for likeness"
        )
    folder = Path(data_folder)
    pairs = (read_masked(row, folder) for row in rows.itertuples())
    features = average_features(network, [crop_square(*pair) for pair in pairs], LAYER)
    distances = cdist(features, features)
    np.fill_diagonal(distances, np.inf)
    return Likeness(network, features, tuple(rows["image"]), float(distances.min(axis=1).max()))


def crop_square(image_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The square around a mask and its margin, as (64, 64, 3); beyond its rim, the image is mirrored."""
    rows, columns = find_box(mask)
    half = max(rows.stop - rows.start, columns.stop - columns.start) / 2 + CROP_MARGIN
    scale = CROP_SIDE / (2 * half)
    centre = np.array([columns.start + columns.stop - 1, rows.start + rows.stop - 1]) / 2
    shift = (CROP_SIDE - 1) / 2 - scale * centre
    turn = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    border = {"borderMode": cv2.BORDER_REFLECT_101}
    return cv2.warpAffine(image_u8, turn, (CROP_SIDE, CROP_SIDE), flags=cv2.INTER_LINEAR, **border)
