"""Trimaps, and the masks and triples that AdaBLDM (Li et al. 2024, section 3.2) makes from few defects."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import Formatter
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from defaug_utils.core.guards import collect_problems, raise_problems
from defaug_utils.core.images import fit_image, read_image
from defaug_utils.core.manifest import ManifestError, image_seed
from defaug_utils.masks.patches import Defect, draw_turned, hash_masked, paste_defect, place_mask
from defaug_utils.masks.sources import FEW_SHOT, MaskDraw, hash_masks

BACKGROUND, OBJECT, DEFECT = 0, 127, 255  # levels of a trimap (AdaBLDM, section 3.2)
SCALE_RANGE = 0.15  # ± around 1 (AdaBLDM's code)
MAX_ATTEMPTS = 50  # rotated shapes to try before giving up
TRIPLES = 20_000  # AdaBLDM's code
TEMPLATE = "a {category} with a {defect_type}"  # for example "a hazelnut with a hole" (AdaBLDM, section 3.2)

# image (height, width, 3), uint8 → shape (height, width), bool, true on the object
FindForeground = Callable[[np.ndarray], np.ndarray]


class GoodImage(NamedTuple):
    """A good part: image (height, width, 3), uint8; foreground, bool; category and name."""

    image_u8: np.ndarray
    foreground: np.ndarray
    category: str
    name: str


class Triple(NamedTuple):
    """A training example of the ControlNet: image, trimap (see `make_trimap`) and prompt."""

    image_u8: np.ndarray
    trimap_u8: np.ndarray
    prompt: str
    mask: np.ndarray  #: shape (height, width), bool, true on the defect
    good: str  #: name of the good image
    defect: str  #: name of the image with the defect


@dataclass(frozen=True)
class TripleSettings:
    """How triples are made; the defaults are AdaBLDM's."""

    scale_range: float = SCALE_RANGE  #: scales are drawn from 1 ± this
    template: str = TEMPLATE  #: of the prompt; may name {category} and {defect_type}
    max_attempts: int = MAX_ATTEMPTS  #: rotated defects to try on random good images before giving up

    def __post_init__(self) -> None:
        if not 0 <= self.scale_range < 1 or self.max_attempts < 1:
            raise ValueError(
                f"triples: scale_range {self.scale_range} must be in 0 … 1, 1 excluded, and max_attempts "
                f"{self.max_attempts} must be 1 or more"
            )
        find_fields(self.template)


def find_fields(template: str) -> list[str]:
    """The fields in a prompt template; refuses any except {category} and {defect_type}."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"template {template!r} can't be read ({error})") from error
    if not template.strip() or set(fields) - {"category", "defect_type"}:
        raise ValueError(
            f"template {template!r}: expected text with no fields except {{category}}, {{defect_type}}"
        )
    return fields


def write_prompt(template: str, category: str, defect_type: str) -> str:
    """Fill in a template; underscores in names become spaces, and empty fields are refused."""
    values = {"category": category, "defect_type": defect_type}
    empty = ", ".join(sorted(name for name in set(find_fields(template)) if not values[name]))
    if empty:
        raise ValueError(f"template {template!r}: the data set has no {empty}; write it out instead")
    return template.format(**{name: value.replace("_", " ") for name, value in values.items()})


def make_trimap(mask: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Three levels, uint8: 0 background, 127 object, 255 defect (AdaBLDM, section 3.2).

    Mask and foreground must be bool arrays of the same shape (height, width), neither of them empty.
    """
    if mask.shape != foreground.shape or mask.dtype != bool or foreground.dtype != bool:
        found = f"mask {mask.shape} of {mask.dtype}, foreground {foreground.shape} of {foreground.dtype}"
        raise ValueError(f"{found}: expected the same shape, and bool")
    if not mask.any() or not foreground.any():
        missing = "defect" if foreground.any() else "object"
        raise ValueError(f"the trimap has no {missing}: expected at least one pixel")
    return np.where(mask, DEFECT, np.where(foreground, OBJECT, BACKGROUND)).astype(np.uint8)


def read_good_images(
    sources: pd.DataFrame,
    data_folder: Path | str,
    size: tuple[int, int],
    find_foreground: FindForeground | None = None,
) -> list[GoodImage]:
    """Read training negatives (see `list_sources`) at a size (width, height), with their foregrounds.

    Textures need no `find_foreground`: they are object everywhere. Raises a ManifestError that lists every
    image that can't be read or shows no object.
    """
    find = find_foreground or (lambda image_u8: np.ones(image_u8.shape[:2], bool))
    goods, problems = [], []
    for row in sources.itertuples():
        with collect_problems(problems):
            image_u8 = fit_image(read_image(Path(data_folder) / row.image), size)
            foreground = find(image_u8)
            if not foreground.any():
                problems.append(f"{row.image}: no object was found; textures need no foreground")
            goods.append(GoodImage(image_u8, foreground, row.category, row.image))
    raise_problems(f"good images in {data_folder}", problems, ManifestError)
    return goods


def make_triple(
    defects: Sequence[Defect], goods: Sequence[GoodImage], settings: TripleSettings, seed: int
) -> Triple:
    """Rotate a random defect and paste it fully inside the object of a random good image.

    All defect types are drawn equally often, whatever their numbers of images, with good images of the same
    category.
    """
    generator = np.random.default_rng(seed)
    types = sorted({defect[2:4] for defect in defects})
    category, defect_type = types[generator.integers(len(types))]
    defects = [defect for defect in defects if defect[2:4] == (category, defect_type)]
    goods = [good for good in goods if good.category == category]
    for _ in range(settings.max_attempts):
        good, defect = (choices[generator.integers(len(choices))] for choices in (goods, defects))
        turned, box = draw_turned(defect, good.foreground, settings.scale_range, generator)
        if box:
            image_u8, mask = paste_defect(good.image_u8, turned, box)
            trimap_u8 = make_trimap(mask, good.foreground)
            prompt = write_prompt(settings.template, category, defect_type)
            return Triple(image_u8, trimap_u8, prompt, mask, good.name, defect.name)
    what = "/".join(filter(None, (category, defect_type))) or "defects"
    (height, width), (rows, columns) = turned.mask.shape, good.foreground.shape
    raise ValueError(
        f"{what}: none of {settings.max_attempts} rotated defects fits inside an object; the last one "
        f"({defect.name}) is {width} × {height} pixels, the object on {good.name} covers "
        f"{good.foreground.mean():.1%} of {columns} × {rows}: look at the foregrounds, or leave these "
        "defects out"
    )


@dataclass(eq=False, repr=False)
class TripleSet(Sequence[Triple]):
    """Triples by index, made on request; none is stored."""

    defects: Sequence[Defect]
    goods: Sequence[GoodImage]
    settings: TripleSettings = TripleSettings()
    count: int = TRIPLES  #: number of triples
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [] if self.defects and self.goods else ["there are no defects or no good images"]
        for category, defect_type in sorted({defect[2:4] for defect in self.defects}):
            with collect_problems(problems):
                write_prompt(self.settings.template, category, defect_type)
            if category not in {good.category for good in self.goods}:
                problems.append(f"category {category!r} has defects, but no good images to paste them into")
        if self.count < 1:
            problems.append(f"count {self.count} must be 1 or more")
        raise_problems("triples", problems, ManifestError)

    def describe(self) -> dict:
        """Everything that the triples depend on, as JSON values."""
        counts = {"defects": len(self.defects), "goods": len(self.goods), "triples": self.count}
        content = {"seed": self.seed, "sha256": hash_masked([*self.defects, *self.goods])}
        return asdict(self.settings) | counts | content

    def list_names(self) -> dict[str, list[str]]:
        """Images that the triples are made from: those with defects, and the good ones."""
        sources = {"defects": self.defects, "goods": self.goods}
        return {kind: sorted({source.name for source in of_kind}) for kind, of_kind in sources.items()}

    def split_types(self) -> dict[str, "TripleSet"]:
        """A set of each defect type, with as many triples: AdaBLDM's code trains a ControlNet on each."""
        types = sorted({defect.defect_type for defect in self.defects})
        of_type = {kind: [one for one in self.defects if one.defect_type == kind] for kind in types}
        return {kind: replace(self, defects=defects) for kind, defects in of_type.items()}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Triple:
        """Triple `index`, always the same for a given seed."""
        if not 0 <= index < self.count:
            raise IndexError(f"triple {index} of {self.count}")
        return make_triple(self.defects, self.goods, self.settings, image_seed(self.seed, index))


@dataclass(eq=False, repr=False)
class TurnedMasks:
    """Masks of a few real training defects, rotated and scaled, never unchanged (AdaBLDM, section 3.2)."""

    word: ClassVar[str] = FEW_SHOT
    defects: Sequence[Defect]  #: from `read_defects`, at the size of the images that masks are drawn for
    scale_range: float = SCALE_RANGE  #: scales are drawn from 1 ± this
    template: str = ""  #: see `write_prompt`; a shape then comes with the prompt of its defect

    def __post_init__(self) -> None:
        count, kinds = len(self.defects), {defect[2:4] for defect in self.defects}
        if not count or not 0 <= self.scale_range < 1:
            found = f"{count} defects, scale_range {self.scale_range}"
            raise ValueError(f"{found}: expected at least one defect, and a range in 0 … 1")
        self._texts = {kind: write_prompt(self.template, *kind) if self.template else "" for kind in kinds}
        self.notices = [f"these masks are the shapes of {count} real training defects"]

    def draw(self, seed: int, size: tuple[int, int]) -> MaskDraw:
        """Choose, rotate and place a shape by seed; refuses one that fits nowhere in the image."""
        generator = np.random.default_rng(seed)
        frame = np.ones((size[1], size[0]), bool)
        for _ in range(MAX_ATTEMPTS):
            defect = self.defects[generator.integers(len(self.defects))]
            turned, box = draw_turned(defect, frame, self.scale_range, generator)
            if box:
                mask = place_mask(turned.mask, box, frame.shape)
                return MaskDraw(mask, defect.name, self._texts[defect[2:4]])
        height, width = turned.mask.shape
        raise ValueError(
            f"none of {MAX_ATTEMPTS} rotated shapes fits into {size[0]} × {size[1]} pixels; the last one "
            f"({defect.name}) is {width} × {height}: read the defects at that size"
        )

    def describe(self) -> dict:
        """Source, names and content of the shapes."""
        return {
            "mask_source": self.word,
            "mask_names": sorted({defect.name for defect in self.defects}),
            "mask_scale_range": self.scale_range,
            "mask_sha256": hash_masks([(one.name, one.mask) for one in self.defects], " "),
            "mask_texts": sorted(set(self._texts.values())),
        }
