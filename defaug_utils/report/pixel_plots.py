"""Score maps beside each other: what each detector calls defective on the same pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from defaug_utils.report.plots import choose_window, show_images

FULL_WIDTH = 11.0  # of the figure, inches
LARGEST_TILE = 2.2  # inches


def show_score_maps(
    images_u8: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    score_maps: Mapping[str, Sequence[np.ndarray]],
) -> Figure:
    """One row a picture: the picture with its mask's outline, then each detector's probabilities.

    Tall and wide pictures are cut to the square around the mask.

    Args:
        images_u8: each of shape (height, width, 3), uint8.
        masks: one a picture, shape (height, width), bool; all false without defect.
        score_maps: detector's name → one map a picture, shape (height, width), logits. Black is
            probability 0, white 1.

    Returns:
        The figure.

    Raises:
        ValueError: a list has another length than the pictures, or a map another size than its picture.
    """
    lengths = {"masks": len(masks), **{name: len(maps) for name, maps in score_maps.items()}}
    wrong = [f"{number} of {name}" for name, number in lengths.items() if number != len(images_u8)]
    if wrong:
        raise ValueError(f"{len(images_u8)} pictures, but {', '.join(wrong)}")
    tiles, outlines = [], []
    for index, (image_u8, mask) in enumerate(zip(images_u8, masks, strict=True)):
        logits = [maps[index] for maps in score_maps.values()]
        if any(one.shape != mask.shape for one in (image_u8[..., 0], *logits)):
            raise ValueError(f"picture {index}: picture, mask {mask.shape} and score maps differ in size")
        window = choose_window(mask if mask.any() else ~mask)
        tiles += [image_u8[window], *(_to_levels(one[window]) for one in logits)]
        outlines += [mask[window]] * (1 + len(logits))
    titles = ["picture", *score_maps] + [""] * (len(tiles) - 1 - len(score_maps))
    columns = 1 + len(score_maps)
    return show_images(tiles, titles, outlines, columns, min(FULL_WIDTH, LARGEST_TILE * columns))


def _to_levels(logits: np.ndarray) -> np.ndarray:
    """Probabilities as grey levels."""
    return np.rint(255 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.uint8)
