"""Where the object is, for parts that don't fill the frame: the binarised image (MemSeg, section 3.1)."""

import cv2
import numpy as np

FOREGROUNDS = ("whole", "auto", "bright", "dark")


def find_foreground(image_u8: np.ndarray, foreground: str = "whole") -> np.ndarray:
    """Tell the object from its background by Otsu's grey-level threshold.

    Args:
        image_u8: shape (height, width, 3), uint8.
        foreground: "whole": everything is object (surfaces, textures); "bright" or "dark": the object is
            the brighter or the darker part; "auto": the object is the part that fewer pixels of the
            image's border belong to.

    Returns:
        Shape (height, width), bool, true on the object; nowhere true when all pixels are alike.

    Raises:
        ValueError: the word is none of `FOREGROUNDS`.
    """
    if foreground not in FOREGROUNDS:
        raise ValueError(f"foreground {foreground!r} is none of {', '.join(FOREGROUNDS)}")
    if foreground == "whole":
        return np.ones(image_u8.shape[:2], bool)
    grey = cv2.cvtColor(image_u8, cv2.COLOR_RGB2GRAY)
    if grey.min() == grey.max():
        return np.zeros(grey.shape, bool)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    is_bright = grey > threshold
    if foreground == "auto":
        border = np.concatenate([is_bright[0], is_bright[-1], is_bright[:, 0], is_bright[:, -1]])
        foreground = "dark" if 2 * np.count_nonzero(border) > border.size else "bright"
    return is_bright if foreground == "bright" else ~is_bright
