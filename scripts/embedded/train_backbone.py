"""Train the backbone of the embedded model: a small ResNet that names material and defect of the drawn
parts.

python scripts/embedded/train_backbone.py --folder runs/embedded/backbone
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from loop import Run
from transformers import ResNetConfig, ResNetForImageClassification

from defaug_utils.world_defects import DEFECTS
from defaug_utils.world_materials import MATERIALS

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the classifier's input
LABELS = [*DEFECTS, *MATERIALS]
BATCH = 12


def build_backbone() -> ResNetForImageClassification:
    """The architecture, with random weights."""
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        problem_type="multi_label_classification",
    )
    return ResNetForImageClassification(config).to(memory_format=torch.channels_last)


def normalize(images_u8: np.ndarray) -> torch.Tensor:
    """Images of shape (batch, height, width, 3) as the network's input."""
    pixels = (images_u8.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def read_labels(words: dict[str, str], is_clean: bool) -> np.ndarray:
    """Ones for the material, and for the defect where there is one."""
    present = {words["material"]} | (set() if is_clean else {words["defect"]})
    return np.array([label in present for label in LABELS], np.float32)


def read_batch(
    rng: np.random.Generator, pool: Path, words: list[dict[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Parts, two of three with their defect, mirrored at random."""
    arrays = {name: np.load(pool / f"{name}.npy", mmap_mode="r") for name in ("image", "clean")}
    images, labels = [], []
    for index in rng.integers(0, len(words), BATCH):
        is_clean = bool(rng.random() < 1 / 3)
        flip = (slice(None, None, int(rng.choice([-1, 1]))), slice(None, None, int(rng.choice([-1, 1]))))
        images.append(arrays["clean" if is_clean else "image"][index][flip])
        labels.append(read_labels(words[index], is_clean))
    return normalize(np.stack(images)), torch.from_numpy(np.stack(labels))


def compute_losses(model: ResNetForImageClassification, pixels: torch.Tensor, labels: torch.Tensor):
    """Binary cross-entropy of all labels, and how often the strongest material is the right one."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pixels).logits.float()
    loss = functional.binary_cross_entropy_with_logits(logits, labels) * len(LABELS)
    split = len(DEFECTS)
    right = (logits[:, split:].argmax(1) == labels[:, split:].argmax(1)).float().mean()
    return {"loss": loss, "material_right": right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, default=Path("runs/embedded/pool"))
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded/backbone"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=1e6)
    arguments = parser.parse_args()
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
