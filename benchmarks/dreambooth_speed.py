"""Training steps per second and peak memory of DreamBooth with LoRA, compared with a plain implementation.

    python benchmarks/dreambooth_speed.py
    python benchmarks/dreambooth_speed.py --model tiny --size 32 --batch 2 --steps 2 --warmup 1 --no-compile

It is meant for a GPU; the second line is only a trial on a CPU, with CPU time. The model has Stable Diffusion
1.5's architecture and random weights, since time and memory do not depend on them. Both train the same
adapter (LoRA-C3Lier on U-Net and text encoder) with AdamW on the same images.

The plain implementation encodes the images again at every step, computes attention as the product of two
matrices, trains in mixed float16 (float32 on a CPU), and is not compiled. Ours is `train_dreambooth`: latents
are computed once, attention is fused, in bfloat16, with a compiled U-Net. The first steps of each are not
measured.
"""

import argparse
import gc
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from adabldm_speed import SIZES, make_model
from diffusers.models.attention_processor import AttnProcessor
from torch.nn.functional import mse_loss

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import make_manifest
from defaug_utils.diffusion.autoencoder import to_floats
from defaug_utils.diffusion.dreambooth import train_dreambooth
from defaug_utils.diffusion.dreambooth_plan import DreamBoothSettings
from defaug_utils.diffusion.lora import LoraPlan, attach_lora, lora_parameters
from defaug_utils.diffusion.text2image import TextToImage, embed_tokens, make_ddim, tokenise_prompts
from defaug_utils.diffusion.training_images import BucketSettings, read_training_images

PROMPT, CLASS_PROMPT = "skt background", "background"


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="sd15")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=512, help="side of the images")
    parser.add_argument("--batch", type=int, default=12, help="images per step")
    parser.add_argument("--steps", type=int, default=30, help="measured steps")
    parser.add_argument("--warmup", type=int, default=5, help="warm-up steps")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in ours")
    return parser.parse_args()


class Clock:
    """Time and peak memory of the steps after the first ones."""

    def __init__(self, device: str, warmup: int) -> None:
        self.device, self.warmup, self.start, self.steps = device, warmup, 0.0, 0

    def now(self) -> float:
        """CPU seconds, or wall seconds after the GPU has finished."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def tick(self) -> None:
        """A step is finished."""
        self.steps += 1
        if self.steps == self.warmup:
            if self.device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            self.start = self.now()

    def read(self) -> tuple[float, float]:
        """Steps per second, and peak memory in GiB (on a CPU, of the whole process so far)."""
        speed = (self.steps - self.warmup) / (self.now() - self.start)
        if self.device == "cpu":
            return speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return speed, torch.cuda.max_memory_allocated() / 2**30


def load(given: argparse.Namespace) -> TextToImage:
    """The same model each time."""
    model = make_model(given.model, given.device).model
    model.description = {"fingerprint": f"random weights of {given.model}"}
    return model


def write_pictures(folder: Path, given: argparse.Namespace) -> list[str]:
    """Noise, as many images as a step shows."""
    names, generator = [f"{number}.png" for number in range(given.batch)], np.random.default_rng(0)
    for name in names:
        write_png(folder / name, generator.integers(0, 256, (given.size, given.size, 3), dtype=np.uint8))
    return names


def train_plainly(model: TextToImage, paths: list[Path], given: argparse.Namespace, tick: Callable) -> None:
    """The usual loop."""
    pipeline, is_half = model.pipeline, given.device != "cpu"
    attach_lora(pipeline.unet, pipeline.text_encoder, LoraPlan())
    pipeline.unet.set_attn_processor(AttnProcessor())
    parameters = [*lora_parameters(pipeline.unet).values(), *lora_parameters(pipeline.text_encoder).values()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5)
    scaler = torch.amp.GradScaler(given.device, enabled=is_half)
    schedule = make_ddim(model)
    tokens = tokenise_prompts(model, [PROMPT] * given.batch).to(given.device)
    for _ in range(given.warmup + given.steps):
        pixels = to_floats([read_image(path) for path in paths]).to(given.device)
        with torch.autocast(given.device, torch.float16, enabled=is_half):
            with torch.no_grad():
                drawn = pipeline.vae.encode(pixels).latent_dist.sample()
            latents = drawn.float() * pipeline.vae.config.scaling_factor
            noise = torch.randn_like(latents)
            times = torch.randint(len(schedule.alphas_cumprod), (given.batch,), device=given.device)
            texts = embed_tokens(pipeline.text_encoder, tokens, model.clip_skip)
            predicted = pipeline.unet(schedule.add_noise(latents, noise, times), times, texts).sample
            loss = mse_loss(predicted.float(), noise)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        tick()


def train_ours(model: TextToImage, names: list[str], folder: Path, given: argparse.Namespace, tick: Callable):
    """The package's own path."""
    rows = make_manifest(
        {"image": name, "label": "negative", "split": "train", "origin": "real"} for name in names
    )
    buckets = BucketSettings(given.size**2, given.size, given.size, given.size)
    images = read_training_images(rows, rows, folder, buckets)
    settings = DreamBoothSettings(
        instance_prompt=PROMPT,
        class_prompt=CLASS_PROMPT,
        epochs=given.warmup + given.steps,
        repeats=1,
        batch_size=given.batch,
        prior_weight=0.0,
        optimiser="adamw",
        precision="bf16",
        gradient_checkpointing=given.checkpointing,
        save_every=10**6,
        buckets=buckets,
    )
    if given.compile:
        model.pipeline.unet.compile()
    train_dreambooth(model, images, folder / "lora", settings, LoraPlan(), on_step=lambda *_: tick())


def main() -> None:
    """Measure both ways and print them."""
    given, found = read_options(), {}
    if min(given.steps, given.warmup, given.batch) < 1:
        raise SystemExit("--steps, --warmup and --batch must be 1 or more")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = write_pictures(folder, given)
        clock = Clock(given.device, given.warmup)
        train_plainly(load(given), [folder / name for name in names], given, clock.tick)
        found["plain recipe"] = clock.read()
        gc.collect()
        clock = Clock(given.device, given.warmup)
        train_ours(load(given), names, folder, given, clock.tick)
        found["defaug_utils"] = clock.read()
    print(f"{given.model}, {given.size} × {given.size}, {given.batch} images per step, {given.device}")
    for name, (speed, memory) in found.items():
        print(f"{name}: {speed:.3f} steps/s, {speed * given.batch:.2f} images/s, peak {memory:.1f} GiB")
    plain, own = (speed for speed, _ in found.values())
    print(f"ratio {own / plain:.2f}")


if __name__ == "__main__":
    main()
