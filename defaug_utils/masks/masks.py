"""Mask sources: where a generated defect goes, and of what shape it is."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from defaug_utils.core.images import fit_mask, read_mask
from defaug_utils.core.manifest import raise_problems, read_manifest
from defaug_utils.masks.mask_shapes import SHAPES, ShapePriors, draw_shape

MASK_SOURCES = ("drawn", "procedural", "train_positives")
LEAKING_SCENARIOS = {  # masks of defects that these may not know
    "train_positives": ("zero-shot", "few-shot"),
    "few_shot": ("zero-shot",),
}


class MaskDraw(NamedTuple):
    """A mask and what is known of it.

    Attributes:
        mask: shape (height, width), bool.
        name: in words, which one it is.
        text: the prompt of the defect that it was cut from; empty where none is known.
    """

    mask: np.ndarray
    name: str
    text: str = ""


class MaskSource(Protocol):
    """What gives masks: a pure function of seed and size."""

    word: str
    notices: list[str]

    def draw(self, seed: int, size: tuple[int, int]) -> MaskDraw:
        """The mask of a seed at a size (width, height), with at least one pixel on and one off."""
        ...

    def describe(self) -> dict:
        """Everything on which the masks depend, as JSON values."""
        ...


def is_leak(mask_source: str, scenario: str) -> bool:
    """Tell whether a mask source shows a scenario real defects that it may not know.

    Args:
        mask_source: a word of `MASK_SOURCES`, or of another method.
        scenario: "zero-shot", "few-shot" or "full-shot".

    Returns:
        True for masks of all training positives in zero-shot and few-shot: where and how large real
        defects are is known there to nobody (few-shot: of a few only).
    """
    return scenario in LEAKING_SCENARIOS.get(mask_source, ())


def open_mask_source(
    word: str,
    drawn_folder: Path | str = "",
    data_folder: Path | str = "",
    priors: ShapePriors | None = None,
) -> MaskSource:
    """Open a mask source by its name.

    Args:
        word: "drawn" (files of a folder), "procedural" (drawn by formula) or "train_positives" (the
            masks of real training defects, as DIAG's published code does; see `is_leak`).
        drawn_folder: for "drawn": the folder of its PNG files.
        data_folder: for "train_positives": the folder of the data set's manifest.
        priors: for "procedural": the expert's shapes, sizes and directions.

    Raises:
        ValueError: unknown word, or masks that can't be used (all of them are listed).
    """
    if word == "procedural":
        return ProceduralMasks(priors or ShapePriors())
    if word == "drawn":
        return _open_drawn(Path(drawn_folder))
    if word == "train_positives":
        return _open_train_positives(Path(data_folder))
    raise ValueError(f"mask source {word!r} is none of {', '.join(MASK_SOURCES)}")


@dataclass(frozen=True)
class ProceduralMasks:
    """Shapes by formula; no real defect is looked at."""

    priors: ShapePriors
    word: str = "procedural"

    @property
    def notices(self) -> list[str]:
        """Nothing that a user must be told."""
        return []

    def draw(self, seed: int, size: tuple[int, int]) -> MaskDraw:
        """Draw the kind by its weight, then the shape within the priors."""
        generator = np.random.default_rng(seed)
        weights = np.array([self.priors.weights[kind] for kind in SHAPES if kind in self.priors.weights])
        kinds = [kind for kind in SHAPES if kind in self.priors.weights]
        kind = kinds[generator.choice(len(kinds), p=weights / weights.sum())]
        return MaskDraw(draw_shape(kind, size, self.priors, generator), kind)

    def describe(self) -> dict:
        """The priors."""
        return {"mask_source": self.word, "priors": asdict(self.priors)}


class StoredMasks:
    """Masks from files, one drawn by each seed, brought to the size asked for.

    Attributes:
        word: "drawn" or "train_positives".
        names: one a mask, in order.
        notices: what was done to them that a user must be told.
    """

    def __init__(self, word: str, paths: dict[str, Path]) -> None:
        """Read all files once.

        Raises:
            ValueError: lists every file that is unreadable, or whose mask is empty or full.
        """
        self.word, self.names, self.notices = word, tuple(paths), []
        self._masks, problems = [], []
        for name, path in paths.items():
            try:
                mask = read_mask(path)
            except ValueError as error:
                problems.append(str(error))
                continue
            if not mask.any():
                problems.append(f"{name}: the mask is empty; draw a defect or remove the file")
            elif mask.all():
                problems.append(f"{name}: the mask covers everything, nothing would be left of the part")
            self._masks.append(mask)
        raise_problems(f"masks ({word})", problems, ValueError)
        digest = hashlib.sha256()
        for name, mask in zip(self.names, self._masks, strict=True):
            digest.update(f"{name}\n{mask.shape}\n".encode() + np.packbits(mask).tobytes())
        self._sha256 = digest.hexdigest()

    def draw(self, seed: int, size: tuple[int, int]) -> MaskDraw:
        """Choose a file by the seed; where the size differs, no thin defect is lost.

        Raises:
            ValueError: shrunk to this size the mask covers everything.
        """
        index = int(np.random.default_rng(seed).integers(len(self.names)))
        mask = fit_mask(self._masks[index], size)
        if mask.all():
            raise ValueError(
                f"mask {self.names[index]} covers everything at {size[0]} × {size[1]} pixels: draw it smaller"
            )
        return MaskDraw(mask, self.names[index])

    def describe(self) -> dict:
        """Source, number and content of the masks."""
        return {"mask_source": self.word, "mask_count": len(self.names), "mask_sha256": self._sha256}

    def find_other_sizes(self, size: tuple[int, int]) -> list[str]:
        """Names of the masks that are not of a size (width, height) and will be stretched to it."""
        pairs = zip(self.names, self._masks, strict=True)
        return [name for name, mask in pairs if mask.shape != (size[1], size[0])]


def _open_drawn(folder: Path) -> StoredMasks:
    paths = {path.name: path for path in sorted(folder.glob("*.png"))} if folder.is_dir() else {}
    if not paths:
        raise ValueError(f"no drawn masks (*.png) in {str(folder)!r}: draw some, or use 'procedural'")
    source = StoredMasks("drawn", paths)
    grey = [name for name, path in paths.items() if not is_binary(path)]
    if grey:
        source.notices.append(
            f"{len(grey)} of {len(paths)} drawn masks have more than two values ({', '.join(grey[:5])}): "
            "every pixel above 0 counts as defect"
        )
    return source


def is_binary(path: Path | str) -> bool:
    """Tell whether a mask file has two values at most (a soft brush leaves more)."""
    with Image.open(path) as opened:
        colours = opened.convert("RGB").getcolors(2)
    return colours is not None


def _open_train_positives(data_folder: Path) -> StoredMasks:
    dataset = read_manifest(data_folder / "manifest.csv")
    is_known = (dataset["label"] == "positive") & (dataset["split"] == "train") & (dataset["mask"] != "")
    masks = sorted(dataset.loc[is_known & (dataset["origin"] == "real"), "mask"])
    if not masks:
        raise ValueError(f"{data_folder}: no training positive has a mask; use 'procedural' or 'drawn'")
    source = StoredMasks("train_positives", {name: data_folder / name for name in masks})
    source.notices.append(
        "these masks are those of real training defects: a leak wherever the scenario may not know them"
    )
    return source
