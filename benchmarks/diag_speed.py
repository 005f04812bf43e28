"""DIAG at real size: the package's path against the plain recipe, on models of full architecture.

    python benchmarks/diag_speed.py --model sdxl --batch 8 --compile
    python benchmarks/diag_speed.py --model sd15 --size 128 128 --steps 2 --count 2 --batch 2 --dtype bfloat16

The models are Stable Diffusion 1.5 inpainting and Stable Diffusion XL inpainting (0.1) with every layer of
the published ones and random weights, so that nothing is downloaded; their pictures are noise, their time
and memory are not. Their numbers of weights are checked against the published ones first.

The baseline, in the same run: one call of the pipeline an image, with texts and pictures as its page shows
it, in float16 (float32 on a processor), without compilation. Then the package's own path (`inpaint_batch`)
with the options given. Printed are images a second, peak memory and, on a GPU, the share of the card's
bfloat16 peak, measured by large matrix products in the same run: arithmetic of U-Net and autoencoder (counted
without running them) over time. On a GPU time is wall time, after a first round of either that does not
count; on a processor CPU time counts, so that other work on the machine does not.
"""

import argparse
import resource
import time
from collections.abc import Callable

import diffusers
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from defaug_utils.data.surfaces import draw_surface
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, inpaint_batch, speed_up
from defaug_utils.diffusion.jobs import InpaintJob
from defaug_utils.masks.sources import open_masks
from defaug_utils.methods.diag import NEGATIVE_PROMPT, OUTPUT_SIZE, PROMPTS

VOCABULARY_SIZE, MAX_TOKENS = 49408, 77
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
MODELS = {  # the published config.json files, where they differ from diffusers' defaults
    "sd15": {
        "size": (512, 512),
        "unet": {"in_channels": 9, "sample_size": 64, "cross_attention_dim": 768},
        "vae": {"sample_size": 512, "scaling_factor": 0.18215},
        "texts": (CLIP_L,),
        "weights": {"unet": 859_535_364, "vae": 83_653_863, "text_encoder": 123_060_480},
    },
    "sdxl": {
        "size": (1024, 1024),
        "unet": {
            "in_channels": 9,
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "texts": (CLIP_L, CLIP_BIG_G),
        "weights": {
            "unet": 2_567_478_084,
            "vae": 83_653_863,
            "text_encoder": 123_060_480,
            "text_encoder_2": 694_659_840,
        },
    },
}


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", help="of the package's path")
    parser.add_argument("--baseline-dtype", default="", help="float16 on a GPU, else float32, when empty")
    parser.add_argument("--size", type=int, nargs=2, default=None, help="working width and height")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--count", type=int, default=16, help="images of the package's path")
    parser.add_argument("--baseline-count", type=int, default=2, help="images of the baseline")
    parser.add_argument("--batch", type=int, default=8, help="images painted at once")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--slice-vae", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peak", type=float, default=0, help="the card's bfloat16 TFLOP/s, 0: measure")
    return parser.parse_args()


def make_tokenizer() -> CLIPTokenizer:
    """One token a letter, and as many unused ones as make the published size."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"unused{number}" for number in range(VOCABULARY_SIZE - 2 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_TOKENS)


def make_text_encoder(place: int, values: dict) -> torch.nn.Module:
    """The first text encoder is CLIP's, the second one has a projection."""
    tokens = {"bos_token_id": VOCABULARY_SIZE - 2, "eos_token_id": VOCABULARY_SIZE - 1}
    config = CLIPTextConfig(
        vocab_size=VOCABULARY_SIZE, max_position_embeddings=MAX_TOKENS, **tokens, **values
    )
    return (CLIPTextModelWithProjection if place else CLIPTextModel)(config)


def make_networks(name: str) -> dict[str, torch.nn.Module]:
    """All networks of a model without memory for their weights.

    Raises:
        SystemExit: a network has another number of weights than the published one.
    """
    values = MODELS[name]
    with torch.device("meta"):
        networks = {
            "unet": diffusers.UNet2DConditionModel(**values["unet"]),
            "vae": diffusers.AutoencoderKL(**VAE, **values["vae"]),
        }
        for place, text in enumerate(values["texts"]):
            networks[f"text_encoder{'_2' * place}"] = make_text_encoder(place, text)
    counts = {part: sum(weight.numel() for weight in net.parameters()) for part, net in networks.items()}
    if counts != values["weights"]:
        raise SystemExit(f"{name} is not of the published size: {counts}, expected {values['weights']}")
    return networks


def count_operations(name: str, size: tuple[int, int], steps: int) -> float:
    """Arithmetic of one image: two U-Net calls a step (guidance), two encodings and a decoding."""
    networks = make_networks(name)
    texts, rows, columns = MODELS[name]["texts"], size[1] // 8, size[0] // 8
    width = sum(text["hidden_size"] for text in texts)
    with torch.device("meta"):
        latents, prompt = torch.empty(1, 9, rows, columns), torch.empty(1, MAX_TOKENS, width)
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        step, pixels = torch.empty(1, dtype=torch.long), torch.empty(1, 3, size[1], size[0])
    counters = [FlopCounterMode(display=False) for _ in range(3)]
    with counters[0]:
        networks["unet"](latents, step, prompt, added_cond_kwargs=added if len(texts) == 2 else None)
    with counters[1]:
        networks["vae"].encode(pixels)
    with counters[2]:
        networks["vae"].decode(latents[:, :4])
    unet, encode, decode = (counter.get_total_flops() for counter in counters)
    return 2 * steps * unet + 2 * encode + decode


@torch.no_grad()
def fill(network: torch.nn.Module, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """Give a network memory and small random weights."""
    network = network.to(dtype).to_empty(device=device).eval()
    for key, weight in network.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=0.02)
        else:
            weight.fill_(float(key.endswith("weight")))  # norms start as in training
    for key, buffer in network.named_buffers():
        if not key.endswith("position_ids"):
            raise SystemExit(f"unknown buffer {key}: it would hold whatever the memory held")
        buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))
    return network


def build_pipeline(name: str, device: str, dtype: torch.dtype) -> diffusers.DiffusionPipeline:
    """The inpainting pipeline of a model with random weights."""
    torch.manual_seed(0)
    parts = {part: fill(network, device, dtype) for part, network in make_networks(name).items()}
    parts["tokenizer"] = make_tokenizer()
    if name == "sdxl":
        scheduler = diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
        tokenizer = make_tokenizer()
        return diffusers.StableDiffusionXLInpaintPipeline(
            **parts, tokenizer_2=tokenizer, scheduler=scheduler, add_watermarker=False
        )
    scheduler = diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False)
    return diffusers.StableDiffusionInpaintPipeline(
        **parts,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_jobs(count: int) -> list[InpaintJob]:
    """Drawn surfaces of DIAG's size with procedural masks, the paper's prompts in turn."""
    masks = open_masks("procedural")
    jobs = []
    for seed in range(count):
        image_u8 = np.asarray(Image.fromarray(draw_surface(seed, None).image_u8).resize(OUTPUT_SIZE))
        mask = masks.draw(seed, OUTPUT_SIZE).mask
        jobs.append(InpaintJob(image_u8, mask, PROMPTS[seed % len(PROMPTS)], NEGATIVE_PROMPT, seed))
    return jobs


def paint_plainly(pipeline: diffusers.DiffusionPipeline, job: InpaintJob, settings: InpaintSettings) -> None:
    """One call an image, texts and pictures given as they are: the recipe of the model's page."""
    pipeline(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        image=Image.fromarray(job.image_u8).resize(settings.size),
        mask_image=Image.fromarray(job.mask).resize(settings.size),
        width=settings.size[0],
        height=settings.size[1],
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        strength=settings.strength,
        padding_mask_crop=settings.padding_mask_crop,
        generator=torch.Generator("cpu").manual_seed(job.seed),
    )


def measure(paint: Callable[[], object], count: int, device: str) -> tuple[float, float]:
    """Images a second and peak memory in GiB; on a GPU after a round that does not count."""
    if device == "cpu":
        start = time.process_time()
        paint()
        return count / (time.process_time() - start), resource.getrusage(
            resource.RUSAGE_SELF
        ).ru_maxrss / 2**20
    paint()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    paint()
    torch.cuda.synchronize()
    return count / (time.perf_counter() - start), torch.cuda.max_memory_allocated() / 2**30


def measure_peak() -> float:
    """TFLOP/s of bfloat16 products of 8192 × 8192 matrices."""
    side, rounds = 8192, 50
    first, second = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        first @ second
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        first @ second
    torch.cuda.synchronize()
    return 2 * side**3 * rounds / (time.perf_counter() - start) / 1e12


def main() -> None:
    """Measure both ways on one model and print them."""
    given = read_options()
    is_cpu = given.device == "cpu"
    settings = InpaintSettings(tuple(given.size or MODELS[given.model]["size"]), given.steps)
    dtypes = [given.baseline_dtype or ("float32" if is_cpu else "float16"), given.dtype]
    operations = count_operations(given.model, settings.size, settings.effective_steps)
    print(
        f"{given.model}: {sum(MODELS[given.model]['weights'].values()) / 1e9:.2f} billion weights, "
        f"{settings.size[0]} × {settings.size[1]}, {settings.effective_steps} of {settings.steps} steps, "
        f"{operations / 1e12:.1f} TFLOP an image",
        flush=True,
    )
    pipeline = build_pipeline(given.model, given.device, getattr(torch, dtypes[0]))
    pipeline.set_progress_bar_config(disable=True)
    jobs = make_jobs(max(given.count, given.baseline_count))
    found = {}

    def paint_baseline() -> None:
        for job in jobs[: given.baseline_count]:
            paint_plainly(pipeline, job, settings)

    title = f"plain recipe, one at a time, {dtypes[0]}"
    found[title] = measure(paint_baseline, given.baseline_count, given.device)
    inpainter = Inpainter(pipeline.to(getattr(torch, dtypes[1])), given.model, given.device)
    speed_up(inpainter, given.channels_last, given.compile, given.slice_vae)
    title = f"defaug_utils, {given.batch} at once, {dtypes[1]}, {', '.join(inpainter.speed)}"
    found[title] = measure(lambda: paint_all(inpainter, jobs, settings, given), given.count, given.device)
    peak = 0 if is_cpu else given.peak or measure_peak()
    for name, (speed, memory) in found.items():
        share = f", {operations * speed / 1e12 / peak:.1%} of {peak:.0f} TFLOP/s" if peak else ""
        print(f"{name}: {speed:.4f} images/s, peak {memory:.1f} GiB{share}")
    plain, own = (speed for speed, _ in found.values())
    print(f"ratio {own / plain:.2f}; batch limit met: {inpainter.batch_limit or 'none'}")


def paint_all(
    inpainter: Inpainter, jobs: list[InpaintJob], settings: InpaintSettings, given: argparse.Namespace
) -> None:
    """The package's own path, in batches."""
    for start in range(0, given.count, given.batch):
        inpaint_batch(inpainter, jobs[start : min(start + given.batch, given.count)], settings)


if __name__ == "__main__":
    main()
