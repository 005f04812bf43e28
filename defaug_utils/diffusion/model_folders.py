"""Looking at a diffusion model's files before anything of them is loaded."""

import json
from pathlib import Path

from defaug_utils.core.manifest import raise_problems

PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
WEIGHTLESS = ("Tokenizer", "Scheduler", "FeatureExtractor", "ImageProcessor")  # ends of class names
CONVERT = (
    "weights that are pickled can run any code when they are loaded and are refused: convert them where you "
    "trust them, with diffusers' from_pretrained(…).save_pretrained(…, safe_serialization=True)"
)


class ModelError(ValueError):
    """A model that can't be loaded, or can't do what is asked of it."""


def check_model_folder(folder: Path | str) -> None:
    """Demand a complete folder of diffusers' layout with weights in safetensors.

    Args:
        folder: with `model_index.json` and a folder for every part that it names.

    Raises:
        ModelError: lists every part that is missing, has no configuration, or pickled weights only.
    """
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
        pickled = sorted(path.name for pattern in PICKLES for path in part.glob(pattern))
        problems.append(
            f"{part.name} has only {', '.join(pickled)}: {CONVERT}"
            if pickled
            else f"{part.name} has no weights (*.safetensors)"
        )
    return problems


def check_single_file(path: Path | str) -> None:
    """Refuse a checkpoint file that is not safetensors.

    Raises:
        ModelError: it has another suffix.
    """
    if Path(path).suffix != ".safetensors":
        raise ModelError(f"{path}: expected a .safetensors file; {CONVERT}")
