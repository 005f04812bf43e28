"""Refined cut-and-paste: a pasted defect is redrawn at low strength, so that edge, light and grain fit.

The book's own method, based on cut-and-paste and DIAG (Girella et al., CBMI 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np

from defaug_utils.core.guards import raise_problems
from defaug_utils.core.prompts import check_prompts
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, inpaint_batch
from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob
from defaug_utils.masks.patches import widen_mask
from defaug_utils.masks.trimaps import TripleSet, write_prompt
from defaug_utils.methods.painting import Painting
from defaug_utils.methods.pasting import describe_pastes, paste_by_seed


class RefineJob(NamedTuple):
    """Like `InpaintJob`, with the good image as `image_u8`, and the same image with the pasted defect."""

    image_u8: np.ndarray
    mask: np.ndarray
    prompt: str
    negative_prompt: str
    seed: int
    pasted_u8: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class PasteRefined(Painting):
    """The cut-and-paste image of the same seed, redrawn within its mask and a margin around it.

    The prompt is the triple's. Checks compare with the good image, so the defect must still be visible. Rows
    also have the columns `defect_source`, as for cut-and-paste, and `margin`; other attributes as in
    `Painting`.
    """

    origin: ClassVar[str] = "paste_refined"
    inpainter: Inpainter
    triples: TripleSet  #: its own seed and count are not used
    settings: InpaintSettings  #: its feather is the margin, over which the good image fades out
    margin: int = 2  #: pixels around the mask that are also redrawn

    def __post_init__(self) -> None:
        """Refuse a size or prompts that the model can't use, and a board without a defect's prompt."""
        super().__post_init__()
        self.inpainter.check_size(self.settings.size)
        check_prompts(self.inpainter, self.texts)
        template, kinds = self.triples.settings.template, {one[2:4] for one in self.triples.defects}
        missing = {write_prompt(template, *kind) for kind in kinds} - self.board.keys()
        problems = [f"{text!r} is not on the board" for text in sorted(missing)]
        problems += [f"margin {self.margin} must be 0 or more"] * (self.margin < 0)
        raise_problems("refined cut-and-paste", problems)

    @cached_property
    def board(self) -> dict[str, str]:
        """Negative prompts by prompt."""
        return {prompt.text: prompt.negative for prompt in self.prompts}

    @cached_property
    def good_of(self) -> dict[str, np.ndarray]:
        """Good images by name."""
        return {good.name: good.image_u8 for good in self.triples.goods}

    def describe(self) -> dict:
        """Model, settings, pastes, and the description of `Painting`."""
        return {
            "model": self.inpainter.describe(),
            "settings": self.settings.describe(),
            "margin": self.margin,
            **describe_pastes(self.triples),
            **super().describe(),
        }

    def plan_image(self, index: int, seed: int) -> tuple[RefineJob, dict]:
        """The paste of a seed."""
        triple, row = paste_by_seed(self.triples, seed)
        negative = self.board[triple.prompt]
        texts = {"prompt": triple.prompt, "negative_prompt": negative}
        good_u8 = self.good_of[triple.good]
        job = RefineJob(good_u8, triple.mask, triple.prompt, negative, seed, triple.image_u8)
        return job, row | texts | {"margin": self.margin}

    def paint(self, jobs: Sequence[RefineJob]) -> list[InpaintedImage]:
        """One call of the inpainter on the pastes, with masks widened by the margin."""
        asked = [InpaintJob(job.pasted_u8, widen_mask(job.mask, self.margin), *job[2:5]) for job in jobs]
        return inpaint_batch(self.inpainter, asked, replace(self.settings, feather=self.margin))
