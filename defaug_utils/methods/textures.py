"""Texture collections: any folder of images, or procedural textures and those in scikit-image.

The procedural textures are deliberately unlike metal surfaces: no scratches, cracks, pits or stains.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import skimage.color
import skimage.data
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from defaug_utils.core.guards import collect_problems, raise_problems
from defaug_utils.core.images import read_image
from defaug_utils.masks.shapes import draw_gradients, evaluate_noise

TEXTURE_SIDE = 256  # pixels, width and height of a drawn texture
VARIANTS = 4  # textures of each kind
OCTAVES = 5  # layers of fractal noise, each with half the size and weight of the previous one
GREYS = (55, 127, 200)  # approximate grey levels of a texture's three colours
MAX_VIVIDNESS = 0.6  # 0 is grey, 1 any colour; chosen to resemble photographs of textures

_rows, _columns = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE] / TEXTURE_SIDE


def _turned(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The pixels' coordinates, in image sides, along two randomly rotated axes."""
    angle = generator.uniform(0, np.pi)
    across = np.cos(angle) * _columns + np.sin(angle) * _rows
    return across, np.cos(angle) * _rows - np.sin(angle) * _columns


def _fractal_noise(generator: np.random.Generator, cells: int) -> np.ndarray:
    noise = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for octave in range(OCTAVES):
        lattice = (cells * 2**octave, cells * 2**octave)
        noise += evaluate_noise(draw_gradients(lattice, generator), noise.shape) / 2**octave
    return noise


def draw_stripes(generator: np.random.Generator) -> np.ndarray:
    """Parallel bands with soft edges."""
    across, _ = _turned(generator)
    return np.tanh(3 * np.sin(2 * np.pi * generator.uniform(6, 24) * across))


def draw_checks(generator: np.random.Generator) -> np.ndarray:
    """A chessboard."""
    across, along = _turned(generator)
    count = np.pi * generator.uniform(6, 20)
    return np.sign(np.sin(count * across) * np.sin(count * along))


def draw_weave(generator: np.random.Generator) -> np.ndarray:
    """Threads going over and under each other."""
    across, along = (axis * generator.uniform(8, 24) for axis in _turned(generator))
    is_over = (np.floor(across) + np.floor(along)) % 2 == 0
    return np.where(is_over, np.sin(np.pi * (across % 1)), 0.7 * np.sin(np.pi * (along % 1)))


def draw_dots(generator: np.random.Generator) -> np.ndarray:
    """Round dots on a lattice."""
    count = generator.uniform(6, 20)
    across, along = ((axis * count) % 1 - 0.5 for axis in _turned(generator))
    return np.hypot(across, along) < generator.uniform(0.2, 0.45)


def draw_cells(generator: np.random.Generator) -> np.ndarray:
    """Distance to the nearest of many scattered points, like pebbles or scales."""
    points = generator.random((int(generator.integers(60, 300)), 2)) * 1.2 - 0.1
    pixels = np.stack([_rows.ravel(), _columns.ravel()], axis=-1)
    return cKDTree(points).query(pixels)[0].reshape(_rows.shape)


def draw_clouds(generator: np.random.Generator) -> np.ndarray:
    """Fractal noise."""
    return _fractal_noise(generator, int(generator.integers(2, 8)))


def draw_marble(generator: np.random.Generator) -> np.ndarray:
    """Bands bent by fractal noise."""
    across, _ = _turned(generator)
    bands = 2 * np.pi * generator.uniform(3, 8) * across
    return np.sin(bands + 4 * _fractal_noise(generator, 4))


def draw_grain(generator: np.random.Generator) -> np.ndarray:
    """White noise, smeared more in one direction than in the other."""
    noise = generator.standard_normal(_rows.shape)
    return gaussian_filter(noise, generator.uniform(0.5, 4, size=2), mode="wrap")


_DRAWN = (draw_stripes, draw_checks, draw_weave, draw_dots, draw_cells, draw_clouds, draw_marble, draw_grain)
TEXTURE_KINDS = {draw.__name__.removeprefix("draw_"): draw for draw in _DRAWN}


def draw_procedural_texture(kind: str, variant: int) -> np.ndarray:
    """A texture (256, 256, 3), uint8, in three random colours; fixed for each kind and variant."""
    generator = np.random.default_rng([list(TEXTURE_KINDS).index(kind), variant])
    pattern = np.asarray(TEXTURE_KINDS[kind](generator), float)
    low, high = np.percentile(pattern, (1, 99))
    greys = generator.permutation(GREYS)[:, None] + generator.uniform(-30, 30, (3, 1))
    vividness = generator.uniform(0, MAX_VIVIDNESS)
    colours = greys + vividness * (generator.uniform(0, 255, (3, 3)) - greys)
    channels = [np.interp(pattern, np.linspace(low, high, 3), colours[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SHIPPED_TEXTURES = ("brick", "grass", "gravel", "moon", "hubble_deep_field", "immunohistochemistry")
CACHE_BYTES = 128 * 2**20  # of textures cached at their final size


class TextureCollection:
    """Textures by number; the most recently used ones are cached at the requested size."""

    def __init__(
        self,
        names: Sequence[str],
        read_texture: Callable[[str], np.ndarray],
        sha256: str,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Wrap a function that reads or draws a texture by name; the hash is of names and contents."""
        self.names, self.sha256 = tuple(names), sha256
        self._read_texture = read_texture
        self._cache: OrderedDict[tuple[int, tuple[int, int]], np.ndarray] = OrderedDict()
        self._free_bytes = cache_bytes

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Texture `index` at a size (width, height), uint8; read-only, because callers share it."""
        key = (index, size)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        texture = self._read_texture(self.names[index])
        is_shrunk = size[0] * size[1] < texture.shape[0] * texture.shape[1]
        texture = cv2.resize(texture, size, interpolation=cv2.INTER_AREA if is_shrunk else cv2.INTER_LINEAR)
        texture.flags.writeable = False
        self._cache[key] = texture
        self._free_bytes -= texture.nbytes
        while self._free_bytes < 0:
            _, dropped = self._cache.popitem(last=False)
            self._free_bytes += dropped.nbytes
        return texture

    def describe(self) -> dict:
        """For a recipe: the number of textures, and the hash of their names and contents."""
        return {"count": len(self), "sha256": self.sha256}


def open_textures(folder: Path | str = "") -> TextureCollection:
    """The textures of a folder, or the built-in ones."""
    return open_texture_folder(folder) if str(folder) else open_builtin_textures()


def open_texture_folder(folder: Path | str) -> TextureCollection:
    """All images in a folder and the folders below it, such as the Describable Textures Dataset.

    Every file is read once, so that broken files are found before a pool is started. Textures are sorted by
    name; hidden files and files with other suffixes are skipped.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no images, or some can't be read (all are listed).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no texture folder {folder}: give a folder of images, or none for the built-in textures"
        )
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    names = [name for name in names if "/." not in f"/{name}"]
    if not names:
        raise ValueError(
            f"texture folder {folder}: contains no images (searched for {', '.join(IMAGE_SUFFIXES)}, "
            "including subfolders)"
        )
    problems, digest = [], hashlib.sha256()
    for name in names:
        with collect_problems(problems):
            read_image(folder / name)
            digest.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    raise_problems(f"texture folder {folder}", problems)
    return TextureCollection(names, lambda name: read_image(folder / name), digest.hexdigest())


def open_builtin_textures() -> TextureCollection:
    """Textures that are always available: procedural ones, and the photographs in scikit-image."""
    drawn = [f"{kind} {variant}" for kind in TEXTURE_KINDS for variant in range(VARIANTS)]
    names, digest = [*drawn, *SHIPPED_TEXTURES], hashlib.sha256()
    for name in names:
        digest.update(name.encode() + hashlib.sha256(_read_builtin(name).tobytes()).digest())
    return TextureCollection(names, _read_builtin, digest.hexdigest())


def _read_builtin(name: str) -> np.ndarray:
    if name in SHIPPED_TEXTURES:
        pixels = getattr(skimage.data, name)()
        return pixels if pixels.ndim == 3 else skimage.color.gray2rgb(pixels)
    kind, variant = name.split(" ")
    return draw_procedural_texture(kind, int(variant))
