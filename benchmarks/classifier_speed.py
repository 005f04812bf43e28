"""Images per second in training: all images in memory, compared with a loader that decodes each image.

Both train the workshop's network on the same PNG files with the same batch size. On a CPU we measure CPU
time, so that other work on the machine doesn't matter; on a GPU, wall time. Run from the project's root:

    python benchmarks/classifier_speed.py
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import make_manifest
from defaug_utils.data.samples import Samples, load_samples
from defaug_utils.data.surfaces import draw_surface
from defaug_utils.evaluation.classifier import train_classifier
from defaug_utils.evaluation.recipes import choose_recipe, make_optimiser
from defaug_utils.training.backbones import build_classifier, normalise_images
from defaug_utils.training.memory import pick_device

EPOCHS = 3
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


class ImageFiles(Dataset):
    """What most training scripts do: open, decode and normalise one image at a time."""

    def __init__(self, folder: Path, samples: Samples):
        train = samples.indices("train")
        self.paths = [folder / path for path in samples.table["image"].iloc[train]]
        self.labels = samples.labels[train]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image_u8 = torch.from_numpy(read_image(self.paths[index]).copy())
        return normalise_images(image_u8[None])[0].contiguous(), self.labels[index]


def write_images(folder: Path, count: int) -> pd.DataFrame:
    """Draw a training set, every tenth image positive, with the minimum for val and test."""
    rows = []
    for index in range(count + 3):
        split = "train" if index < count else ("val", "test", "test")[index - count]
        is_positive = index % 10 == 0 if split == "train" else index == count + 2
        write_png(folder / f"{index}.png", draw_surface(index, "scratch" if is_positive else None).image_u8)
        label = "positive" if is_positive else "negative"
        rows.append({"image": f"{index}.png", "label": label, "split": split, "origin": "real"})
    return make_manifest(rows)


def time_plain_loop(folder: Path, samples: Samples, batch_size: int) -> float:
    """Seconds for the epochs, with a DataLoader in the same process and PyTorch's default memory layout."""
    device = pick_device()
    model = build_classifier("resnet10_quarter").to(device).train()
    optimiser = make_optimiser(model, choose_recipe("diag"))
    loader = DataLoader(ImageFiles(folder, samples), batch_size, shuffle=True)
    start = clock()
    for _ in range(EPOCHS):
        for images, labels in loader:
            loss = binary_cross_entropy_with_logits(model(images.to(device)).logits[:, 0], labels.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return clock() - start


def main() -> None:
    """Measure both on the same files and print images per second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, given.count)
        samples = load_samples(write_images(folder, given.count), folder)
        recipe = replace(choose_recipe("diag"), epochs=EPOCHS, batch_size=given.batch_size)
        seconds = {"plain loader": time_plain_loop(folder, samples, given.batch_size)}
        start = clock()
        samples = load_samples(samples.table, folder)  # decoding is part of the cost
        train_classifier(samples, folder / "run", recipe, "resnet10_quarter")
        seconds["in memory"] = clock() - start
    for title, value in seconds.items():
        print(f"{title}: {EPOCHS * given.count / value:.0f} images/s")
    print(f"ratio {seconds['plain loader'] / seconds['in memory']:.2f}")


if __name__ == "__main__":
    main()
