"""Mask sources: where a generated defect goes, and of what shape it is."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from defaug_utils.core.guards import collect_problems, name_nearest, raise_problems
from defaug_utils.core.images import fit_mask, read_image, read_mask
from defaug_utils.core.manifest import read_manifest
from defaug_utils.core.prompts import Prompt
from defaug_utils.masks.patches import list_masked_positives
from defaug_utils.masks.shapes import PLACES, SHAPES, ShapePriors, draw_shape

MASK_SOURCES = ("drawn", "procedural", "train_positives")
FEW_SHOT = "few_shot"  # `TurnedMasks`, of methods that learn from a few known defects
LEAKING_SCENARIOS = {  # masks of defects that these may not know
    "train_positives": ("zero-shot", "few-shot"),
    FEW_SHOT: ("zero-shot",),
}


class MaskDraw(NamedTuple):
    """A mask, shape (height, width), bool, with its name and, if known, its defect's prompt."""

    mask: np.ndarray
    name: str
    text: str = ""


class MaskSource(Protocol):
    """A source of masks: a pure function of seed and size, with its name and notices for the user."""

    word: str
    notices: Sequence[str]

    def draw(self, seed: int, size: tuple[int, int]) -> MaskDraw:
        """The mask of a seed at a size (width, height), neither empty nor full."""

    def describe(self) -> dict:
        """Everything that the masks depend on, as JSON values."""


def is_leak(mask_source: str, scenario: str) -> bool:
    """Whether a mask source reveals real defects that a scenario must not know."""
    return scenario in LEAKING_SCENARIOS.get(mask_source, ())


def open_masks(
    word: str, drawn_folder: Path | str = "", data_folder: Path | str = "", priors: ShapePriors | None = None
) -> MaskSource:
    """Open a mask source by name; a ValueError lists all unusable masks.

    Args:
        word: "drawn" (files of a folder), "procedural" (drawn by formula), "train_positives" (the masks of
            real training defects, as DIAG's published code does; see `is_leak`).
        drawn_folder, data_folder, priors: what the source needs: a folder of PNG files, the folder of the
            data set's manifest, or the expert's shapes, sizes and directions.
    """
    if word == "procedural":
        return ProceduralMasks(priors or ShapePriors())
    if word == "drawn":
        return _open_drawn(Path(drawn_folder))
    if word == "train_positives":
        return _open_train_positives(Path(data_folder))
    raise ValueError(f"mask source {word!r} is not one of {', '.join(MASK_SOURCES)}")


@dataclass(frozen=True)
class ProceduralMasks:
    """Procedural shapes within an expert's priors; no real defect is used."""

    priors: ShapePriors
    word: str = "procedural"
    notices: Sequence[str] = ()
    place: str = ""  #: of the centres, a word of `PLACES`; a board's prompts describe it in recipes

    def draw(self, seed: int, size: tuple[int, int]) -> MaskDraw:
        """Draw a kind by weight, then a shape within the priors."""
        generator = np.random.default_rng(seed)
        kinds = [kind for kind in SHAPES if kind in self.priors.weights]
        weights = np.array([self.priors.weights[kind] for kind in kinds])
        kind = kinds[generator.choice(len(kinds), p=weights / weights.sum())]
        return MaskDraw(draw_shape(kind, size, self.priors, generator, self.place), kind)

    def describe(self) -> dict:
        """The priors."""
        return {"mask_source": self.word, "priors": asdict(self.priors)}


def choose_shape(source: MaskSource, prompt: Prompt) -> MaskSource:
    """The source with a prompt's shape, lengths and place, if it has any; masks from files stay as they are.

    Raises a ValueError if there is no such shape or place, or if the lengths are wrong.
    """
    if not isinstance(source, ProceduralMasks):
        return source
    if prompt.place and prompt.place not in PLACES:
        nearest = name_nearest(prompt.place, PLACES)
        raise ValueError(f"place {prompt.place!r} is not one of {', '.join(PLACES)}{nearest}")
    changed = {"weights": {prompt.shape: 1.0}} if prompt.shape else {}
    changed |= {"length": tuple(prompt.length)} if prompt.length else {}
    return replace(source, priors=replace(source.priors, **changed), place=prompt.place)


class StoredMasks:
    """Masks from files; each seed draws one, resized to the requested size."""

    def __init__(self, word: str, paths: dict[str, Path]) -> None:
        """Read all files once; refuses, in one message, all that are unreadable, empty or full."""
        self.word, self.names, self.notices = word, tuple(paths), []
        self._masks, problems = {}, []
        for name, path in paths.items():
            with collect_problems(problems):
                mask = self._masks[name] = read_mask(path)
                if not mask.any():
                    problems.append(f"{name}: the mask is empty: draw a defect or remove the file")
                elif mask.all():
                    problems.append(f"{name}: the mask covers everything: nothing of the part would be left")
        raise_problems(f"masks ({word})", problems)
        self._sha256 = hash_masks(self._masks.items(), "\n")

    def draw(self, seed: int, size: tuple[int, int]) -> MaskDraw:
        """Choose a file by seed; refuses one that covers everything at this size."""
        name = self.names[np.random.default_rng(seed).integers(len(self.names))]
        mask = fit_mask(self._masks[name], size)
        if mask.all():
            raise ValueError(
                f"mask {name} covers everything at {size[0]} × {size[1]} pixels: draw it smaller"
            )
        return MaskDraw(mask, name)

    def describe(self) -> dict:
        """Source, number and content of the masks."""
        return {"mask_source": self.word, "mask_count": len(self.names), "mask_sha256": self._sha256}


def hash_masks(pairs: Iterable[tuple[str, np.ndarray]], separator: str) -> str:
    digest = hashlib.sha256()
    for name, mask in pairs:
        digest.update(f"{name}{separator}{mask.shape}\n".encode() + np.packbits(mask).tobytes())
    return digest.hexdigest()


def _open_drawn(folder: Path) -> StoredMasks:
    paths = {path.name: path for path in sorted(folder.glob("*.png"))} if folder.is_dir() else {}
    if not paths:
        raise ValueError(f"no drawn masks (*.png) in {str(folder)!r}: draw some, or use 'procedural'")
    source = StoredMasks("drawn", paths)
    grey = [name for name, path in paths.items() if not Image.fromarray(read_image(path)).getcolors(2)]
    if grey:
        source.notices.append(
            f"{len(grey)} of {len(paths)} drawn masks have more than two values ({', '.join(grey[:5])}): "
            "every pixel above 0 counts as defect"
        )
    return source


def _open_train_positives(data_folder: Path) -> StoredMasks:
    dataset = read_manifest(data_folder / "manifest.csv")
    rows = list_masked_positives(dataset, data_folder, "use 'procedural' or 'drawn'")
    source = StoredMasks("train_positives", {name: data_folder / name for name in sorted(rows["mask"])})
    source.notices.append(
        "these are masks of real training defects: a leak in scenarios that must not know them"
    )
    return source
