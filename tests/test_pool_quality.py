"""Pools of a run beside its real positives: which images are read, and what the numbers say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.evaluation.distances import compare_features
from defaug_utils.evaluation.pool_quality import REAL, UNTOUCHED, measure_pools
from defaug_utils.protocol.run_folder import list_pools
from defaug_utils.report.sentences import describe_quality
from defaug_utils.report.tables import format_digits, layout_quality, style_table
from defaug_utils.training.backbones import FeatureNetwork, open_features

WEIGHTS = Path(__file__).parents[1] / "models" / "backbones" / "resnet10_quarter.safetensors"
N_REAL, N_POOL = 8, 6


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return open_features("resnet10_quarter", str(WEIGHTS))


def draw_surface(seed: int, brightness: int = 120) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(brightness, 12, (48, 24, 3))
    return noise.clip(0, 255).astype(np.uint8)


def draw_defect(seed: int) -> np.ndarray:
    image_u8 = draw_surface(seed)
    image_u8[10 : 30 + seed % 5, 6 : 12 + seed % 3] = 240
    return image_u8


def draw_stripes(seed: int) -> np.ndarray:
    image_u8 = draw_surface(70 + seed)
    image_u8[::4] = 255
    image_u8[2::4] = 0
    return image_u8


def write_pool(
    run: Path, name: str, images: list[np.ndarray], mask_source: str = "", **fields: object
) -> None:
    rows = []
    for index, image_u8 in enumerate(images):
        write_png(run / name / f"images/{index:06d}.png", image_u8)
        rows.append({"image": f"images/{index:06d}.png", "label": "positive", "split": "train"})
    rows = [row | {"origin": name.split("/")[0], "mask_source": mask_source} | fields for row in rows]
    write_manifest(make_manifest(rows), run / name / "manifest.csv")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Real images of both kinds; the test positives are broken files, so that reading one fails."""
    rows = []
    for split, label, count in (
        ("train", "positive", N_REAL),
        ("train", "negative", 10),
        ("val", "positive", 2),
        ("test", "positive", 2),
    ):
        for index in range(count):
            image = f"images/{split}-{label}-{index}.png"
            rows.append({"image": image, "label": label, "split": split, "origin": "real"})
            path = tmp_path / "data" / image
            if split == "train":
                write_png(path, draw_defect(index) if label == "positive" else draw_surface(50 + index))
            else:
                path.write_bytes(b"not to be read")
    write_manifest(make_manifest(rows), tmp_path / "data" / "manifest.csv")
    return tmp_path


def pick(quality: pd.DataFrame, name: str, layer: str = "eighth") -> pd.Series:
    return quality[(quality["set"] == name) & (quality["layer"] == layer)].iloc[0]


def test_pools_are_found_by_their_names_and_need_not_be_there(run, network):
    assert list_pools(run) == {}
    quality = measure_pools(run, network, draws=4)
    assert quality["set"].unique().tolist() == [REAL, UNTOUCHED]
    assert "There is no pool" in describe_quality(quality)
    write_pool(run, "diag", [draw_defect(90)])
    write_pool(run, "ddpm/few-shot-seed1", [draw_defect(91)])
    write_pool(run, "ddpm/full-shot", [draw_defect(92)])
    assert list(list_pools(run)) == ["ddpm/few-shot-seed1", "ddpm/full-shot", "diag"]


def test_a_pool_of_such_defects_is_nearer_than_one_of_others(run, network):
    write_pool(run, "memseg", [draw_stripes(seed) for seed in range(N_POOL)])
    write_pool(run, "diag", [draw_defect(80 + seed) for seed in range(N_POOL)])
    quality = measure_pools(run, network, draws=10)
    good, bad, untouched = (pick(quality, name) for name in ("diag", "memseg", UNTOUCHED))
    for measure in ("fd", "fd_equal", "kd"):
        assert good[measure] < 0.1 * min(untouched[measure], bad[measure])
    assert (good["n"], good["n_real"], good["n_equal"]) == (N_POOL, N_REAL, N_REAL // 2)
    assert set(quality["fd_name"]) == {"FD-resnet10_quarter"}
    assert "4 images on each side" in describe_quality(quality)


def test_the_sentence_says_when_painting_nothing_would_win(run, network):
    write_pool(run, "diag", [draw_defect(80 + seed) for seed in range(N_POOL)])
    write_pool(run, "memseg", [draw_stripes(seed) for seed in range(N_POOL)])
    quality = measure_pools(run, network, draws=2)
    values = {REAL: 1.0, UNTOUCHED: 2.0, "diag": 1.5, "memseg": 1.75}
    assert "Every pool is closer" in describe_quality(quality.assign(fd_equal=quality["set"].map(values)))
    values |= {"memseg": 2.5}
    text = describe_quality(quality.assign(fd_equal=quality["set"].map(values)))
    assert "closer than 1 of 2 pools" in text and "paints nothing would win" in text


def test_the_distance_is_that_of_the_features_of_all_images(run, network):
    images = [draw_defect(80 + seed) for seed in range(N_POOL)]
    write_pool(run, "diag", images)
    quality = measure_pools(run, network, draws=2)
    features = [
        network.read_maps(np.stack(side))["eighth"].mean(dim=(2, 3)).double().numpy()
        for side in (images, [draw_defect(seed) for seed in range(N_REAL)])
    ]
    assert pick(quality, "diag")["fd"] == pytest.approx(compare_features(*features), rel=1e-3)
    again = measure_pools(run, network, draws=2, batch_size=3)
    assert pick(again, "diag")["fd_equal"] == pytest.approx(pick(quality, "diag")["fd_equal"], rel=1e-3)


def test_the_floor_is_of_two_parts_without_a_common_image(run, network):
    floor = pick(measure_pools(run, network, draws=6), REAL)
    assert np.isnan(floor["fd"]) and floor["fd_equal"] > 0 and floor["fd_equal_std"] > 0
    assert floor["n"] == N_REAL


def test_rejected_images_are_not_measured_and_few_give_no_spread(run, network):
    write_pool(run, "memseg", [draw_defect(60), draw_defect(61)])
    write_pool(run, "diag", [draw_defect(62)], accepted=False)
    quality = measure_pools(run, network, draws=2)
    assert "diag" not in set(quality["set"])
    assert pick(quality, "memseg")["n"] == 2
    assert np.isnan(pick(quality, "memseg")["fd_equal"]), "two images can't be compared four by four"


def test_masks_of_real_defects_are_marked(run, network):
    write_pool(run, "diag", [draw_defect(80 + seed) for seed in range(N_POOL)], "train_positives")
    quality = measure_pools(run, network, draws=2)
    assert pick(quality, "diag")["leaks_in"] == "zero-shot, few-shot"
    first = quality[quality["layer"] == quality["layer"].iloc[0]]
    table = layout_quality(first)
    assert table.index.get_level_values("set").tolist() == [REAL, UNTOUCHED, "diag †"]
    assert table.index.get_level_values("masks").tolist() == ["–", "–", "train_positives"]
    html = style_table(table, "Pools.").to_html()
    assert "† a leak" in html and f"n + {N_REAL}" in html and "4 + 4" in html
    assert "FID" not in html


def test_a_pool_of_one_scenario_leaks_in_no_other(run, network):
    for name in ("adabldm/few-shot-seed0", "ddpm/zero-shot"):
        write_pool(run, name, [draw_defect(80 + seed) for seed in range(N_POOL)], "few_shot")
    quality = measure_pools(run, network, draws=2)
    assert pick(quality, "adabldm/few-shot-seed0")["leaks_in"] == ""
    assert pick(quality, "ddpm/zero-shot")["leaks_in"] == "zero-shot"


def test_numbers_have_the_digits_that_their_spread_supports():
    assert format_digits(0.012345, 0.00678) == "0.0123 ± 0.0068"
    assert format_digits(1.2345, 4.5678) == "1.2 ± 4.6"
    assert format_digits(123.45, 45.678) == "123 ± 46"
    assert format_digits(0.012345) == format_digits(0.012345, 0.0) == "0.0123"
    assert format_digits(float("nan")) == "–"


def test_without_a_real_positive_there_is_nothing_to_compare_with(run, network):
    path = run / "data" / "manifest.csv"
    path.write_text(path.read_text().replace(",positive,train", ",positive,val"))
    with pytest.raises(ValueError, match="no real positive"):
        measure_pools(run, network)
