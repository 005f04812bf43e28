"""Loading any diffusion model from safetensors only, after a look at its files, and telling what it is."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from defaug_utils.core.guards import raise_problems

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
WEIGHTLESS = ("Tokenizer", "Scheduler", "FeatureExtractor", "ImageProcessor")  # ends of class names
CONVERT = (
    "weights that are pickled can run any code when they are loaded and are refused: convert them where you "
    "trust them, with diffusers' from_pretrained(…).save_pretrained(…, safe_serialization=True)"
)
PURPOSES = {  # diffusers' classes for a folder or hub id, for one file, and for SDXL's (empty: it won't do)
    "inpainting": (
        "AutoPipelineForInpainting",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    "text to image": ("AutoPipelineForText2Image", "StableDiffusionPipeline", ""),
}
FINGERPRINT_VALUES = 1024  # of every weight tensor that the fingerprint looks at
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class ModelError(ValueError):
    """A model that can't be loaded, or can't do what is asked of it."""


def check_model_folder(folder: Path | str) -> None:
    """Refuse a folder of diffusers' layout that lacks parts or safetensors weights, listing all problems."""
    folder = Path(folder)
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{folder} has no model_index.json: expected a folder of diffusers' layout")
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{index} is not readable ({error}): copy the model again") from error
    problems = []
    for name, classes in parts.items():
        if isinstance(classes, list) and len(classes) == 2 and classes[1]:
            problems += _check_part(folder / name, classes[1])
    raise_problems(f"model {folder}", problems, ModelError)


def _check_part(part: Path, class_name: str) -> list[str]:
    if not part.is_dir():
        return [f"the part {part.name} ({class_name}) is missing: copy it from where the model came from"]
    if class_name.removesuffix("Fast").endswith(WEIGHTLESS):
        return [] if any(part.iterdir()) else [f"the part {part.name} ({class_name}) is empty"]
    problems = [] if (part / "config.json").is_file() else [f"{part.name} has no config.json"]
    if not any(part.glob("*.safetensors")):
        problems.append(f"{part.name} has {tell_pickles(part) or 'no weights (*.safetensors)'}")
    return problems


def tell_pickles(folder: Path) -> str:
    """Names of the pickled weights in a folder without others, and what to do; empty where there are none."""
    names = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    return f"only {', '.join(names)}: {CONVERT}" if names else ""


def load_pipeline(model: Path | str, purpose: str, dtype: torch.dtype) -> "DiffusionPipeline":
    """Load a folder, a .safetensors checkpoint or a hub id for one of `PURPOSES`, or tell why not."""
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
    try:
        with quiet_libraries():
            return _load(str(model), purpose, dtype)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{model} can't be loaded for {purpose}: {error}; expected a complete Stable Diffusion "
            "model (1.5, 2 or XL) in safetensors; a hub id needs a connection or a copy from an earlier use"
        ) from error


def _load(model: str, purpose: str, dtype: torch.dtype) -> "DiffusionPipeline":
    import diffusers

    of_folder, of_file, of_xl_file = PURPOSES[purpose]
    if not Path(model).is_file():
        return getattr(diffusers, of_folder).from_pretrained(model, dtype=dtype, use_safetensors=True)
    with safe_open(model, "pt") as opened:  # only SDXL has a second text encoder
        is_xl = any(key.startswith("conditioner.embedders.1") for key in opened.keys())  # noqa: SIM118
    if is_xl and not of_xl_file:
        raise ValueError(
            "it is an SDXL checkpoint with two text encoders, expected Stable Diffusion 1.5 or 2"
        )
    return getattr(diffusers, of_xl_file if is_xl else of_file).from_single_file(model, dtype=dtype)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what loading a model writes (bars, hints about other libraries) out of notebooks."""
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
    """Hash of names, shapes and up to 1024 values of every weight: tells models apart, wherever they lie."""
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
    """A pipeline, set up for batches, with what is known about it."""

    pipeline: "DiffusionPipeline"  #: diffusers' own
    model: str  #: name, folder or file it was loaded from
    device: str = "cpu"  #: where it runs
    notices: list[str] = field(default_factory=list)  #: what a user must be told
    batch_limit: int | None = None  #: largest batch that fitted in memory; None while none failed

    def __post_init__(self) -> None:
        """Switch off progress bars, and a filter that would blank pictures of parts."""
        self.pipeline.set_progress_bar_config(disable=True)
        if getattr(self.pipeline, "safety_checker", None) is not None:
            self.pipeline.safety_checker = None
            self.notices.append("the model's picture filter is off: it blanks harmless pictures of parts")

    def describe(self) -> dict:
        """The model in the recipe of a pool: classes, scheduler, fingerprint of its weights, type."""
        scheduler = self.pipeline.scheduler
        settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        return {
            "pipeline": type(self.pipeline).__name__,
            "fingerprint": fingerprint(self.pipeline.components),
            "scheduler": {"class": type(scheduler).__name__, **settings},
            "dtype": str(self.pipeline.unet.dtype).removeprefix("torch."),
            "device": self.device.partition(":")[0],
        }

    @property
    def cell(self) -> int:
        """Pixels along either side of a latent cell."""
        return self.pipeline.vae_scale_factor

    @property
    def side_step(self) -> int:
        """Sides of images must be multiples of it."""
        return self.cell

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse a size (width, height) that `side_step` does not divide, and name the nearest one."""
        step = self.side_step
        if any(side % step for side in size):
            width, height = (max(step, round(side / step) * step) for side in size)
            raise ValueError(
                f"size {size[0]} × {size[1]}: {self.model} takes multiples of {step}, use {width} × {height} "
                "(images to paint on are stretched to it and back)"
            )
