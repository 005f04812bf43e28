"""Make models/workshop from scratch: draw, train, assemble, measure, log. It can be interrupted any time.

    python scripts/embedded/make_model.py            # several hours on two CPU cores
    python scripts/embedded/make_model.py --scale 4  # four times as many steps
    python scripts/embedded/make_model.py --scale 0.005 --parts 60 --latents 48 --images 8  # a trial, minutes

Every stage resumes from its checkpoint: a finished stage takes seconds, and a larger scale continues
training.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = "runs/embedded"


def list_stages(scale: float, parts: int, latents: int, images: int) -> list[list[str]]:
    """Scripts and arguments, in order."""

    def steps(count: int) -> list[str]:
        return ["--steps", str(max(2, int(scale * count)))]

    def first_steps(count: int) -> list[str]:
        """Steps of parts that all others depend on; they don't change when a larger scale continues."""
        return ["--steps", str(max(2, int(min(1, scale) * count)))]

    return [
        ["draw_pool.py", "--folder", f"{ROOT}/pool", "--count", str(parts)],
        [
            "draw_pool.py",
            "--folder",
            f"{ROOT}/validation",
            "--count",
            str(min(400, parts)),
            "--first-seed",
            "1000000000",
        ],
        ["build_tokenizer.py"],
        ["train_text.py", *first_steps(418)],
        ["train_autoencoder.py", *first_steps(849)],
        ["cache_latents.py", "--count", str(latents)],
        ["train_autoencoder.py", "--decoder-only", *steps(2000)],
        ["train_unet.py", "--task", "inpainting", *steps(5569)],
        ["train_unet.py", "--task", "text2image", *steps(5000)],
        ["train_unet.py", "--task", "inpainting", *steps(12482)],
        ["train_backbone.py", *steps(6000)],
        ["train_segmenter.py", *steps(12000)],
        ["assemble.py"],
        ["measure.py", "--images", str(images)],
        ["draw_log.py"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--parts", type=int, default=10000, help="parts drawn for training")
    parser.add_argument("--latents", type=int, default=5000, help="parts whose latents the U-Nets see")
    parser.add_argument("--images", type=int, default=200, help="images to measure on, 8 or more")
    arguments = parser.parse_args()
    stages = list_stages(arguments.scale, arguments.parts, arguments.latents, arguments.images)
    for script, *options in stages:
        print(script, *options, flush=True)
        subprocess.run([sys.executable, str(HERE / script), *options], check=True)  # noqa: S603


if __name__ == "__main__":
    main()
