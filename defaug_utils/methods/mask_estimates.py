"""A guess at where the defect of a generated image is: what differs from the nearest real negative."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu

from defaug_utils.core.images import fit_image, read_image

THUMBNAIL = 16  # longest side, pixels, at which the nearest negative is looked for
SMOOTHING = 2.0  # pixels; single pixels of texture differ everywhere


class NearestNegatives:
    """Real training negatives, to compare generated images with.

    Attributes:
        word: this estimate's name in manifests and recipes.
    """

    word = "estimate_nearest_negative"

    def __init__(self, images: Iterable[str], data_folder: Path | str, size: tuple[int, int]) -> None:
        """Keep thumbnails of all negatives.

        Args:
            images: their names, relative to the folder.
            data_folder: folder of the prepared data set.
            size: (width, height) of the images to come.
        """
        self.images, self.data_folder, self.size = list(images), Path(data_folder), size
        scale = THUMBNAIL / max(size)
        self.thumbnail = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        self.features = np.stack([self._shrink(read_image(self.data_folder / name)) for name in self.images])

    def _shrink(self, image_u8: np.ndarray) -> np.ndarray:
        return fit_image(image_u8, self.thumbnail).astype(np.float32)

    def estimate(self, image_u8: np.ndarray) -> tuple[np.ndarray, str]:
        """Guess a mask.

        Args:
            image_u8: generated, shape (height, width, 3), uint8.

        Returns:
            Shape (height, width), bool, true where the smoothed difference exceeds Otsu's threshold; and the
            name of the negative that was nearest. It is a guess: texture that differs counts as well.
        """
        distances = np.square(self.features - self._shrink(image_u8)).mean(axis=(1, 2, 3))
        nearest = self.images[int(distances.argmin())]
        height, width = image_u8.shape[:2]
        good = fit_image(read_image(self.data_folder / nearest), (width, height))
        difference = np.abs(image_u8.astype(np.float32) - good).max(axis=2)
        smooth = gaussian_filter(difference, SMOOTHING)
        if smooth.max() == smooth.min():
            return np.zeros((height, width), bool), nearest
        return smooth > threshold_otsu(smooth), nearest
