"""DIAG: defects painted into good parts from a prompt, without training (Girella et al., CBMI 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass

from defaug_utils.core.prompts import check_prompts
from defaug_utils.core.sources import check_learned_from, read_dataset
from defaug_utils.diffusion import inpainting
from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob
from defaug_utils.methods.painting import MaskPainting

MODEL = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"  # DIAG, section 4
PROMPTS = ("white marks on the wall", "copper metal scratches")  # DIAG, section 4
NEGATIVE_PROMPT = "smooth, plain, black, dark, shadow"  # DIAG, section 4
IMAGES_PER_PROMPT = 50  # DIAG, section 4
OUTPUT_SIZE = (224, 632)  # width and height of the stored images (DIAG, section 4)
# 30 steps, guidance 20, strength 0.99, crop 2, 1024² (DIAG's code)
PAPER_SETTINGS = inpainting.InpaintSettings()


@dataclass(frozen=True, eq=False, kw_only=True)
class DIAG(MaskPainting):
    """Inpainting with a prompt and a model from `load_inpainter`; further attributes as in `MaskPainting`."""

    origin: str = "diag"  #: or "diag_real_masks", for those of training positives, as in DIAG's code
    inpainter: inpainting.Inpainter
    settings: inpainting.InpaintSettings = PAPER_SETTINGS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inpainter.check_size(self.settings.size)
        check_prompts(self.inpainter, self.texts)

    def describe(self) -> dict:
        """Model, settings, and the description of `MaskPainting`; DIAG learns from no image."""
        return {
            "model": self.inpainter.describe(),
            "settings": self.settings.describe(),
            **super().describe(),
        }

    def paint(self, jobs: Sequence[InpaintJob]) -> list[InpaintedImage]:
        """One call of the inpainter."""
        return inpainting.inpaint_batch(self.inpainter, jobs, self.settings)


@dataclass(frozen=True, eq=False, kw_only=True)
class TunedDIAG(DIAG):
    """DIAG with a model that was tuned on known defects, see `train_inpainting_lora`.

    Refuses a model that learned from images outside the training split (a `ManifestError` lists them).
    """

    origin: str = "diag_tuned"
    learned_from: Sequence[str]  #: names of the images that the model was tuned on

    def describe(self) -> dict:
        """What `DIAG` describes, and the images that the model was tuned on."""
        what = "a model may only be tuned on training images"
        check_learned_from(self.learned_from, read_dataset(self.data), what)
        return super().describe() | {"learned_from": list(self.learned_from)}
