"""Loading diffusion models: from safetensors only, after checking their files, with their family."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from defaug_utils.core.guards import raise_problems
from defaug_utils.diffusion.families import SDXL, STABLE_DIFFUSION, Family, find_family, list_families

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
WEIGHTLESS = ("Tokenizer", "Scheduler", "FeatureExtractor", "ImageProcessor")  # ends of class names
CONVERT = (
    "pickled weights can run any code when they are loaded and are refused: if you trust them, convert "
    "them with diffusers' from_pretrained(…).save_pretrained(…, safe_serialization=True)"
)
INDEX = "model_index.json"  # of a model in diffusers' layout; names its class and parts
FINGERPRINT_VALUES = 1024  # values per weight tensor that the fingerprint uses
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class ModelError(ValueError):
    """A model that can't be loaded, or can't do what is requested."""


def check_model_folder(folder: Path | str) -> None:
    """Refuse a folder in diffusers' layout that lacks parts or safetensors weights; lists all problems."""
    folder = Path(folder)
    index = folder / INDEX
    if not index.is_file():
        raise ModelError(f"{folder} has no {INDEX}: expected a folder in diffusers' layout")
    problems = []
    for name, classes in _read_index(index).items():
        if isinstance(classes, list) and len(classes) == 2 and classes[1]:
            problems += _check_part(folder / name, classes[1])
    raise_problems(f"model {folder}", problems, ModelError)


def _read_index(index: Path) -> dict:
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{index} is not readable ({error}): copy the model again") from error
    if not isinstance(parts, dict):
        raise ModelError(f"{index} lists no parts: copy the model again")
    return parts


def _check_part(part: Path, class_name: str) -> list[str]:
    if not part.is_dir():
        return [f"the part {part.name} ({class_name}) is missing: copy the model again"]
    if class_name.removesuffix("Fast").endswith(WEIGHTLESS):
        return [] if any(part.iterdir()) else [f"the part {part.name} ({class_name}) is empty"]
    config = part / "config.json"
    problems = [] if config.is_file() else [f"{part.name} has no config.json"]
    found = _read_index(config).get("_class_name", class_name) if config.is_file() else class_name
    if found != class_name:
        problems.append(f"the part {part.name} is a {found}, expected a {class_name}: of another model")
    if not any(part.glob("*.safetensors")):
        problems.append(f"{part.name} has {tell_pickles(part) or 'no weights (*.safetensors)'}")
    return problems


def tell_pickles(folder: Path) -> str:
    """Names of the pickled weights in a folder without safetensors, and advice; empty if there are none."""
    names = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    return f"only {', '.join(names)}: {CONVERT}" if names else ""


def load_pipeline(model: Path | str, purpose: str, dtype: torch.dtype) -> "DiffusionPipeline":
    """Load a folder, a .safetensors file or a hub id for "inpainting" or "text to image", or say why not.

    Its family is determined before anything large is downloaded.
    """
    path = Path(model)
    if path.is_dir():
        check_model_folder(path)
    elif path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(f"{path}: expected a .safetensors file; {CONVERT}")
    elif path.suffix in (".safetensors", *PICKLES) or not HUB_ID.fullmatch(str(model)):
        raise ModelError(
            f"no model at {model}: expected a folder, a .safetensors file or a hub id owner/name"
        )
    family = _read_family_of_file(path) if path.is_file() else _read_family(model)
    if not family.name_class(purpose):
        raise ModelError(
            f"{model} is a {family.label} model, which can't be used for {purpose}: expected one of "
            f"{list_families(purpose)}"
        )
    try:
        with quiet_libraries():
            return _load(str(model), family.name_class(purpose), dtype)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{model} can't be loaded for {purpose}: {error}; expected a complete {family.label} model in "
            "safetensors; a hub id needs a network connection or a cached copy"
        ) from error


def _load(model: str, class_name: str, dtype: torch.dtype) -> "DiffusionPipeline":
    import diffusers

    wanted = getattr(diffusers, class_name)
    if Path(model).is_file():
        return wanted.from_single_file(model, dtype=dtype)
    pipeline = wanted.from_pretrained(model, dtype=dtype, use_safetensors=True)
    problems = [
        f"{name} lacks {key}"
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
        for key, weight in part.named_parameters()
        if weight.is_meta
    ]
    raise_problems("weights are missing or belong to another model", problems)
    return pipeline


def _read_family(model: Path | str) -> Family:
    """The family of a folder or hub id; only the index is downloaded."""
    index = Path(model) / INDEX if Path(model).is_dir() else _fetch_index(str(model))
    found = str(_read_index(index).get("_class_name", ""))
    family = find_family(found)
    if family is None:
        raise ModelError(
            f"{model} is a {found or 'model without a class'}, which this package can't inpaint with: "
            f"expected one of {list_families('inpainting')}"
        )
    return family


def _fetch_index(model: str) -> Path:
    try:
        return Path(hf_hub_download(model, INDEX))
    except GatedRepoError as error:
        reason = f"is gated: accept its licence at https://huggingface.co/{model}, then run `hf auth login`"
        raise ModelError(f"{model} {reason} on this machine and try again") from error
    except RepositoryNotFoundError as error:
        reason = "is not on the hub, or private: check the name, or run `hf auth login`"
        raise ModelError(f"{model} {reason}") from error
    except LocalEntryNotFoundError as error:
        reason = "can't be downloaded: there is no connection to the hub and no cached copy"
        raise ModelError(f"{model} {reason}") from error
    except EntryNotFoundError as error:
        reason = f"has no {INDEX} on the hub: expected a model in diffusers' layout"
        raise ModelError(f"{model} {reason}") from error
    except OSError as error:
        raise ModelError(f"{model} can't be downloaded from the hub: {error}") from error


def _read_family_of_file(path: Path) -> Family:
    """The family of a single weights file: only Stable Diffusion XL has a second text encoder."""
    try:
        with safe_open(path, "pt") as opened:
            keys = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not readable ({error}): copy it again") from error
    if any(key.startswith("conditioner.embedders.1") for key in keys):
        return SDXL
    if any(key.startswith("cond_stage_model.") for key in keys):
        return STABLE_DIFFUSION
    raise ModelError(
        f"{path} is not a complete model of {STABLE_DIFFUSION.label} or XL: models of other families need "
        "a folder in diffusers' layout or a hub id"
    )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the output of loading a model (progress bars, hints) out of notebooks."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        from diffusers.utils import logging

        logging.disable_progress_bar()
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def fingerprint(components: Mapping[str, object]) -> str:
    """Hash of names, shapes and up to 1024 values of every weight: identifies a model, wherever it is."""
    digest = hashlib.sha256()
    for name, part in sorted(components.items()):
        if isinstance(part, torch.nn.Module):
            for key, weight in part.state_dict().items():
                flat = weight.detach().flatten()
                values = flat[:: max(1, flat.numel() // FINGERPRINT_VALUES)].float().cpu()
                digest.update(f"{name}.{key} {tuple(weight.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass
class LoadedModel:
    """A pipeline, set up for batches, with information about it."""

    pipeline: "DiffusionPipeline"  #: diffusers' own
    model: str  #: name, folder or file that it was loaded from
    device: str = "cpu"  #: where it runs
    notices: list[str] = field(default_factory=list)  #: notices for the user
    batch_limit: int | None = None  #: largest batch that fitted into memory; None if none failed

    def __post_init__(self) -> None:
        """Switch off progress bars, and the safety filter, which would blank images of parts."""
        self.pipeline.set_progress_bar_config(disable=True)
        if getattr(self.pipeline, "safety_checker", None) is not None:
            self.pipeline.safety_checker = None
            self.notices.append("the model's safety filter is off: it blanks harmless images of parts")

    def describe(self) -> dict:
        """The model for a pool's recipe: classes, scheduler, fingerprint of its weights, type."""
        scheduler = self.pipeline.scheduler
        settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        return {
            "pipeline": type(self.pipeline).__name__,
            "fingerprint": fingerprint(self.pipeline.components),
            "scheduler": {"class": type(scheduler).__name__, **settings},
            "dtype": str(self.denoiser.dtype).removeprefix("torch."),
            "device": self.device.partition(":")[0],
        }

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that runs at every step: a U-Net or a transformer."""
        return getattr(self.pipeline, "unet", None) or self.pipeline.transformer

    @property
    def cell(self) -> int:
        """Pixels per side of a latent cell."""
        return self.pipeline.vae_scale_factor

    @property
    def side_step(self) -> int:
        """Sides of images must be multiples of this."""
        return self.cell

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse a size (width, height) that `side_step` doesn't divide, and suggest the nearest one."""
        step = self.side_step
        if any(side % step for side in size):
            width, height = (max(step, round(side / step) * step) for side in size)
            raise ValueError(
                f"size {size[0]} × {size[1]}: {self.model} needs multiples of {step}, use {width} × {height} "
                "(images are stretched to it and back)"
            )
