"""DDPM: whole images generated from text by a fine-tuned model (Capogrosso et al. 2024, section 3.2)."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu

from defaug_utils.core.images import fit_image, make_grey, read_image
from defaug_utils.core.pools import GeneratedImage, list_versions
from defaug_utils.core.prompts import Prompt, check_prompts, choose_prompt
from defaug_utils.core.sources import count_grey, list_sources, read_dataset, survey_sources
from defaug_utils.diffusion.lora import merge_lora
from defaug_utils.diffusion.lora_files import load_lora
from defaug_utils.diffusion.text2image import TextJob, TextSettings, TextToImage, generate_images
from defaug_utils.diffusion.training_images import check_training_rows

THUMBNAIL = 16  # longest side of the thumbnails that find the nearest negative, pixels
SMOOTHING = 2.0  # pixels; single pixels of texture differ everywhere

Networks = tuple[torch.nn.Module, torch.nn.Module]  # U-Net and text encoder


class AdapterError(ValueError):
    """An adapter doesn't fit the base model, or was trained on images that it must not know."""


class Adapter(NamedTuple):
    """A LoRA file."""

    sha256: str  #: of its tensors, whatever their order in the file
    training: dict  #: what `train_dreambooth` recorded in it; empty for other files


def open_adapter(path: Path | str, model: TextToImage, dataset: pd.DataFrame) -> Adapter:
    """Check a LoRA file, from `train_dreambooth` or elsewhere, before it is merged into a base model.

    Raises:
        AdapterError: it is missing or damaged, or was trained on another base model.
        DreamBoothError: it was trained on images outside the train split; lists them.
    """
    path = Path(path)
    if not path.is_file():
        raise AdapterError(f"no adapter at {path}: run notebook 03_lora_finetune first")
    try:
        with safe_open(path, "pt") as opened:
            metadata, digest = opened.metadata() or {}, hashlib.sha256()
            for key in sorted(opened.keys()):
                tensor = opened.get_tensor(key).contiguous()
                digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    except SafetensorError as error:
        advice = "train or copy it again"
        raise AdapterError(f"{path} is not a readable safetensors file ({error}): {advice}") from error
    training = json.loads(metadata.get("training", "{}"))
    base = model.describe()["fingerprint"]
    if training and training["base"] != base:
        raise AdapterError(
            f"{path} was trained on the base model {training['base']}, but {model.model} is {base}: load the "
            "model that it belongs to"
        )
    if training:
        check_training_rows(pd.DataFrame({"image": training["trained_on"]["instances"]}), dataset)
    return Adapter(digest.hexdigest(), training)


def merge_adapter(model: TextToImage, adapter: Path | str | None, share: float) -> AbstractContextManager:
    """Use copies of the networks with a LoRA file (or None) merged into them, inside the `with` block.

    The share is α, the merge weight; 0 gives the base model. The model itself never changes.
    """
    return use_networks(model, merge_networks(model, adapter, share))


def merge_networks(model: TextToImage, adapter: Path | str | None, share: float) -> Networks:
    """U-Net and text encoder, or copies of both with an adapter; arguments as in `merge_adapter`."""
    networks = model.pipeline.unet, model.pipeline.text_encoder
    if adapter is None:
        return networks
    networks = deepcopy(networks)
    load_lora(adapter, *networks)
    merge_lora(*networks, share)
    return networks


@contextmanager
def use_networks(model: TextToImage, networks: Networks) -> Iterator[None]:
    """Let a model use another U-Net and text encoder inside the `with` block."""
    pipeline = model.pipeline
    before = pipeline.unet, pipeline.text_encoder
    try:
        pipeline.unet, pipeline.text_encoder = networks
        yield
    finally:
        pipeline.unet, pipeline.text_encoder = before


class NearestNegatives:
    """Real training negatives, to compare generated images with."""

    word = "estimate_nearest_negative"  # in manifests and recipes

    def __init__(self, images: Iterable[str], data_folder: Path | str, size: tuple[int, int]) -> None:
        """Store thumbnails of all negatives, for generated images of a size (width, height)."""
        self.images, self.data_folder = list(images), Path(data_folder)
        scale = THUMBNAIL / max(size)
        self.thumbnail = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        self.features = np.stack([self._shrink(read_image(self.data_folder / name)) for name in self.images])

    def _shrink(self, image_u8: np.ndarray) -> np.ndarray:
        return fit_image(image_u8, self.thumbnail).astype(np.float32)

    def estimate(self, image_u8: np.ndarray) -> tuple[np.ndarray, str]:
        """Estimate the mask of a generated image (height, width, 3), and name the nearest negative.

        True where the smoothed difference exceeds Otsu's threshold; differences in texture count, too.
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


@dataclass(frozen=True, eq=False, kw_only=True)
class DDPM:
    """Whole images from text; without adapter and with label "negative", DreamBooth's regularisation images.

    Rows have no source image, and no mask unless it is estimated from the difference to the nearest real
    negative. If all real negatives are grey (see `is_grey`), each pixel becomes the mean of its channels.
    """

    origin: ClassVar[str] = "ddpm"
    model: TextToImage
    prompts: Sequence[Prompt]  #: the board, see `make_prompts`
    settings: TextSettings
    data: Path | None  #: folder of the prepared data set; None for regularisation images
    lora: Path | str | None = None  #: the adapter's file; None for the base model
    share: float = 1.0  #: α, see `merge_adapter`
    estimates_masks: bool = False
    label: str = "positive"
    group: int = 4  #: images made at once; part of the recipe, because the last bits depend on it

    def __post_init__(self) -> None:
        if not 0 <= self.share < float("inf"):
            raise ValueError(f"merge weight {self.share} must be 0 or more")
        self.model.check_size(self.settings.size)
        texts = [text for prompt in self.prompts for text in (prompt.text, prompt.negative or "-")]
        check_prompts(self.model, texts)

    @cached_property
    def networks(self) -> Networks:
        """The model's networks, with the adapter merged into copies."""
        return merge_networks(self.model, self.lora, self.share)

    @cached_property
    def sources(self) -> pd.DataFrame:
        """Real negatives, for estimating masks and for their colours."""
        return list_sources(read_dataset(self.data))

    @cached_property
    def stays_grey(self) -> bool:
        """Whether all real negatives are grey, as from a line-scan camera."""
        return self.data is not None and 0 < len(self.sources) == count_grey(self.sources, self.data)

    @cached_property
    def estimates(self) -> NearestNegatives:
        """The estimator of masks."""
        return NearestNegatives(self.sources["image"], self.data, self.settings.size)

    def describe(self) -> dict:
        """Model, adapter and settings, with the images that it learned from; raises like `open_adapter`."""
        described = {
            "model": self.model.describe(),
            "settings": self.settings.describe(),
            "prompts": [prompt.describe() for prompt in self.prompts],
            "batch_size": self.group,
            "label": self.label,
            "adapter": "none",
            "learned_from": [],
            "masks": "none",
            "versions": list_versions("torch", "diffusers", "transformers", "peft", "numpy", "pillow"),
        }
        if self.lora is not None:
            sha256, training = open_adapter(self.lora, self.model, read_dataset(self.data))
            described["adapter"] = {"sha256": sha256, "share": self.share, "training": training or "unknown"}
            described["learned_from"] = training.get("trained_on", {}).get("instances", [])
        if self.stays_grey:
            described["stay_grey"] = True
        if self.estimates_masks:
            described["masks"] = NearestNegatives.word
            described["sources"] = survey_sources(self.sources, self.data)
        return described

    def make(self, indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        """All images at once."""
        chosen = [choose_prompt(self.prompts, index) for index in indices]
        jobs = [TextJob(p.text, p.negative, seed) for p, seed in zip(chosen, seeds, strict=True)]
        with use_networks(self.model, self.networks):
            images_u8 = generate_images(self.model, jobs, self.settings)
        if self.stays_grey:
            images_u8 = [make_grey(image_u8) for image_u8 in images_u8]
        return [self._describe_image(*made) for made in zip(images_u8, jobs, strict=True)]

    def _describe_image(self, image_u8: np.ndarray, job: TextJob) -> GeneratedImage:
        row = {"label": self.label, "prompt": job.prompt, "negative_prompt": job.negative_prompt}
        if not self.estimates_masks:
            return GeneratedImage(image_u8, None, row)
        mask, row["mask_nearest"] = self.estimates.estimate(image_u8)
        return GeneratedImage(image_u8, mask, row | {"mask_source": NearestNegatives.word})
