"""The embedded model's page: its training log by a script, its numbers from a file when it is built."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defaug_utils.core.files import write_png

ROOT = Path(__file__).parents[1]


def load_script(path: str):
    """A script or Sphinx extension as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw_log, measured = load_script("scripts/embedded/draw_log.py"), load_script("book/_ext/measured.py")
measure = load_script("scripts/embedded/measure.py")


def save_history(folder: Path, rows: list[tuple[int, float, float]]) -> None:
    folder.mkdir(parents=True)
    pd.DataFrame(rows, columns=["step", "seconds", "loss"]).to_csv(folder / "history.csv", index=False)


def test_a_history_whose_run_was_taken_up_again_counts_time_on_and_steps_once(tmp_path: Path):
    rows = [(20, 60.0, 4.0), (40, 120.0, 3.0), (60, 180.0, 9.0), (60, 30.0, 2.0), (80, 90.0, 1.0)]
    save_history(tmp_path / "inpainting", rows)
    history = draw_log.read_histories(tmp_path)["inpainting"]
    assert history["step"].tolist() == [20, 40, 60, 80]
    assert history["loss"].tolist() == [4.0, 3.0, 2.0, 1.0]
    assert history["minutes"].tolist() == [1.0, 2.0, 3.5, 4.5]
    (row,) = draw_log.summarize({"inpainting": history}).to_dict("records")
    assert row == {"part": "inpainting", "steps": 80, "minutes": 4, "loss at first": 4, "loss at last": 1}


def test_parts_stand_in_the_order_of_training(tmp_path: Path):
    for name in ("segmenter", "autoencoder", "later", "inpainting"):
        save_history(tmp_path / name, [(20, 1.0, 1.0)])
    assert list(draw_log.read_histories(tmp_path)) == ["autoencoder", "inpainting", "segmenter", "later"]


def test_without_any_training_the_step_before_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no history\.csv below .*train first, see make_model\.py"):
        draw_log.read_histories(tmp_path)


def test_the_script_writes_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, folder = tmp_path / "runs", tmp_path / "page"
    for name in ("autoencoder", "inpainting"):
        save_history(root / name, [(20 * k, float(k), 1 / k) for k in range(1, 60)])
        for step in (100, 200, 300, 400, 500):
            pixels = np.full((8, 24, 3), step // 4, np.uint8)
            write_png(root / name / "samples" / f"{step:06d}.png", pixels)
    (root / "measured").mkdir()
    (root / "measured" / "measurements.json").write_text('{"inpainting": {"images": 200}}')
    monkeypatch.setattr(sys, "argv", ["draw_log.py", "--root", str(root), "--folder", str(folder)])
    draw_log.main()
    page = (ROOT / "book" / "embedded_model.md").read_text(encoding="utf-8")
    for path in folder.iterdir():
        assert f"embedded_model/{path.name}" in page, path.name
    assert {path.name for path in folder.glob("*g")} == {"losses.png", "samples.jpg", "reconstructions.jpg"}
    for path in folder.glob("*g"):
        with Image.open(path) as opened:
            assert opened.width > 500
    assert json.loads((folder / "measurements.json").read_text()) == {"inpainting": {"images": 200}}
    assert pd.read_csv(folder / "log.csv")["steps"].tolist() == [1180, 1180]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    draw_log.main()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_samples_are_spread_over_the_training_with_the_first_and_the_last(tmp_path: Path):
    for step in range(10):
        write_png(tmp_path / f"{step:06d}.png", np.zeros((4, 4, 3), np.uint8))
    assert [int(path.stem) for path in draw_log.choose_samples(tmp_path, 4)] == [0, 3, 6, 9]
    assert [int(path.stem) for path in draw_log.choose_samples(tmp_path, 40)] == list(range(10))


def test_placeholders_are_filled_in():
    values = {"images": 200, "oval": {"found": 0.825}}
    assert measured.fill_in("{images} images, {oval.found:.1%}", values) == "200 images, 82.5%"
    assert measured.fill_in("{term}`mask` and {oval.found}", values | {"term": 1}) == "1`mask` and 0.825"
    assert measured.fill_in("no number", values) == "no number"


@pytest.mark.parametrize("path", ["other", "oval.lost", "images.found"])
def test_a_placeholder_that_leads_nowhere_is_named(path: str):
    with pytest.raises(KeyError, match=path):
        measured.fill_in("{" + path + "}", {"images": 200, "oval": {"found": 0.8}})


def test_no_measured_number_is_typed_into_the_page():
    """The tables ask for values by their path, and measure.py writes values of these names."""
    page = (ROOT / "book" / "embedded_model.md").read_text(encoding="utf-8")
    tables = page.split("```{measured} embedded_model/measurements.json\n")[1:]
    assert len(tables) == 2
    written = (ROOT / "scripts" / "embedded" / "measure.py").read_text(encoding="utf-8")
    for table in tables:
        names = [match[1].split(".") for match in measured.PLACEHOLDER.finditer(table.split("```")[0])]
        assert len(names) >= 5
        for name in {part.removeprefix("psnr_") for path in names for part in path}:
            assert name.split("_db")[0] in written, name


MEASUREMENTS = ROOT / "book" / "embedded_model" / "measurements.json"


@pytest.mark.skipif(not MEASUREMENTS.is_file(), reason="the measurements come with the weights")
def test_the_committed_measurements_fill_the_page():
    page = (ROOT / "book" / "embedded_model.md").read_text(encoding="utf-8")
    values = json.loads(MEASUREMENTS.read_text(encoding="utf-8"))
    for table in page.split("```{measured} embedded_model/measurements.json\n")[1:]:
        assert "{" not in measured.fill_in(table.split("```")[0], values)


def test_colours_that_follow_the_noise_are_explained_and_others_are_not():
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((60, 4, 6, 2))
    means = noise.mean((2, 3))
    images = np.zeros((60, 4, 4, 3)) + 128
    images[..., 0] += (20 * means[:, 0] - 5 * means[:, 3])[:, None, None]
    images[..., 1] += generator.standard_normal(60)[:, None, None]
    images[..., 2] += means[:, 1, None, None] * np.array([1, -1, 1, -1])  # within an image, not between them
    images[..., 2] += (3 * means[:, 1] + generator.normal(0, 3 * means[:, 1].std(), 60))[:, None, None]
    found = measure.explain_colours(noise, images)
    assert found["red"] == 1 and found["green"] < 0.2 and 0.3 < found["blue"] < 0.7
    assert found["explained_levels"] < found["colour_levels"]
    assert found["colour_levels"] == pytest.approx(images.mean((1, 2)).var(0).mean() ** 0.5, abs=1e-3)


def test_kept_power_is_told_band_by_band():
    columns = np.arange(64)
    fine, coarse = (np.cos(2 * np.pi * cycles * columns / 64) for cycles in (21, 6))
    theirs = np.broadcast_to((fine + coarse)[:, None], (2, 32, 64, 3))
    assert set(measure.measure_bands(theirs, theirs).values()) == {1.0}
    ours = np.broadcast_to((0.5 * fine + coarse)[:, None], (2, 32, 64, 3)) + 7
    found = measure.measure_bands(ours, theirs)
    assert found["2_to_4_pixels"] == pytest.approx(0.25, abs=1e-3)
    assert found["8_to_16_pixels"] == pytest.approx(1.0, abs=1e-3)
