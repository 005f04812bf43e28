"""A new method is one class and one row: here it goes from its pool to the table of results."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from layouts import write_ksdd2

from defaug_utils import core, data, evaluation, protocol
from defaug_utils.report.results import gather_results, label_arm, summarise_results


@dataclass(frozen=True)
class Squares:
    """A white square somewhere on a good part."""

    data: Path
    origin: ClassVar[str] = "squares"
    group: ClassVar[int] = 1

    def describe(self) -> dict:
        return {"side": 8}

    def make(self, indices, seeds):
        return [self.draw_one(np.random.default_rng(seed)) for seed in seeds]

    def draw_one(self, generator) -> core.GeneratedImage:
        source = generator.choice(core.list_sources(core.read_dataset(self.data))["image"])
        image_u8 = core.read_image(self.data / source).copy()
        mask = np.zeros(image_u8.shape[:2], bool)
        top, left = generator.integers(0, np.array(mask.shape) - 8)
        mask[top : top + 8, left : left + 8] = image_u8[top : top + 8, left : left + 8] = True
        return core.GeneratedImage(image_u8, mask, {"source_image": source, "mask_source": "procedural"})


def test_from_the_pool_to_the_table_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(core.ORIGINS, "squares", core.Origin("white squares", "#AA8800", "P", "10_squares"))
    write_ksdd2(tmp_path / "ksdd2")
    parts = data.draw_validation(data.load_dataset(tmp_path / "ksdd2"), 0.3, 0)
    data.prepare_dataset(parts, tmp_path / "ksdd2", tmp_path / "data", (16, 48))
    method = Squares(tmp_path / "data")
    pool = core.make_pool(tmp_path / "squares", method, core.PoolPlan(4))
    assert core.remake(tmp_path / "squares", pool["image"][3], method).mask.sum() == 64

    (run,) = core.planned_runs(["zero-shot"], ["squares"], [4], [0])
    rows = protocol.compose_training_set(
        protocol.read_data(tmp_path), protocol.read_pools(tmp_path, run), run
    )
    plan = evaluation.ClassifierPlan("workshop", "resnet10_quarter", epochs=1)
    evaluation.finish_classifier(tmp_path, run.name, data.load_samples(rows, tmp_path), plan)

    assert summarise_results(gather_results(tmp_path))["arm"].tolist() == ["squares"]
    assert label_arm("squares") == "white squares"
