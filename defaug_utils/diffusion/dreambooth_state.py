"""What a fine-tuning depends on, and whether a folder holds the same one."""

import json
from dataclasses import asdict
from pathlib import Path

from defaug_utils.diffusion.dreambooth_images import TrainingImages
from defaug_utils.diffusion.dreambooth_plan import DreamBoothError, DreamBoothSettings
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.text2image import TextToImage
from defaug_utils.training.checkpoints import read_checkpoint

CHECKPOINT = "checkpoint.safetensors"


def describe_training(
    model: TextToImage, images: TrainingImages, settings: DreamBoothSettings, plan: LoraPlan
) -> dict:
    """Everything that the trained adapter depends on, as JSON values."""
    return {
        "base": model.describe()["fingerprint"],
        "clip_skip": model.clip_skip,
        "dreambooth": asdict(settings),
        "lora": asdict(plan),
        "trained_on": images.describe(),
    }


def check_folder(folder: Path, described: dict) -> None:
    """Refuse to go on with, or to overwrite, a run that is another one.

    Args:
        folder: of the run.
        described: see `describe_training`.

    Raises:
        DreamBoothError: names every value that differs, or the checkpoint can't be read.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return
    checkpoint = read_checkpoint(path)
    if checkpoint is None:
        raise DreamBoothError(f"{path} can't be read (damaged?): delete it to train again")
    differing = _differing(checkpoint.settings, _as_json(described))
    if differing:
        raise DreamBoothError(
            f"{folder} holds a fine-tuning with other {', '.join(differing)}: delete the folder to train "
            "again, or choose another one"
        )


def _as_json(described: dict) -> dict:
    return json.loads(json.dumps(described))


def _differing(found: dict, asked: dict, prefix: str = "") -> list[str]:
    names = []
    for name in sorted({*found, *asked}):
        one, other = found.get(name), asked.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            names += _differing(one, other, f"{prefix}{name}.")
        elif one != other:
            names.append(f"{prefix}{name} ({_short(one)}, asked for {_short(other)})")
    return names


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
