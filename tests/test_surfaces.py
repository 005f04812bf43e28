import errno
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import image_seed
from defaug_utils.data import surfaces
from defaug_utils.data.datasets import load_dataset
from defaug_utils.data.surfaces import DEFECT_TYPES, draw_surface, write_surfaces

SMALL = (32, 96)
ONE_OF_EACH = {"train_count": 10, "test_count": 6, "seed": 3, "positive_share": 0.5, "size": SMALL}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**63 - 1),
    defect_type=st.sampled_from(DEFECT_TYPES),
    size=st.tuples(st.integers(16, 90), st.integers(16, 200)),
    severity=st.none() | st.floats(0, 1),
)
def test_mask_is_exactly_what_the_defect_changed(seed, defect_type, size, severity):
    with_defect = draw_surface(seed, defect_type, size, severity)
    without = draw_surface(seed, None, size)
    assert with_defect.image_u8.shape == (size[1], size[0], 3)
    assert with_defect.image_u8.dtype == np.uint8 and with_defect.mask.dtype == bool
    changed = (with_defect.image_u8 != without.image_u8).any(axis=2)
    np.testing.assert_array_equal(with_defect.mask, changed)
    assert changed.any() and not changed.all()
    assert not without.mask.any()


@pytest.mark.parametrize("size", [(64, 192), (192, 64), (33, 97)])
@pytest.mark.parametrize("defect_type", [None, *DEFECT_TYPES])
def test_same_call_gives_same_surface(defect_type, size):
    first, second = (draw_surface(5, defect_type, size) for _ in range(2))
    np.testing.assert_array_equal(first.image_u8, second.image_u8)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.defect_type == defect_type and first.severity == second.severity
    assert (first.severity is None) == (defect_type is None)
    assert (first.image_u8 != draw_surface(6, defect_type, size).image_u8).mean() > 0.5


@pytest.mark.parametrize("defect_type", DEFECT_TYPES)
def test_severity_makes_a_defect_clearer_and_keeps_its_sign(defect_type):
    sign = 1 if defect_type in ("scratch", "white_mark") else -1
    for seed in range(2):
        clean = draw_surface(seed).image_u8.astype(int)
        strengths = []
        for severity in (0, 0.5, 1):
            drawn = draw_surface(seed, defect_type, severity=severity)
            change = (drawn.image_u8.astype(int) - clean)[drawn.mask]
            assert (np.sign(change) * sign >= 0).all()
            strengths.append(np.abs(change).max())
        assert strengths[0] * 1.4 < strengths[1] and strengths[1] * 1.1 < strengths[2]


def test_severities_cover_their_range_evenly():
    drawn = np.sort([draw_surface(seed, "pit", (16, 16)).severity for seed in range(100)])
    assert np.abs(drawn - (np.arange(100) + 0.5) / 100).max() < 0.15


def test_defects_are_small_and_lie_anywhere():
    masks = np.stack([draw_surface(k, DEFECT_TYPES[k % 5]).mask for k in range(40)])
    assert 0.0003 < np.median(masks.mean(axis=(1, 2))) < 0.03 and masks.mean(axis=(1, 2)).max() < 0.2
    thirds = [part.any(axis=(1, 2)).mean() for part in np.array_split(masks, 3, axis=1)]
    assert min(thirds) > 0.15


def test_harmless_chips_and_grain_are_on_parts_without_defect():
    images = np.stack([draw_surface(seed).image_u8 for seed in range(30)]).astype(float).mean(axis=3)
    rim = np.concatenate([images[:, :, :2], images[:, :, -2:]], axis=2)
    has_chip = rim.max(axis=(1, 2)) > images[:, :, 10:-10].max(axis=(1, 2)) + 10
    assert 0.1 < has_chip.mean() < 0.7
    across, along = (np.abs(np.diff(images, axis=axis)).mean() for axis in (2, 1))
    assert across > 1.2 * along  # the grain runs along the part
    assert 110 < images.mean() < 180 and images.mean(axis=(1, 2)).std() > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"defect_type": "dent"}, "'dent' is not one of scratch, crack"),
        ({"size": (128, 8)}, "at least 16 pixels"),
        ({"defect_type": "pit", "severity": 1.2}, "severity 1.2"),
    ],
)
def test_wrong_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_surface(0, **arguments)


def test_written_data_set_is_read_by_the_ksdd2_loader(tmp_path):
    write_surfaces(tmp_path, **ONE_OF_EACH)
    manifest = load_dataset(tmp_path, "ksdd2")
    counts = manifest.groupby(["split", "label"]).size().to_dict()
    assert counts == {(s, k): n for s, n in (("train", 5), ("test", 3)) for k in ("negative", "positive")}
    assert set(manifest["image"]) == {f"train/{10000 + k}.png" for k in range(10)} | {
        f"test/{20000 + k}.png" for k in range(6)
    }
    drawn = pd.read_csv(tmp_path / "surfaces.csv", keep_default_na=False).set_index("image")
    assert sorted(
        drawn["defect_type"][drawn.index.str.startswith("train") & (drawn["defect_type"] != "")]
    ) == (sorted(DEFECT_TYPES))
    labels = dict(zip(manifest["image"], manifest["label"], strict=True))
    assert {image for image, kind in drawn["defect_type"].items() if kind} == {
        image for image, label in labels.items() if label == "positive"
    }


def test_written_files_are_the_drawn_surfaces(tmp_path):
    write_surfaces(tmp_path, **ONE_OF_EACH)
    for image, kind, severity in pd.read_csv(tmp_path / "surfaces.csv").itertuples(index=False):
        number = int(image.split("/")[1].removesuffix(".png"))
        drawn = draw_surface(image_seed(3, number), kind if isinstance(kind, str) else None, SMALL)
        np.testing.assert_array_equal(read_image(tmp_path / image), drawn.image_u8)
        np.testing.assert_array_equal(read_mask(tmp_path / image.replace(".png", "_GT.png")), drawn.mask)
        assert drawn.severity is None or severity == pytest.approx(drawn.severity, abs=1e-4)


def test_positives_are_spread_and_types_balanced(tmp_path, monkeypatch):
    monkeypatch.setattr(surfaces, "_write_surface", lambda *_: None)
    write_surfaces(tmp_path, 600, 400, seed=0)
    drawn = pd.read_csv(tmp_path / "surfaces.csv")
    for split, positives in (("train", 60), ("test", 40)):
        part = drawn[drawn["image"].str.startswith(split)].reset_index(drop=True)
        assert (part["defect_type"].value_counts() == positives // 5).all()
        places = part.index[part["defect_type"].notna()] / len(part)
        assert len(places) == positives and 0.35 < places.to_numpy().mean() < 0.65


def test_an_interrupted_call_goes_on_to_the_same_result(tmp_path):
    class KilledError(Exception):
        pass

    def kill(_):
        if sum(1 for _ in tmp_path.rglob("killed/*/*.png")) > 8:
            raise KilledError

    with pytest.raises(KilledError):
        write_surfaces(tmp_path / "killed", **ONE_OF_EACH, on_image=kill)
    assert not (tmp_path / "killed" / "surfaces.json").exists()
    first = next((tmp_path / "killed" / "train").glob("*_GT.png"))
    first.unlink()
    reported = []
    write_surfaces(tmp_path / "killed", **ONE_OF_EACH, on_image=reported.append)
    write_surfaces(tmp_path / "whole", **ONE_OF_EACH)
    assert reported == [1] * 16
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_folder_is_left_alone(tmp_path, monkeypatch):
    write_surfaces(tmp_path, **ONE_OF_EACH)
    before = contents(tmp_path)
    monkeypatch.setattr(surfaces, "draw_surface", lambda *_: pytest.fail("drawn again"))
    write_surfaces(tmp_path, **ONE_OF_EACH)
    assert contents(tmp_path) == before
    assert json.loads(before["surfaces.json"])["seed"] == 3 and "surfaces.part.json" not in before


@pytest.mark.parametrize("is_finished", [True, False])
def test_other_settings_in_the_folder_are_refused(tmp_path, is_finished):
    write_surfaces(tmp_path, **ONE_OF_EACH)
    if not is_finished:
        (tmp_path / "surfaces.json").rename(tmp_path / "surfaces.part.json")
    with pytest.raises(ValueError, match=r"seed \(3, requested 4\).*delete the folder"):
        write_surfaces(tmp_path, **ONE_OF_EACH | {"seed": 4})


def test_foreign_images_are_not_mixed_with(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"other files, such as .*mine\.png"):
        write_surfaces(tmp_path, **ONE_OF_EACH)


@pytest.mark.parametrize(
    "wrong", [{"train_count": 10001}, {"test_count": -1}, {"positive_share": 1.5}, {"size": (8, 8)}]
)
def test_numbers_that_make_no_sense_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_surfaces(tmp_path / "new", **ONE_OF_EACH | wrong)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing_taken_for_done(tmp_path, monkeypatch):
    written = []

    def fill_disk(path, pixels):
        written.append(path)
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space left"):
        patched.setattr(surfaces, "write_png", fill_disk)
        write_surfaces(tmp_path, **ONE_OF_EACH)
    assert written and not (tmp_path / "surfaces.json").exists()
    write_surfaces(tmp_path, **ONE_OF_EACH)
    assert len(load_dataset(tmp_path)) == 16
