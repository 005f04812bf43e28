"""Seconds per image for AdaBLDM: sampling and decoder adaptation, compared with a plain implementation.

Run `python benchmarks/adabldm_speed.py` from the repository's root, on a GPU; options: `--help`. On a
CPU: `python benchmarks/adabldm_speed.py --model tiny --size 32 --steps 4 --adaptation-steps 3`.

The plain implementation makes one image at a time in float32, runs the ControlNet for each prompt, and adapts
the whole decoder. Ours blends a batch, runs the ControlNet once for both prompts, and uses bfloat16 (the
adapted weights stay float32); the faster options of the adaptation are listed in further lines. The weights
are random, with Stable Diffusion 1.5's size, since time does not depend on them. Images from the same seeds
are compared, with float32 first, to show that the speed does not come from a different result.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from defaug_utils.diffusion.autoencoder import AdaptationSettings, adapt_decoder, to_floats
from defaug_utils.diffusion.controlnet import (
    TrimapModel,
    make_controlnet,
    to_conditioning,
)
from defaug_utils.diffusion.text2image import TextToImage, embed_prompts, make_ddim
from defaug_utils.masks.trimaps import make_trimap
from defaug_utils.methods.blending import (
    IMAGE_EDITING,
    LATENT_EDITING,
    STEPS,
    Blend,
    BlendSettings,
    blend_latents,
    decode_adapted,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz,"
PROMPT = "a hazelnut with a hole"
SIZES = {
    "sd15": {
        "width": 768,
        "text": {"num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32},
        "unet": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8},
    },
    "tiny": {
        "width": 16,
        "text": {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "vae": {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        "unet": {"block_out_channels": (8, 16, 16, 16), "attention_head_dim": 2, "norm_num_groups": 4},
    },
}


def make_model(name: str, device: str) -> TrimapModel:
    """A text-to-image model with random weights, and its ControlNet."""
    torch.manual_seed(0)
    size, words = SIZES[name], [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
    )
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text = CLIPTextConfig(vocab_size=len(words), hidden_size=size["width"], **ends, **size["text"])
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            **size["vae"],
        ),
        unet=UNet2DConditionModel(cross_attention_dim=size["width"], **size["unet"]),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(device)
    model = TextToImage(pipeline, f"random weights of {name}", device, clip_skip=1)
    return TrimapModel(model, make_controlnet(model))


def to_half(trimap_model: TrimapModel) -> TrimapModel:
    """A copy in bfloat16."""
    model = copy.copy(trimap_model.model)
    parts = {
        name: copy.deepcopy(part).to(torch.bfloat16) if isinstance(part, torch.nn.Module) else part
        for name, part in model.pipeline.components.items()
    }
    model.pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    return TrimapModel(model, copy.deepcopy(trimap_model.controlnet).to(torch.bfloat16))


def make_plain_denoiser(
    trimap_model: TrimapModel, trimap_u8: np.ndarray, guidance: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """The usual way: latents are doubled, and the ControlNet runs on both halves."""
    model, controlnet = trimap_model.model, trimap_model.controlnet
    conditioning = to_conditioning([trimap_u8, trimap_u8]).to(model.device)
    empty, texts = embed_prompts(model, ["", ""]), embed_prompts(model, ["", PROMPT])

    def denoise(latents: Tensor, time: Tensor) -> Tensor:
        doubled = torch.cat([latents, latents])
        down, middle = controlnet(doubled, time, empty, conditioning, return_dict=False)
        first, second = model.pipeline.unet(
            doubled,
            time,
            texts,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample.chunk(2)
        return first + guidance * (second - first)

    return denoise


class Parts:
    """Good images, masks and trimaps of the benchmark: noise, and a square defect."""

    def __init__(self, count: int, side: int, device: str) -> None:
        """Draw them."""
        images_u8 = np.random.default_rng(0).integers(0, 255, (count, side, side, 3), dtype=np.uint8)
        mask = np.zeros((side, side), bool)
        mask[side // 4 : side // 2, side // 4 : side // 2] = True
        self.images = to_floats(list(images_u8)).to(device)
        self.masks = torch.from_numpy(mask)[None, None].repeat(count, 1, 1, 1).to(device)
        self.trimap_u8 = make_trimap(mask, np.ones_like(mask))
        self.count, self.device = count, device


def run_plain(
    trimap_model: TrimapModel, parts: Parts, settings: BlendSettings, steps: int
) -> tuple[list[np.ndarray], list[float]]:
    """One image after the other, float32; the images, and seconds of sampling and adaptation in all."""
    pixels, seconds = [], [0.0, 0.0]
    vae = trimap_model.model.pipeline.vae
    for number in range(parts.count):
        one = slice(number, number + 1)
        start = read_clock(parts.device)
        denoise = make_plain_denoiser(trimap_model, parts.trimap_u8, settings.guidance)
        latents = blend_latents(
            parts.images[one],
            parts.masks[one],
            [number],
            denoise,
            vae,
            make_ddim(trimap_model.model),
            settings,
        )
        middle = read_clock(parts.device)
        adaptation = AdaptationSettings(steps=steps)
        adapted = adapt_decoder(vae, latents, parts.images[one], parts.masks[one], adaptation)
        pixels.append(adapted.image[0].permute(1, 2, 0).cpu().numpy() / 2 + 0.5)
        end = read_clock(parts.device)
        seconds = [seconds[0] + middle - start, seconds[1] + end - middle]
    return pixels, seconds


def run_ours(
    trimap_model: TrimapModel, parts: Parts, settings: BlendSettings, adaptation: AdaptationSettings
) -> tuple[list[np.ndarray], list[float]]:
    """The package's way: all images blended at once; as `run_plain`."""
    model, start = trimap_model.model, read_clock(parts.device)
    denoise = trimap_model.make_denoiser(
        [parts.trimap_u8] * parts.count,
        [PROMPT] * parts.count,
        [""] * parts.count,
        settings.guidance,
    )
    seeds, vae = list(range(parts.count)), model.pipeline.vae
    latents = blend_latents(parts.images, parts.masks, seeds, denoise, vae, make_ddim(model), settings)
    middle = read_clock(parts.device)
    decoded = decode_adapted(vae, Blend([], parts.images, parts.masks, latents), adaptation)
    return [pixels for pixels, _ in decoded], [middle - start, read_clock(parts.device) - middle]


def read_clock(device: str) -> float:
    """Seconds, after all work of the device is finished."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    run: Callable[[], tuple[list, list[float]]], repeats: int, count: int
) -> tuple[list, list[float]]:
    """The images, and the median seconds per image of sampling and of adaptation."""
    results = [run() for _ in range(repeats)]
    seconds = [statistics.median(times[part] for _, times in results) / count for part in (0, 1)]
    return results[0][0], seconds


def scale_stages(steps: int) -> dict[str, tuple[int, int]]:
    """AdaBLDM's stages for another number of steps; each has at least one."""
    borders = {}
    for name, paper in (("latent_editing", LATENT_EDITING), ("image_editing", IMAGE_EDITING)):
        first, end = (round(border * steps / STEPS) for border in paper)
        end = max(end, 1)
        borders[name] = (min(first, end - 1), end)
    return borders


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="sd15", help="size of the model")
    parser.add_argument("--size", type=int, default=256, help="width and height, pixels")
    parser.add_argument("--images", type=int, default=8, help="number of images, blended at once in ours")
    parser.add_argument("--steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--adaptation-steps", type=int, default=200, help="steps of the decoder's adaptation")
    parser.add_argument("--repeats", type=int, default=2, help="of every measurement; reports the median")
    options = parser.parse_args()
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = BlendSettings((options.size, options.size), options.steps, **scale_stages(options.steps))
    parts, full = Parts(options.images, options.size, device), make_model(options.model, device)
    half = to_half(full)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{full.model.model}, {options.images} images of {options.size} × {options.size}, {where}")
    print(f"{options.steps} steps + {options.adaptation_steps} steps of adaptation; seconds per image")
    print(f"{'':44}sampling  adaptation     all   times faster   mean difference")
    warm = Parts(1, options.size, device)
    run_plain(full, warm, settings, 2)
    run_ours(half, parts, settings, AdaptationSettings(steps=2, precision="bfloat16"))

    def plain() -> tuple[list, list[float]]:
        return run_plain(full, parts, settings, options.adaptation_steps)

    reference, plain_seconds = measure(plain, options.repeats, options.images)
    print_line("plain: float32, one at a time", plain_seconds, plain_seconds, 0.0)
    for name, model, arguments in (
        ("ours, float32", full, {}),
        ("ours, bfloat16", half, {"precision": "bfloat16"}),
        ("ours, bfloat16, last block adapts", half, {"precision": "bfloat16", "parameters": "last_block"}),
        ("ours, bfloat16, last layer adapts", half, {"precision": "bfloat16", "parameters": "last_layer"}),
    ):
        adaptation = AdaptationSettings(steps=options.adaptation_steps, **arguments)

        def ours(model=model, adaptation=adaptation) -> tuple[list, list[float]]:
            return run_ours(model, parts, settings, adaptation)

        pixels, seconds = measure(ours, options.repeats, options.images)
        difference = float(np.mean([np.abs(a - b).mean() for a, b in zip(pixels, reference, strict=True)]))
        print_line(name, seconds, plain_seconds, difference)


def print_line(name: str, seconds: list[float], plain: list[float], difference: float) -> None:
    """One row of the table."""
    total = sum(seconds)
    print(
        f"{name:44}{seconds[0]:8.3f} {seconds[1]:11.3f} {total:7.3f} {sum(plain) / total:14.2f} "
        f"{difference:17.4f}"
    )


if __name__ == "__main__":
    main()
