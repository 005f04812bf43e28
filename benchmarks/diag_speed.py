"""DIAG at real size: the package compared with a plain implementation, on full-size models.

    python benchmarks/diag_speed.py --model sdxl --batch 8 --compile
    python benchmarks/diag_speed.py --model sd15 --size 128 128 --steps 2 --count 2 --batch 2 --dtype bfloat16

The models are Stable Diffusion 1.5 inpainting and Stable Diffusion XL inpainting (0.1) with all published
layers and random weights, so that nothing is downloaded. Their images are noise, but time and memory are
realistic. Their numbers of weights are first checked against the published ones.

The baseline calls the pipeline once per image, as on the model's page, in float16 (float32 on a CPU), without
compilation. Then the package's own path (`inpaint_batch`) runs with the given options. The output is images
per second, peak memory and, on a GPU, the share of the card's bfloat16 peak, measured by large matrix
products in the same run: arithmetic of U-Net and autoencoder (counted without running them) over time. On a
GPU we measure wall time after a warm-up round; on a CPU, CPU time, so that other work on the machine doesn't
matter.
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

from defaug_utils.data.surfaces import draw_surface
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, inpaint_batch, speed_up
from defaug_utils.diffusion.jobs import InpaintJob
from defaug_utils.diffusion.stand_ins import MAX_TOKENS, MODELS, build_pipeline, make_networks
from defaug_utils.masks.sources import open_masks
from defaug_utils.methods.diag import NEGATIVE_PROMPT, OUTPUT_SIZE, PROMPTS


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", help="precision of the package's path")
    parser.add_argument("--baseline-dtype", default="", help="empty: float16 on a GPU, else float32")
    parser.add_argument("--size", type=int, nargs=2, default=None, help="working width and height")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--count", type=int, default=16, help="images of the package's path")
    parser.add_argument("--baseline-count", type=int, default=2, help="images of the baseline")
    parser.add_argument("--batch", type=int, default=8, help="images painted at once")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--slice-vae", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peak", type=float, default=0, help="the card's bfloat16 TFLOP/s; 0 to measure it")
    return parser.parse_args()


def count_operations(name: str, size: tuple[int, int], steps: int) -> float:
    """Arithmetic of one image: two U-Net calls per step (guidance), two encodings and one decoding."""
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


def make_jobs(count: int) -> list[InpaintJob]:
    """Drawn surfaces of DIAG's size with procedural masks, and the paper's prompts in turn."""
    masks = open_masks("procedural")
    jobs = []
    for seed in range(count):
        image_u8 = np.asarray(Image.fromarray(draw_surface(seed, None).image_u8).resize(OUTPUT_SIZE))
        mask = masks.draw(seed, OUTPUT_SIZE).mask
        jobs.append(InpaintJob(image_u8, mask, PROMPTS[seed % len(PROMPTS)], NEGATIVE_PROMPT, seed))
    return jobs


def paint_plainly(pipeline: diffusers.DiffusionPipeline, job: InpaintJob, settings: InpaintSettings) -> None:
    """One call per image with plain arguments: the recipe on the model's page."""
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
    """Images per second and peak memory in GiB; on a GPU after a warm-up round."""
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
        f"{operations / 1e12:.1f} TFLOP per image",
        flush=True,
    )
    pipeline = build_pipeline(given.model, "inpainting", given.device, getattr(torch, dtypes[0]))
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
