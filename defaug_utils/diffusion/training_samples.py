"""A fine-tuning on its way: adapters and sample pictures of some of its steps, kept in files."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image
from defaug_utils.diffusion.lora_files import save_lora
from defaug_utils.diffusion.text2image import TextJob, TextSettings, TextToImage, generate_images

_STEP = re.compile(r"step-(\d+)")


def keep_sample(
    folder: Path | str, step: int, model: TextToImage, jobs: Sequence[TextJob], settings: TextSettings
) -> list[np.ndarray]:
    """Store adapter and sample pictures of a step; for `on_sample` of `train_dreambooth`.

    A step that was kept before a run was interrupted is still there when it goes on.

    Args:
        folder: of the fine-tuning; `steps/` in it is where they go.
        step: number of finished steps.
        model: with the adapter beside its weights, as in training (α = 1).
        jobs: what to draw.
        settings: how.

    Returns:
        The pictures, one a job.
    """
    target = _steps_folder(folder) / f"step-{step:06d}"
    images = generate_images(model, jobs, settings)
    for place, image_u8 in enumerate(images):
        write_png(target / f"{place:03d}.png", image_u8)
    save_lora(target / "lora.safetensors", model.pipeline.unet, model.pipeline.text_encoder)
    return images


def list_adapters(folder: Path | str) -> dict[int, Path]:
    """Adapters that were kept, by the number of finished steps, in their order."""
    return {
        int(_STEP.fullmatch(path.parent.name)[1]): path
        for path in sorted(_steps_folder(folder).glob("step-*/lora.safetensors"))
    }


def read_samples(folder: Path | str) -> dict[int, list[np.ndarray]]:
    """Sample pictures that were kept, by the number of finished steps; each (height, width, 3), uint8."""
    return {
        step: [read_image(path) for path in sorted(adapter.parent.glob("*.png"))]
        for step, adapter in list_adapters(folder).items()
    }


def _steps_folder(folder: Path | str) -> Path:
    return Path(folder) / "steps"
