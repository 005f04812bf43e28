"""Train the workshop's backbone from scratch on small drawn objects, in place of ImageNet.

Images are procedural: textures (stripes, weave, marble, …) with letters, digits, stars, arrows and other
shapes on them, from clear to faint; the network predicts the objects and the texture. There are no metal
surfaces, scratches, cracks, pits or stains among them. The result is a file with torchvision's key names,
without the head.

    python scripts/pretrain_backbone.py models/resnet10_quarter.safetensors
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from defaug_utils.core.files import write_atomically
from defaug_utils.methods.textures import TEXTURE_KINDS, TEXTURE_SIDE, draw_procedural_texture
from defaug_utils.training.backbones import (
    BACKBONES,
    HEAD_KEYS,
    build_classifier,
    normalise_images,
    torchvision_key,
)

SIDE = 128  # pixels, width and height of a training image
VARIANTS = 24  # textures of each kind
SHARE_PRESENT = 0.18  # how often each object is in an image
STAR = [(np.cos(k * np.pi / 5) * (1, 0.4)[k % 2], np.sin(k * np.pi / 5) * (1, 0.4)[k % 2]) for k in range(10)]
FILLED = {
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "triangle": [(0, -1), (0.9, 0.6), (-0.9, 0.6)],
    "star": STAR,
}
STROKES = {
    "frame": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8), (-0.8, -0.8)]],
    "plus": [[(-1, 0), (1, 0)], [(0, -1), (0, 1)]],
    "cross": [[(-1, 0.5), (1, -0.5)], [(-1, -0.5), (1, 0.5)]],
    "arrow": [[(-1, 0), (1, 0)], [(0.3, -0.6), (1, 0), (0.3, 0.6)]],
    "zigzag": [[(-1, -0.5), (-0.5, 0.5), (0, -0.5), (0.5, 0.5), (1, -0.5)]],
}
OBJECTS = ("disc", "ring", "letter", "digit", *FILLED, *STROKES)
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)
SUBPIXEL_BITS = 4  # OpenCV takes coordinates in sixteenths of a pixel


def draw_object(generator: np.random.Generator, name: str) -> np.ndarray:
    """Draw an object with random position, size and angle: shape (SIDE, SIDE), float in [0, 1]."""
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    radius, thickness = generator.uniform(3, 16), int(generator.integers(1, 4))
    centre, angle = generator.uniform(radius, SIDE - radius, 2), generator.uniform(0, 2 * np.pi)

    def place(points: list[tuple[float, float]]) -> np.ndarray:
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return np.rint((radius * np.array(points) @ turn + centre) * 2**SUBPIXEL_BITS).astype(np.int32)

    if name in FILLED:
        cv2.fillPoly(canvas, [place(FILLED[name])], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    elif name in STROKES:
        lines = [place(points) for points in STROKES[name]]
        cv2.polylines(canvas, lines, False, 255, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
    elif name in ("disc", "ring"):
        middle, size = place([(0, 0)])[0].tolist(), int(0.8 * radius * 2**SUBPIXEL_BITS)
        cv2.circle(canvas, middle, size, 255, -1 if name == "disc" else thickness, cv2.LINE_AA, SUBPIXEL_BITS)
    else:
        characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if name == "letter" else "0123456789"
        corner = (int(centre[0] - radius / 2), int(centre[1] + radius / 2))
        font, character = FONTS[generator.integers(len(FONTS))], str(generator.choice(list(characters)))
        cv2.putText(canvas, character, corner, font, radius / 14, 255, 1 + (radius > 8), cv2.LINE_AA)
    return canvas / 255


def draw_ground(generator: np.random.Generator, texture_u8: np.ndarray) -> np.ndarray:
    """Crop a texture, rotate it, and change its contrast, brightness, colour and noise."""
    top, left = generator.integers(0, TEXTURE_SIDE - SIDE + 1, 2)
    ground = np.rot90(texture_u8[top : top + SIDE, left : left + SIDE], int(generator.integers(4)))
    colour = ground.mean((0, 1))
    tint = (colour - colour.mean()) * generator.uniform(0, 1)
    ground = (ground - colour) * generator.uniform(0.05, 0.8) + generator.uniform(70, 190) + tint
    return ground + generator.normal(0, generator.uniform(0, 8), (SIDE, SIDE, 1))


def draw_example(generator: np.random.Generator, textures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One image, shape (SIDE, SIDE, 3), uint8, and its labels: objects present, then the kind of texture."""
    kind = int(generator.integers(len(TEXTURE_KINDS)))
    image = draw_ground(generator, textures[kind * VARIANTS + int(generator.integers(VARIANTS))])
    present = generator.random(len(OBJECTS)) < SHARE_PRESENT
    for index in np.flatnonzero(present):
        change = generator.choice([-1, 1]) * generator.uniform(12, 90)
        image = image + change * draw_object(generator, OBJECTS[index])[..., None]
    labels = np.concatenate([present, np.arange(len(TEXTURE_KINDS)) == kind])
    return np.clip(image, 0, 255).astype(np.uint8), labels.astype(np.float32)


def save_backbone(model: torch.nn.Module, path: Path) -> None:
    """Write the weights under torchvision's names, without the head."""
    weights = {
        torchvision_key(key): value.contiguous()
        for key, value in model.state_dict().items()
        if key not in HEAD_KEYS
    }
    with write_atomically(path) as temporary:
        save_file(weights, temporary)


def pretrain(path: Path, backbone: str, steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Train and write the weights; prints the mean loss of every 200 steps."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    textures = [draw_procedural_texture(kind, v) for kind in TEXTURE_KINDS for v in range(VARIANTS)]
    model = build_classifier(backbone)
    model.classifier[1] = torch.nn.Linear(model.config.hidden_sizes[-1], len(OBJECTS) + len(TEXTURE_KINDS))
    model.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    losses, start = [], time.perf_counter()
    for step in range(1, steps + 1):
        images, labels = zip(*(draw_example(generator, textures) for _ in range(batch_size)), strict=True)
        logits = model(normalise_images(torch.from_numpy(np.stack(images)))).logits
        loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(np.stack(labels)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 200 == 0 or step == steps:
            seconds = time.perf_counter() - start
            print(f"step {step} of {steps}: loss {np.mean(losses[-200:]):.4f}, {seconds:.0f} s", flush=True)
    save_backbone(model, path)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the .safetensors file to write")
    parser.add_argument("--backbone", default="resnet10_quarter", choices=BACKBONES)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pretrain(given.path, given.backbone, given.steps, given.batch_size, given.learning_rate, given.seed)


if __name__ == "__main__":
    main()
