"""Train the backbone of the embedded model: a small ResNet that recognises material and defect of drawn
parts.

python scripts/embedded/train_backbone.py --folder runs/embedded/backbone
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from loop import Run, choose_precision, read_options
from transformers import ResNetConfig, ResNetForImageClassification
from world_defects import DEFECTS
from world_materials import MATERIALS

from defaug_utils.training.backbones import BACKBONES, normalise_images

LABELS = [*DEFECTS, *MATERIALS]
WINDOW, BATCH = 128, 32


def build_backbone() -> ResNetForImageClassification:
    """The architecture, with random weights."""
    config = ResNetConfig(
        **BACKBONES["resnet10_quarter"],
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        problem_type="multi_label_classification",
    )
    return ResNetForImageClassification(config).to(memory_format=torch.channels_last)


def read_labels(words: dict[str, str], is_clean: bool) -> np.ndarray:
    """Ones for the material and, if there is one, the defect."""
    present = {words["material"]} | (set() if is_clean else {words["defect"]})
    return np.array([label in present for label in LABELS], np.float32)


def read_batch(
    rng: np.random.Generator, pool: Path, words: list[dict[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Square windows, two of three with a visible defect, randomly flipped."""
    arrays = {name: np.load(pool / f"{name}.npy", mmap_mode="r") for name in ("image", "clean", "mask")}
    images, labels = [], []
    for index in rng.integers(0, len(words), BATCH):
        is_clean = bool(rng.random() < 1 / 3)
        row = int(rng.choice(np.nonzero(arrays["mask"][index].any(1))[0]))
        top = int(np.clip(row - rng.integers(WINDOW), 0, arrays["mask"].shape[1] - WINDOW))
        flip = (slice(None, None, int(rng.choice([-1, 1]))), slice(None, None, int(rng.choice([-1, 1]))))
        images.append(arrays["clean" if is_clean else "image"][index][top : top + WINDOW][flip])
        labels.append(read_labels(words[index], is_clean))
    return normalise_images(torch.from_numpy(np.stack(images))), torch.from_numpy(np.stack(labels))


def compute_losses(model: ResNetForImageClassification, pixels: torch.Tensor, labels: torch.Tensor):
    """Binary cross-entropy of all labels, and the accuracy of the strongest material."""
    with choose_precision():
        logits = model(pixels).logits.float()
    loss = functional.binary_cross_entropy_with_logits(logits, labels) * len(LABELS)
    split = len(DEFECTS)
    material_right = (logits[:, split:].argmax(1) == labels[:, split:].argmax(1)).float().mean()
    has_defect = labels[:, :split].any(1)
    defect_right = (logits[:, :split].argmax(1) == labels[:, :split].argmax(1))[has_defect].float().mean()
    return {"loss": loss, "material_right": material_right, "defect_right": defect_right.nan_to_num()}


def main() -> None:
    arguments = read_options(__doc__, "backbone", 6000)
    torch.manual_seed(0)
    words = json.loads((arguments.pool / "words.json").read_text())
    run = Run(arguments.folder, build_backbone(), 2e-3)
    run.train(
        lambda rng, generator: compute_losses(run.model, *read_batch(rng, arguments.pool, words)),
        arguments.steps,
        arguments.minutes,
    )


if __name__ == "__main__":
    main()
