"""Draw the parts that the embedded model is trained on, once, into arrays for all training steps.

    python scripts/embedded/draw_pool.py --folder runs/embedded/pool --count 10000

Writes clean.npy, image.npy (count, height, width, 3), mask.npy (count, height, width) and words.json.
The validation pool has a different first seed, so that no part is in both.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from worlds import draw_sample

SIZE = (128, 384)  # width, height in pixels


def draw_pool(folder: Path, count: int, first_seed: int) -> None:
    """Draw `count` parts with seeds starting at `first_seed`; a finished pool is not changed."""
    if (folder / "words.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, SIZE[1], SIZE[0])
    clean = np.lib.format.open_memmap(folder / "clean.npy", "w+", np.uint8, (*shape, 3))
    image = np.lib.format.open_memmap(folder / "image.npy", "w+", np.uint8, (*shape, 3))
    mask = np.lib.format.open_memmap(folder / "mask.npy", "w+", bool, shape)
    words = []
    for index in range(count):
        sample = draw_sample(first_seed + index, SIZE)
        clean[index], image[index], mask[index] = sample.clean_u8, sample.image_u8, sample.mask
        words.append(sample.words)
    (folder / "words.json").write_text(json.dumps(words))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    draw_pool(arguments.folder, arguments.count, arguments.first_seed)
