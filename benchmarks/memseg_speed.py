"""Speed of MemSeg's simulation compared with the usual re-implementation, on one core.

Run `python benchmarks/memseg_speed.py` from the repository's root; options: `--help`.

The usual recipe, as in public MemSeg repositories, is written out below: Perlin noise in float64 NumPy with
full-size arrays for each corner; three of ten whole-image augmenters, one after the other; a texture read
from its file and resized for every image. Those repositories call imgaug, which no longer runs with NumPy 2;
here the same operations are called directly in OpenCV, Pillow and NumPy, as imgaug does internally. With
imgaug itself (0.4.0, NumPy 1.26) the recipe took about the same time on the same machine.

Both get the same surfaces, in memory, and the same textures, first as files and then in memory. We measure
the CPU time of one thread, alternating between the two, and report the median over the repeats.
"""

# ruff: noqa: E402, NPY002 - threads are set before the imports; the usual recipe draws from the global generator

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from defaug_utils.core.files import write_png
from defaug_utils.methods.memseg import MemSegSettings, simulate_anomaly
from defaug_utils.methods.textures import (
    TextureCollection,
    draw_procedural_texture,
    open_builtin_textures,
    open_texture_folder,
)

GRID = (8, 8)  # of the usual re-implementation, for both


def usual_perlin(shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Float64 Perlin noise from four corner arrays at full size; sides must be divisible by the cells."""
    step = (cells[0] / shape[0], cells[1] / shape[1])
    repeats = (shape[0] // cells[0], shape[1] // cells[1])
    grid = np.mgrid[0 : cells[0] : step[0], 0 : cells[1] : step[1]].transpose(1, 2, 0) % 1
    angles = 2 * math.pi * np.random.rand(cells[0] + 1, cells[1] + 1)
    gradients = np.stack((np.cos(angles), np.sin(angles)), axis=-1)

    def corner(rows: slice, columns: slice, shift: tuple[int, int]) -> np.ndarray:
        tiled = np.repeat(np.repeat(gradients[rows, columns], repeats[0], axis=0), repeats[1], axis=1)
        offset = np.stack((grid[..., 0] + shift[0], grid[..., 1] + shift[1]), axis=-1)
        return (offset * tiled).sum(axis=-1)

    first, last = slice(0, -1), slice(1, None)
    fade = 6 * grid**5 - 15 * grid**4 + 10 * grid**3
    upper_left, upper_right = corner(first, first, (0, 0)), corner(first, last, (0, -1))
    lower_left, lower_right = corner(last, first, (-1, 0)), corner(last, last, (-1, -1))
    left = upper_left + fade[..., 0] * (lower_left - upper_left)
    right = upper_right + fade[..., 0] * (lower_right - upper_right)
    return math.sqrt(2) * (left + fade[..., 1] * (right - left))


def usual_rotation(array: np.ndarray, limit: float) -> np.ndarray:
    """Rotate by a random angle up to a limit in degrees, as imgaug does with OpenCV."""
    height, width = array.shape[:2]
    angle = np.random.uniform(-limit, limit)
    turn = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), angle, 1.0)
    return cv2.warpAffine(array, turn, (width, height))


def usual_mask(shape: tuple[int, int]) -> np.ndarray:
    """Noise on a random lattice, rotated and thresholded; 1.0 where the defect goes."""
    cells = (2 ** np.random.randint(0, 6), 2 ** np.random.randint(0, 6))
    noise = usual_rotation(usual_perlin(shape, cells), 90)
    return np.where(noise > 0.5, np.ones_like(noise), np.zeros_like(noise))


def usual_gamma(image: np.ndarray) -> np.ndarray:
    channels = []
    for channel, exponent in enumerate(np.random.uniform(0.5, 2.0, 3)):
        table = 255 * (np.arange(256) / 255) ** exponent
        channels.append(cv2.LUT(np.ascontiguousarray(image[..., channel]), table.astype(np.uint8)))
    return np.stack(channels, axis=-1)


def usual_brightness(image: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    factor, shift = np.random.uniform(0.8, 1.2), np.random.uniform(-30, 30)
    hsv[..., 2] = np.clip(hsv[..., 2].astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def usual_sharpness(image: np.ndarray) -> np.ndarray:
    factor = np.random.uniform(0, 3)
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor))


def usual_hue_and_saturation(image: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hue, saturation = np.random.randint(-50, 51, 2)
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + int(hue * 180 / 255)) % 180
    hsv[..., 1] = np.clip(hsv[..., 1].astype(np.int32) + saturation, 0, 255)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def usual_solarise(image: np.ndarray) -> np.ndarray:
    if np.random.rand() < 0.5:
        return np.asarray(ImageOps.solarize(Image.fromarray(image), np.random.randint(32, 129)))
    return image


def usual_posterise(image: np.ndarray) -> np.ndarray:
    return np.asarray(ImageOps.posterize(Image.fromarray(image), np.random.randint(1, 9)))


def usual_invert(image: np.ndarray) -> np.ndarray:
    return 255 - image


def usual_autocontrast(image: np.ndarray) -> np.ndarray:
    return np.asarray(ImageOps.autocontrast(Image.fromarray(image), np.random.randint(0, 21)))


def usual_equalise(image: np.ndarray) -> np.ndarray:
    return np.asarray(ImageOps.equalize(Image.fromarray(image)))


def usual_turned_image(image: np.ndarray) -> np.ndarray:
    return usual_rotation(image, 45)


USUAL_AUGMENTERS = (
    usual_gamma,
    usual_brightness,
    usual_sharpness,
    usual_hue_and_saturation,
    usual_solarise,
    usual_posterise,
    usual_invert,
    usual_autocontrast,
    usual_equalise,
    usual_turned_image,
)


def usual_structure(image: np.ndarray) -> np.ndarray:
    """Three of the ten augmenters, then the shuffled grid; sides must be divisible by it."""
    for index in np.random.choice(len(USUAL_AUGMENTERS), 3, replace=False):
        image = USUAL_AUGMENTERS[index](image)
    rows, columns = GRID
    height, width = image.shape[0] // rows, image.shape[1] // columns
    cells = image.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4)
    cells = cells.reshape(rows * columns, height, width, 3)[np.random.permutation(rows * columns)]
    return (
        cells.reshape(rows, columns, height, width, 3)
        .transpose(0, 2, 1, 3, 4)
        .reshape(image.shape)
        .astype(np.float32)
    )


def usual_anomaly(image: np.ndarray, fetch_texture: Callable[[], np.ndarray]) -> np.ndarray:
    """The usual recipe as a whole, for one image."""
    mask = np.expand_dims(usual_mask(image.shape[:2]), axis=2)
    source = fetch_texture() if np.random.rand() < 0.5 else usual_structure(image)
    factor = np.random.uniform(0.15, 1.0)
    blended = factor * (mask * source) + (1 - factor) * (mask * image)
    return ((1 - mask) * image + blended).astype(np.uint8)


def read_texture(path: Path, side: int) -> np.ndarray:
    """Read and resize a texture, as the usual recipe does for every image."""
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return cv2.resize(pixels, (side, side)).astype(np.float32)


def time_alternately(functions: list[Callable[[int], object]], images: int, repeats: int) -> list[float]:
    """Median CPU milliseconds per image of each function, alternating between them."""
    for function in functions:
        function(0)
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, its_times in zip(functions, times, strict=True):
            start = time.process_time()
            for index in range(images):
                function(index)
            its_times.append((time.process_time() - start) / images * 1000)
    return [statistics.median(its_times) for its_times in times]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--textures", default="", help="folder of images; default: textures drawn for this run"
    )
    parser.add_argument("--side", type=int, default=256, help="width and height in pixels, divisible by 32")
    parser.add_argument("--images", type=int, default=40, help="images per repeat")
    parser.add_argument("--repeats", type=int, default=9, help="repeats; the median is reported")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.textures or temporary)
        if not options.textures:
            for variant in range(20):
                write_png(folder / f"{variant:02}.png", draw_procedural_texture("marble", variant))
        print_comparison(open_texture_folder(folder), folder, options)


def print_comparison(textures: TextureCollection, folder: Path, options: argparse.Namespace) -> None:
    """Time the usual recipe and the package's, with textures from files and from memory."""
    side, size = options.side, (options.side, options.side)
    builtin = open_builtin_textures()
    surfaces = [builtin.read(index % len(builtin), size).copy() for index in range(options.images)]
    paths = [folder / name for name in textures.names]
    held = [read_texture(path, side) for path in paths[:100]]
    without_cache = TextureCollection(textures.names, textures._read_texture, textures.sha256, cache_bytes=0)
    generator, settings = np.random.default_rng(0), MemSegSettings(grid=GRID)
    np.random.seed(0)
    times = time_alternately(
        [
            lambda i: usual_anomaly(
                surfaces[i], lambda: read_texture(paths[np.random.randint(len(paths))], side)
            ),
            lambda i: usual_anomaly(surfaces[i], lambda: held[np.random.randint(len(held))]),
            lambda i: simulate_anomaly(surfaces[i], without_cache, generator, settings),
            lambda i: simulate_anomaly(surfaces[i], textures, generator, settings),
        ],
        options.images,
        options.repeats,
    )
    usual_files, usual_memory, ours_files, ours_memory = times
    print(
        f"{side} × {side} pixels, one thread, median of {options.repeats} × {options.images} images, CPU time"
    )
    print(f"{'':34}usual recipe   defaug_utils   ratio")
    for what, usual, ours in (
        ("texture read from file each time", usual_files, ours_files),
        ("textures held in memory", usual_memory, ours_memory),
        ("as each is used (files, cache)", usual_files, ours_memory),
    ):
        print(f"{what:34}{usual:9.2f} ms {ours:11.2f} ms {usual / ours:8.1f}")


if __name__ == "__main__":
    main()
