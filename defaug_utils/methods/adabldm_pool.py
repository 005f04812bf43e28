"""AdaBLDM: defects blended into training negatives by trimap and prompt (Li et al. 2024, section 3)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from defaug_utils.core.manifest import ManifestError, raise_problems
from defaug_utils.core.prompts import check_prompts
from defaug_utils.core.sources import read_dataset
from defaug_utils.diffusion.autoencoder import AdaptationSettings
from defaug_utils.diffusion.controlnet import TrimapModel
from defaug_utils.diffusion.inpainting import InpaintedImage, InpaintJob
from defaug_utils.diffusion.text2image import check_size
from defaug_utils.masks.objects import ObjectFinder
from defaug_utils.masks.patches import move_inside
from defaug_utils.methods.adabldm import BlendSettings
from defaug_utils.methods.adabldm_batches import LatentStore, blend_batch, find_everything
from defaug_utils.methods.painting import Painting


@dataclass(frozen=True, eq=False, kw_only=True)
class AdaBLDM(Painting):
    """Blending by trimap and prompt; further attributes as in `Painting`.

    With adaptation rows have the further columns `adaptation_before` and `adaptation_after` (losses),
    `adaptation_steps` and `adaptation_problem` (why it was thrown away, and the model's own decoder's
    image taken).

    Attributes:
        model: the model and its ControlNet.
        settings: of the blending.
        adaptation: of the decoder; without it the origin is "adabldm_plain".
        find_object: tells where the object is, and masks are moved into it; None for textures.
        store: of this model and these settings: what one pool blends, a second one of the same seed, with
            or without adaptation, only decodes.
    """

    model: TrimapModel
    settings: BlendSettings = field(default_factory=BlendSettings)
    adaptation: AdaptationSettings | None = None
    find_object: ObjectFinder | None = None
    store: LatentStore | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a size or texts that the model can't take."""
        super().__post_init__()
        check_size(self.model.model, self.settings.size)
        check_prompts(self.model.model, self.texts)

    @property
    def origin(self) -> str:
        """The row in the registry."""
        return "adabldm" if self.adaptation else "adabldm_plain"

    def describe(self) -> dict:
        """Models, settings, and what `Painting` adds, with the images that the ControlNet learned from.

        Raises:
            ManifestError: lists every image that it learned from and that is not in the train split.
        """
        trained_on = self.model.training.get("trained_on", {})
        check_training(trained_on, read_dataset(self.data))
        return {
            "model": self.model.describe(),
            "settings": asdict(self.settings),
            "adaptation": asdict(self.adaptation) if self.adaptation else None,
            "foreground": self.find_object.describe() if self.find_object else "whole",
            "learned_from": list(trained_on.get("defects", [])),
            **super().describe(),
        }

    def paint(self, jobs: Sequence[InpaintJob]) -> list[InpaintedImage]:
        """Blend all jobs at once."""
        find_object = self.find_object or find_everything
        return blend_batch(self.model, jobs, self.settings, self.adaptation, find_object, store=self.store)

    def fit_mask(
        self, image_u8: np.ndarray, mask: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray | None:
        """Move a mask that leaves the image's object inside it."""
        return move_inside(mask, self.find_object(image_u8), generator) if self.find_object else mask


def check_training(trained_on: dict[str, list[str]], dataset: pd.DataFrame) -> None:
    """Refuse a ControlNet that has seen test or validation images; see `AdaBLDM.describe`."""
    split_of = dict(zip(dataset["image"], dataset["split"], strict=True))
    problems = [
        f"{name} is {split_of.get(name, 'unknown to the data set')}, only train images may be learned from"
        for part in trained_on.values()
        for name in part
        if split_of.get(name) != "train"
    ]
    raise_problems("images that the ControlNet learned from", problems, ManifestError)
