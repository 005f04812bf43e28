"""A mask source for few-shot work: the shapes of the known defects, turned, scaled and put elsewhere."""

import hashlib
from collections.abc import Sequence

import numpy as np

from defaug_utils.masks.defect_patches import Defect, find_places, turn_defect
from defaug_utils.masks.masks import MaskDraw
from defaug_utils.masks.trimaps import write_prompt


class TurnedMasks:
    """Masks of real training defects, never as they were (AdaBLDM, section 3.2).

    Attributes:
        word: "few_shot"; a leak wherever these defects may not be known, see `is_leak`.
        notices: what a user must be told.
    """

    word = "few_shot"

    def __init__(
        self,
        defects: Sequence[Defect],
        scale_range: float = 0.15,
        max_attempts: int = 50,
        template: str = "",
    ) -> None:
        """Keep the shapes.

        Args:
            defects: from `read_defects`, at the size of the images that masks are drawn for.
            scale_range: scales are drawn from 1 ± this.
            max_attempts: turned shapes tried before it is given up.
            template: see `write_prompt`; a shape then brings the prompt of its defect along.

        Raises:
            ValueError: there is no defect, the numbers make no sense, or the template does not suit.
        """
        if not defects or not 0 <= scale_range < 1 or max_attempts < 1:
            raise ValueError(
                f"{len(defects)} defects, scale_range {scale_range}, max_attempts {max_attempts}: expected "
                "at least one defect, 0 … 1 and 1 or more"
            )
        self._defects, self._scale_range, self._max_attempts = list(defects), scale_range, max_attempts
        self._texts = {
            defect[2:4]: write_prompt(template, *defect[2:4]) if template else "" for defect in self._defects
        }
        self.notices = [f"these masks are the shapes of {len(defects)} real training defects"]

    def draw(self, seed: int, size: tuple[int, int]) -> MaskDraw:
        """Choose, turn and place a shape by the seed, somewhere in an image of a size (width, height).

        Raises:
            ValueError: no turned shape fitted into the image.
        """
        generator = np.random.default_rng(seed)
        frame = np.ones((size[1], size[0]), bool)
        for _ in range(self._max_attempts):
            defect = self._defects[generator.integers(len(self._defects))]
            scale = 1 + generator.uniform(-self._scale_range, self._scale_range)
            turned = turn_defect(defect, generator.uniform(0, 360), scale)
            places = find_places(frame, turned.mask)
            if len(places):
                top, left = places[generator.integers(len(places))]
                mask = np.zeros_like(frame)
                mask[top : top + turned.mask.shape[0], left : left + turned.mask.shape[1]] = turned.mask
                return MaskDraw(mask, defect.name, self._texts[defect[2:4]])
        raise ValueError(
            f"none of {self._max_attempts} turned shapes fits into {size[0]} × {size[1]} pixels; the last "
            f"one ({defect.name}) is {turned.mask.shape[1]} × {turned.mask.shape[0]}: read the defects at "
            "that size"
        )

    def describe(self) -> dict:
        """Source, names and content of the shapes."""
        digest = hashlib.sha256()
        for defect in self._defects:
            digest.update(
                f"{defect.name} {defect.mask.shape}\n".encode() + np.packbits(defect.mask).tobytes()
            )
        return {
            "mask_source": self.word,
            "mask_names": sorted({defect.name for defect in self._defects}),
            "mask_scale_range": self._scale_range,
            "mask_sha256": digest.hexdigest(),
            "mask_texts": sorted(set(self._texts.values())),
        }
