"""Make models/workshop from nothing: draw, train, assemble, measure, log. Interrupt it at will.

    python scripts/embedded/make_model.py            # some hours on two processor cores
    python scripts/embedded/make_model.py --scale 4  # four times as many steps

Every stage takes up its own checkpoint, so a finished stage costs seconds and a larger scale trains on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = "runs/embedded"


def list_stages(scale: float, parts: int, latents: int) -> list[list[str]]:
    """Scripts and arguments, in order."""

    def steps(count: int) -> list[str]:
        return ["--steps", str(int(scale * count))]

    return [
        ["draw_pool.py", "--folder", f"{ROOT}/pool", "--count", str(parts)],
        ["draw_pool.py", "--folder", f"{ROOT}/validation", "--count", "400", "--first-seed", "1000000000"],
        ["build_tokenizer.py"],
        ["train_text.py"],
        ["train_autoencoder.py", "--steps", "849"],
        ["cache_latents.py", "--count", str(latents)],
        ["train_autoencoder.py", "--decoder-only", *steps(2000)],
        ["train_unet.py", "--task", "inpainting", *steps(5569)],
        ["train_unet.py", "--task", "text2image", *steps(5000)],
        ["train_unet.py", "--task", "inpainting", *steps(12482)],
        ["train_backbone.py", *steps(6000)],
        ["train_segmenter.py", *steps(12000)],
        ["assemble.py"],
        ["measure.py"],
        ["draw_log.py"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--parts", type=int, default=10000, help="parts drawn for training")
    parser.add_argument("--latents", type=int, default=5000, help="parts whose latents the U-Nets see")
    arguments = parser.parse_args()
    for script, *options in list_stages(arguments.scale, arguments.parts, arguments.latents):
        print(script, *options, flush=True)
        subprocess.run([sys.executable, str(HERE / script), *options], check=True)  # noqa: S603


if __name__ == "__main__":
    main()
