"""Cut and paste: real defects, rotated and scaled, in good images; the simplest baseline for AdaBLDM."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from defaug_utils.core.pools import GeneratedImage, list_versions
from defaug_utils.masks.trimaps import TripleSet
from defaug_utils.methods.pasting import describe_pastes, paste_by_seed


@dataclass(frozen=True, eq=False)
class CutPaste:
    """AdaBLDM's training triples, unchanged; the column `defect_source` names the image of the defect."""

    origin: ClassVar[str] = "cut_paste"
    group: ClassVar[int] = 1
    data: Path  #: folder of the data set that defects and good images come from
    triples: TripleSet  #: its own seed and count are not used

    def describe(self) -> dict:
        """The triples' sources and settings."""
        versions = list_versions("numpy", "opencv-python-headless")
        return {**describe_pastes(self.triples), "versions": versions}

    def make(self, indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        """One triple for each seed."""
        pastes = [paste_by_seed(self.triples, seed) for seed in seeds]
        return [GeneratedImage(triple.image_u8, triple.mask, row) for triple, row in pastes]
