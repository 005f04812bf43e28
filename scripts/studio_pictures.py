"""The pictures of the studio in notebook 04, from the screenshots of its browser test.

python -m pytest tests/browser/test_painting.py -k draw_generate
python scripts/studio_pictures.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "tests" / "browser" / "screenshots"
STEPS = ("1-open", "2-drawn", "3-first", "4-generated", "5-decided")
SECONDS = (2.0, 2.0, 2.0, 2.0, 4.0)
COLOURS = 256
COARSE = 0xFE  # every second value is enough, and compresses better


def crop_widget(path: Path) -> Image.Image:
    """The widget in a screenshot, at the position that the test recorded."""
    left, top, width, height = np.loadtxt(SCREENSHOTS / "studio-place.txt")
    return Image.open(path).convert("RGB").crop((left, top, left + width, top + height))


def reduce_colours(frame: Image.Image) -> Image.Image:
    """Reduce the colours to those of a GIF, with dithering."""
    palette = frame.quantize(COLOURS, Image.Quantize.FASTOCTREE)
    return frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def main() -> None:
    frames = [crop_widget(SCREENSHOTS / f"studio-{step}.png") for step in STEPS]
    folder = ROOT / "book" / "_static"
    frames[-1].point(lambda value: value & COARSE).save(folder / "studio.png", optimize=True)
    few = [reduce_colours(frame) for frame in frames]
    few[0].save(
        folder / "studio_steps.gif",
        save_all=True,
        append_images=few[1:],
        duration=[round(1000 * seconds) for seconds in SECONDS],
        loop=0,
        optimize=True,
    )
    for name in ("studio.png", "studio_steps.gif"):
        print(name, (folder / name).stat().st_size // 1024, "KiB")


if __name__ == "__main__":
    main()
