"""Train the judge of the embedded model: a small segmenter that finds and names the world's defects.

    python scripts/embedded/train_segmenter.py --folder runs/embedded/segmenter

It is trained only on procedural parts, half of them slightly blurred, and never on generated images. It is
used by measure.py and is not part of the model.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as functional
from loop import Run, choose_precision, read_options
from torch import nn
from world_defects import DEFECTS

CROP, BATCH = 128, 8
DEFECT_WEIGHT = 12.0


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Segmenter(nn.Module):
    """Logits of shape (batch, 1 + number of defect types, height / 2, width / 2); class 0 is no defect."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 96, 96)
        self.down = nn.ModuleList(_block(a, b, 2) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(widths[0], 1 + len(DEFECTS), 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        levels = []
        for block in self.down:
            pixels = block(pixels)
            levels.append(pixels)
        for block, level in zip(self.up, levels[-2::-1], strict=True):
            pixels = functional.interpolate(pixels, size=level.shape[2:], mode="bilinear")
            pixels = block(torch.cat([pixels, level], 1))
        return self.head(pixels)


def read_batch(
    rng: np.random.Generator, pool: Path, words: list[dict[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops, three of four with a defect, and the class of every second pixel."""
    arrays = {name: np.load(pool / f"{name}.npy", mmap_mode="r") for name in ("image", "clean", "mask")}
    names = list(DEFECTS)
    crops, targets = [], []
    for index in rng.integers(0, len(words), BATCH):
        is_clean = rng.random() < 0.25
        mask = arrays["mask"][index]
        row = int(rng.choice(np.nonzero(mask.any(1))[0]))
        top = int(np.clip(row - rng.integers(CROP), 0, mask.shape[0] - CROP))
        window = slice(top, top + CROP)
        crop = arrays["clean" if is_clean else "image"][index][window]
        blur = rng.uniform(0.3, 1.2)
        crops.append(cv2.GaussianBlur(crop, (0, 0), blur) if rng.random() < 0.5 else crop)
        target = mask[window].reshape(CROP // 2, 2, -1, 2).any((1, 3)) * (
            1 + names.index(words[index]["defect"])
        )
        targets.append(np.zeros_like(target) if is_clean else target)
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.stack(targets))


def compute_losses(model: Segmenter, pixels: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cross-entropy with more weight on defects."""
    with choose_precision():
        logits = model(pixels).float()
    weight = torch.ones(logits.shape[1])
    weight[1:] = DEFECT_WEIGHT
    right = (logits.argmax(1) == targets)[targets > 0].float().mean()
    return {"loss": functional.cross_entropy(logits, targets, weight), "right_in_mask": right.nan_to_num()}


def main() -> None:
    arguments = read_options(__doc__, "segmenter", 12000)
    torch.manual_seed(0)
    words = json.loads((arguments.pool / "words.json").read_text())
    run = Run(arguments.folder, Segmenter().to(memory_format=torch.channels_last), 2e-3)
    run.train(
        lambda rng, generator: compute_losses(run.model, *read_batch(rng, arguments.pool, words)),
        arguments.steps,
        arguments.minutes,
    )


if __name__ == "__main__":
    main()
