"""A function as a method, for pools of images that are drawn and not generated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from defaug_utils.core.pools import GeneratedImage


@dataclass
class Drawing:
    """Takes indices and seeds, returns one image each."""

    make: Callable[[Sequence[int], Sequence[int]], list[GeneratedImage]]
    origin: str = "diag"
    recipe: dict = field(default_factory=dict)
    group: int = 1
    data: Path | None = None

    def describe(self) -> dict:
        return self.recipe
