"""Cut and paste: real defects, turned and scaled, in good images; AdaBLDM's simplest rival."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from defaug_utils.core.pools import GeneratedImage, list_versions
from defaug_utils.masks.trimaps import TripleSet, make_triple


@dataclass(frozen=True, eq=False)
class CutPaste:
    """AdaBLDM's training triples as they are; the column `defect_source` names the image of the defect."""

    origin: ClassVar[str] = "cut_paste"
    group: ClassVar[int] = 1
    data: Path  #: folder of the data set that defects and good images come from
    triples: TripleSet  #: its own seed and count play no part

    def describe(self) -> dict:
        """The triples' sources and settings."""
        described = self.triples.describe()
        del described["seed"], described["triples"]
        return {
            "triples": described,
            "learned_from": self.triples.list_names()["defects"],
            "versions": list_versions("numpy", "opencv-python-headless"),
        }

    def make(self, indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        """One triple for each seed."""
        return [self._make_one(seed) for seed in seeds]

    def _make_one(self, seed: int) -> GeneratedImage:
        triple = make_triple(self.triples.defects, self.triples.goods, self.triples.settings, seed)
        (defect,) = {defect[2:4] for defect in self.triples.defects if defect.name == triple.defect}
        row = {
            "source_image": triple.good,
            "category": defect[0],
            "defect_type": defect[1],
            "mask_source": "few_shot",
            "defect_source": triple.defect,
        }
        return GeneratedImage(triple.image_u8, triple.mask, row)
