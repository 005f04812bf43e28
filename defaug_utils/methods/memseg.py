"""MemSeg's anomaly simulation: foreign textures under a noise mask (Yang et al. 2023, section 3.1)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import pandas as pd

from defaug_utils.core.guards import check_demands
from defaug_utils.core.images import FOREGROUNDS, find_foreground, read_image
from defaug_utils.core.pools import GeneratedImage, list_versions
from defaug_utils.core.sources import list_sources, read_dataset, survey_sources
from defaug_utils.masks import shapes
from defaug_utils.masks.objects import ObjectFinder
from defaug_utils.methods.augmenters import AUGMENTERS, augment
from defaug_utils.methods.textures import TextureCollection

TEXTURE_SHARE = 0.5  # probability of a texture, otherwise the image's own structure (MemSeg, section 3.1)
OPACITY = (0.15, 1.0)  # δ ~ U(0.15, 1) (MemSeg, section 3.1)
GRID = (8, 4)  # rows and columns of the shuffled grid (MemSeg, section 3.1; 8 × 8 in re-implementations)
AUGMENTER_COUNT = 3  # augmenters before the shuffle, of ten (MemSeg's usual re-implementation)
MAX_MASK_DRAWS = 200  # after this many empty masks, we give up


@dataclass(frozen=True)
class MemSegSettings:
    """MemSeg's settings; the defaults are the paper's."""

    texture_share: float = TEXTURE_SHARE  #: probability of a texture as source, not the image
    opacity: tuple[float, float] = OPACITY  #: smallest and largest weight of the source, in (0, 1]
    grid: tuple[int, int] = GRID  #: rows and columns into which the structural source is cut
    augmenter_count: int = AUGMENTER_COUNT  #: augmenters, of ten, applied before it is cut
    lattice_exponents: tuple[int, int] = shapes.LATTICE_EXPONENTS  #: range of i in lattice sides 2^i
    rotation: float = shapes.ROTATION_DEGREES  #: the noise is rotated by up to ± this, degrees
    threshold: float = shapes.NOISE_THRESHOLD  #: the mask is where the noise is above it
    foreground: str = "whole"  #: one of `FOREGROUNDS`: where masks may be

    def __post_init__(self) -> None:
        (low, high), exponents, count = self.opacity, self.lattice_exponents, self.augmenter_count
        demands = {
            f"texture_share {self.texture_share} must be in 0 … 1": 0 <= self.texture_share <= 1,
            f"opacity {low} … {high} must rise within 0 … 1, 0 excluded": 0 < low <= high <= 1,
            f"grid {self.grid} must be (rows, columns) of at least 1 × 1": min(self.grid) >= 1,
            f"augmenter_count {count} must be in 0 … {len(AUGMENTERS)}": 0 <= count <= len(AUGMENTERS),
            f"lattice_exponents {exponents} must rise from 0 or more": 0 <= exponents[0] <= exponents[1],
            f"foreground {self.foreground!r} must be one of {', '.join(FOREGROUNDS)}": (
                self.foreground in FOREGROUNDS
            ),
        }
        check_demands("MemSeg settings", demands)


class AnomalySource(NamedTuple):
    """The blended source (uint8): a "texture", or "structure", named after its augmenters."""

    pixels_u8: np.ndarray
    kind: str
    name: str


class Anomaly(NamedTuple):
    """A simulated defect: image, shape (height, width, 3), uint8, its mask and how it was made."""

    image_u8: np.ndarray
    mask: np.ndarray
    source: AnomalySource
    opacity: float


def draw_mask(foreground: np.ndarray, generator: np.random.Generator, settings: MemSegSettings) -> np.ndarray:
    """Draw a mask of rotated, thresholded noise within the foreground (bool); redraw it while empty."""
    height, width = foreground.shape
    if not foreground.any():
        raise ValueError(
            f"foreground {settings.foreground!r} found no object in this {width} × {height} image: "
            "use 'whole', or another foreground"
        )
    for _ in range(MAX_MASK_DRAWS):
        noise = shapes.draw_perlin_noise((width, height), generator, settings.lattice_exponents)
        noise = shapes.rotate_noise(noise, generator.uniform(-settings.rotation, settings.rotation))
        mask = shapes.threshold_noise(noise, settings.threshold) & foreground
        if mask.any():
            return mask
    raise ValueError(
        f"none of {MAX_MASK_DRAWS} masks met the foreground ({np.count_nonzero(foreground)} of "
        f"{width} × {height} pixels): use a larger foreground or a threshold below {settings.threshold}"
    )


def draw_texture(
    textures: TextureCollection, size: tuple[int, int], generator: np.random.Generator
) -> AnomalySource:
    """Choose a texture and stretch it to a size (width, height)."""
    index = int(generator.integers(len(textures)))
    return AnomalySource(textures.read(index, size), "texture", textures.names[index])


def draw_structure(
    image_u8: np.ndarray, generator: np.random.Generator, settings: MemSegSettings
) -> AnomalySource:
    """Augment the image and shuffle its cells: familiar structure in the wrong place."""
    changed, names = augment(image_u8, generator, settings.augmenter_count)
    return AnomalySource(shuffle_grid(changed, settings.grid, generator), "structure", ", ".join(names))


def shuffle_grid(image_u8: np.ndarray, grid: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Cut an image into equal cells (grid: rows and columns) and arrange them in random order.

    If the sides are not divisible, the image is first extended by mirroring at its lower and right border.
    """
    height, width = image_u8.shape[:2]
    rows, columns = grid
    below, right = -height % rows, -width % columns
    if below or right:
        image_u8 = cv2.copyMakeBorder(image_u8, 0, below, 0, right, cv2.BORDER_REFLECT)
    cell = (image_u8.shape[0] // rows, image_u8.shape[1] // columns)
    cells = image_u8.reshape(rows, cell[0], columns, cell[1], 3).swapaxes(1, 2).reshape(-1, *cell, 3)
    shuffled = cells[generator.permutation(rows * columns)].reshape(rows, columns, *cell, 3)
    return shuffled.swapaxes(1, 2).reshape(image_u8.shape)[:height, :width]


def blend_anomaly(
    image_u8: np.ndarray, source_u8: np.ndarray, mask: np.ndarray, opacity: float
) -> np.ndarray:
    """Blend a source into an image under a mask: (1 - M) ⊙ I + M ⊙ (δ · source + (1 - δ) · I).

    Raises a ValueError for wrong shapes or types, or an opacity out of range.

    Args:
        image_u8, source_u8: surface I and source, shape (height, width, 3), uint8.
        mask: M, shape (height, width), bool, true where the defect goes; pixels outside stay as they are.
        opacity: weight δ of the source in [0, 1].
    """
    is_one_size = image_u8.shape == source_u8.shape and image_u8.shape[:2] == mask.shape
    are_types_right = (image_u8.dtype, source_u8.dtype, mask.dtype) == (np.uint8, np.uint8, bool)
    if not is_one_size or not are_types_right or not 0 <= opacity <= 1:
        raise ValueError(
            f"image {image_u8.shape} of {image_u8.dtype}, source {source_u8.shape} of {source_u8.dtype}, "
            f"mask {mask.shape} of {mask.dtype}, opacity {opacity}: expected the same height and "
            "width, types uint8, uint8, bool, and an opacity in 0 … 1"
        )
    mixed = cv2.addWeighted(source_u8, opacity, image_u8, 1 - opacity, 0)
    return cv2.copyTo(mixed, mask.view(np.uint8), image_u8.copy())


def simulate_anomaly(
    image_u8: np.ndarray,
    textures: TextureCollection,
    generator: np.random.Generator,
    settings: MemSegSettings | None = None,
    find_object: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Anomaly:
    """All steps: foreground, mask, source, opacity, blend.

    Raises a ValueError if the foreground is empty, or so small that no mask meets it.

    Args:
        image_u8: a surface without defect, shape (height, width, 3), uint8, of any size.
        textures, generator, settings: sources, random numbers and values; settings None for the paper's.
        find_object: finds the object, instead of the settings' `foreground`; None to use that.
    """
    settings = settings or MemSegSettings()
    foreground = find_object(image_u8) if find_object else find_foreground(image_u8, settings.foreground)
    mask = draw_mask(foreground, generator, settings)
    if generator.random() < settings.texture_share:
        source = draw_texture(textures, (image_u8.shape[1], image_u8.shape[0]), generator)
    else:
        source = draw_structure(image_u8, generator, settings)
    opacity = float(generator.uniform(*settings.opacity))
    return Anomaly(blend_anomaly(image_u8, source.pixels_u8, mask, opacity), mask, source, opacity)


@dataclass(frozen=True, eq=False)
class MemSeg:
    """Anomalies simulated on training negatives, drawn with replacement.

    Rows also have the columns `texture` (kind and name of the source), `opacity`, and `change` (mean absolute
    difference inside the mask, in grey levels).
    """

    origin: ClassVar[str] = "memseg"
    group: ClassVar[int] = 1
    data: Path  #: folder of the prepared data set
    textures: TextureCollection  #: from `open_textures`
    settings: MemSegSettings = MemSegSettings()
    find_object: ObjectFinder | None = None  #: see `simulate_anomaly`

    @cached_property
    def sources(self) -> pd.DataFrame:
        """The negatives to draw from."""
        return list_sources(read_dataset(self.data))

    def describe(self) -> dict:
        """Settings, textures and negatives; a `ManifestError` if there are none, or some can't be used."""
        found = {"find_object": self.find_object.describe()} if self.find_object else {}
        foreground = "whole" if self.find_object else self.settings.foreground
        return {
            "settings": asdict(self.settings),
            "textures": self.textures.describe(),
            "sources": survey_sources(self.sources, self.data, foreground),
            "versions": list_versions("numpy", "opencv-python-headless", "pillow"),
        } | found

    def make(self, indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        """One anomaly for each seed; the error names a source on which no mask can be drawn."""
        return [self._make_one(seed) for seed in seeds]

    def _make_one(self, seed: int) -> GeneratedImage:
        generator = np.random.default_rng(seed)
        source = self.sources.iloc[int(generator.integers(len(self.sources)))]
        image_u8 = read_image(Path(self.data) / source["image"])
        try:
            anomaly = simulate_anomaly(image_u8, self.textures, generator, self.settings, self.find_object)
        except ValueError as error:
            raise ValueError(f"{source['image']}: {error}") from error
        row = {
            "source_image": source["image"],
            "category": source["category"],
            "mask_source": "perlin",
            "texture": f"{anomaly.source.kind}: {anomaly.source.name}",
            "opacity": round(anomaly.opacity, 4),
            "change": round(float(cv2.absdiff(image_u8, anomaly.image_u8)[anomaly.mask].mean()), 3),
        }
        return GeneratedImage(anomaly.image_u8, anomaly.mask, row)
