"""Assemble the trained parts: models/workshop in diffusers' folder layout, float16 safetensors only.

    python scripts/embedded/assemble.py --root runs/embedded --folder models/workshop
    python scripts/embedded/assemble.py --trained-on

The second call replaces the parts that were trained further (`--start-from` of train_unet.py and
train_autoencoder.py) in an existing model: U-Nets with their noise schedule, and the decoder.

Writes text2image/ and inpainting/ (each can be loaded with its pipeline's `from_pretrained`) and backbone/.
"""

import argparse
import json
from pathlib import Path

import torch
from loop import load_average
from parts import Denoiser, build_pipeline, build_scheduler
from train_autoencoder import load_autoencoder
from train_backbone import build_backbone
from train_unet import load_latents
from transformers import CLIPTokenizer

from defaug_utils.core.files import write_json


def declare_float32(folder: Path) -> None:
    """Make transformers load the half-precision weights as float32, which every CPU supports."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    write_json(path, {**config, "dtype": "float32"})


def save_pipelines(root: Path, folder: Path) -> None:
    """Write a folder for each U-Net that is trained."""
    tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer")
    autoencoder = load_autoencoder(root / "autoencoder")
    factor = load_latents(root / "latents", root / "pool", autoencoder).factor
    if (root / "decoder" / "checkpoint.safetensors").exists():
        load_average(autoencoder, root / "decoder")
    autoencoder.register_to_config(scaling_factor=round(factor, 5))
    for name, channels in (("inpainting", 9), ("text2image", 4)):
        if (root / name / "checkpoint.safetensors").exists():
            denoiser = load_average(Denoiser(tokenizer, channels), root / name)
            pipeline = build_pipeline(autoencoder, denoiser, tokenizer)
            pipeline.to(dtype=torch.float16).save_pretrained(folder / name, safe_serialization=True)
            declare_float32(folder / name / "text_encoder")
            autoencoder.float()


def replace_trained(root: Path, folder: Path) -> None:
    """Replace the parts of a model that were trained further; all others stay unchanged."""
    for name, channels in (("inpainting", 9), ("text2image", 4)):
        tokenizer = CLIPTokenizer.from_pretrained(folder / name / "tokenizer")
        if (root / name / "checkpoint.safetensors").exists():
            denoiser = load_average(Denoiser(tokenizer, channels), root / name)
            denoiser.unet.to(dtype=torch.float16).save_pretrained(folder / name / "unet")
            build_scheduler(channels).save_pretrained(folder / name / "scheduler")
        if (root / "decoder" / "checkpoint.safetensors").exists():
            autoencoder = load_autoencoder(folder / name / "vae")
            load_average(autoencoder, root / "decoder")
            autoencoder.to(dtype=torch.float16, memory_format=torch.contiguous_format)
            autoencoder.save_pretrained(folder / name / "vae")


def save_backbone(root: Path, folder: Path) -> None:
    """Write the backbone."""
    model = load_average(build_backbone(), root / "backbone")
    model.to(dtype=torch.float16, memory_format=torch.contiguous_format).save_pretrained(folder / "backbone")
    declare_float32(folder / "backbone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--folder", type=Path, default=Path("models/workshop"))
    parser.add_argument("--trained-on", action="store_true", help="replace only parts trained further")
    arguments = parser.parse_args()
    (replace_trained if arguments.trained_on else save_pipelines)(arguments.root, arguments.folder)
    if (arguments.root / "backbone" / "checkpoint.safetensors").exists():
        save_backbone(arguments.root, arguments.folder)
    sizes = [path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file()]
    print(f"{arguments.folder}: {sum(sizes) / 1e6:.1f} MB in {len(sizes)} files")


if __name__ == "__main__":
    main()
