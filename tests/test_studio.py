"""The studio without a browser: what it paints, keeps, refuses and can make again."""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import ipywidgets
import numpy as np
import pandas as pd
import pytest

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import ManifestError, make_manifest, read_manifest, write_manifest
from defaug_utils.core.origins import Run
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, load_inpainter
from defaug_utils.protocol.review_store import PoolReview
from defaug_utils.protocol.run_folder import read_pools
from defaug_utils.widgets import kept_pictures, studio_panel
from defaug_utils.widgets import studio as studio_module
from defaug_utils.widgets.studio import Studio, StudioRequest
from defaug_utils.widgets.studio_panel import Stopped, StudioPanel

SIZE = (16, 48)
NAMES = ["train/0.png", "train/1.png"]


@pytest.fixture(scope="module")
def inpainter(inpainting_folder: Path) -> Inpainter:
    return load_inpainter(inpainting_folder)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    rows = [{"image": name, "label": "negative", "split": "train", "origin": "real"} for name in NAMES]
    rows.append(rows[0] | {"image": "test/2.png", "split": "test"})
    for row in rows:
        write_png(tmp_path / "data" / row["image"], generator.integers(60, 200, (48, 16, 3), dtype=np.uint8))
    write_manifest(make_manifest(rows), tmp_path / "data" / "manifest.csv")
    return tmp_path


def make_mask(row: int = 20) -> np.ndarray:
    mask = np.zeros((48, 16), bool)
    mask[row : row + 9, 3:12] = True
    return mask


@pytest.fixture
def open_studio(run: Path, inpainter: Inpainter) -> Callable[[], Studio]:
    def open_it() -> Studio:
        return Studio(run / "diag_studio", run / "data", inpainter, InpaintSettings(SIZE, 4, 2.0))

    return open_it


@pytest.fixture
def studio(open_studio: Callable[[], Studio]) -> Studio:
    return open_studio()


@pytest.fixture
def panel(studio: Studio, run: Path) -> StudioPanel:
    made = StudioPanel(studio, run / "masks")
    made.prompt.value, made.steps.value, made.count.value = "crack", 4, 2
    return made


def paint_in(panel: StudioPanel) -> None:
    panel.generate()
    panel.worker.join(60)
    assert not panel.worker.is_alive()


def ask(**changes: object) -> StudioRequest:
    return StudioRequest(
        **{"source_image": NAMES[0], "mask": make_mask(), "prompt": "crack", "steps": 4} | changes
    )


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_pictures_differ_by_seed_alone_and_only_under_the_mask(studio: Studio):
    images = list(studio.paint(ask(seed=5), 3))
    assert [image.row["seed"] for image in images] == [5, 6, 7]
    (alone,) = studio.paint(ask(seed=6))
    np.testing.assert_array_equal(alone.after_u8, images[1].after_u8)
    for image in images:
        changed = (image.before_u8 != image.after_u8).any(axis=2)
        assert changed.any() and not changed[~make_mask()].any()
    assert not np.array_equal(images[0].after_u8, images[1].after_u8)
    assert not studio.folder.exists()


def test_what_is_kept_is_made_again_bit_for_bit_by_another_session(studio: Studio, open_studio):
    for number, image in enumerate(studio.paint(ask(guidance=3.0, negative_prompt="dark"), 2)):
        studio.decide(image, number == 0, "a good one" if number == 0 else "not, this")
    studio.decide(next(studio.paint(ask(source_image=NAMES[1], mask=make_mask(3), strength=0.6))), True)
    later = open_studio()
    kept = later.read_kept()
    assert list(kept["accepted"]) == [True, False, True]
    assert list(kept["reviewer_note"])[:2] == ["a good one", "not, this"]
    assert set(kept["origin"]) == {"diag"} and set(kept["mask_source"]) == {"drawn"}
    assert len(later.read_recipes()) == 2 == kept["recipe"].nunique()
    for row in kept.to_dict("records"):
        np.testing.assert_array_equal(later.remake(row), read_image(later.folder / row["image"]))
        loaded = later.load(row)
        np.testing.assert_array_equal(loaded.request.mask, read_mask(later.folder / row["mask"]))
        (again,) = later.paint(loaded.request)
        np.testing.assert_array_equal(again.after_u8, loaded.after_u8)


def test_a_second_decision_replaces_the_first(studio: Studio, open_studio):
    (image,) = studio.paint(ask())
    kept = studio.decide(image, True, "fine")
    assert kept.row["image"] == "images/000000.png"
    studio.decide(image, False, "no: too faint")
    (loaded,) = [open_studio().load(row) for row in studio.read_kept().to_dict("records")]
    assert (loaded.row["accepted"], loaded.row["reviewer_note"]) == (False, "no: too faint")
    open_studio().decide(loaded, True)
    assert list(studio.read_kept()["accepted"]) == [True]
    assert len(list((studio.folder / "images").iterdir())) == 1


def test_two_sessions_at_once_keep_the_decisions_of_both(studio: Studio, open_studio):
    images = list(studio.paint(ask(), 8))

    def decide_all(session: Studio, mine: list) -> None:
        for image in mine:
            session.decide(image, True)

    threads = [Thread(target=decide_all, args=(open_studio(), images[half::2])) for half in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    kept = read_manifest(studio.folder / "manifest.csv", check_files=True)
    assert sorted(kept["seed"]) == list(range(8))
    for row in kept.to_dict("records"):
        np.testing.assert_array_equal(read_image(studio.folder / row["image"]), images[row["seed"]].after_u8)


def test_a_changed_negative_or_mask_is_not_taken_for_the_same(studio: Studio):
    (row,) = [studio.decide(image, True).row for image in studio.paint(ask())]
    write_png(studio.folder / row["mask"], make_mask(5))
    write_png(studio.data_folder / NAMES[0], np.full((48, 16, 3), 90, np.uint8))
    with pytest.raises(ValueError, match=r"images/000000\.png: its negative and mask differ"):
        studio.remake(row)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mask": np.zeros((48, 16), bool)}, "the mask is empty: draw where the defect goes"),
        ({"mask": np.ones((48, 16), bool)}, "covers everything"),
        ({"mask": np.eye(9, dtype=bool)}, "use fit_mask"),
        ({"prompt": " "}, "a prompt is empty"),
        ({"prompt": "crack " * 30}, "has 152 tokens, the model's limit is 60"),
        ({"negative_prompt": "dark " * 30}, "the model's limit is 60"),
        ({"source_image": "test/2.png"}, "is not a training negative"),
        ({"steps": 1, "strength": 0.3}, "leaves no step"),
    ],
)
def test_requests_that_make_no_sense_are_told(studio: Studio, changes: dict, told: str):
    with pytest.raises(ValueError, match=told):
        next(studio.paint(ask(**changes)))


def test_what_a_step_raises_ends_the_painting_and_the_next_one_is_unharmed(studio: Studio):
    (whole,) = studio.paint(ask())
    steps = []

    def stop_at_second() -> None:
        steps.append(1)
        if len(steps) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        next(studio.paint(ask(), on_step=stop_at_second))
    assert len(steps) == 2
    (again,) = studio.paint(ask(), on_step=lambda: None)
    np.testing.assert_array_equal(again.after_u8, whole.after_u8)


def test_accepted_pictures_join_the_diag_pool_of_the_run(studio: Studio, run: Path):
    (run / "diag").mkdir()
    planned = Run("zero-shot", "diag", 2, 0)
    pool = {"image": "images/9.png", "label": "positive", "split": "train", "origin": "diag"}
    for number, image in enumerate(studio.paint(ask(), 3)):
        studio.decide(image, number != 1)
    assert read_pools(run, planned) == {}
    write_manifest(make_manifest([pool]), run / "diag" / "manifest.csv")
    drawn = read_pools(run, planned)["diag"]
    paths = ["diag/images/9.png", "diag_studio/images/000000.png", "diag_studio/images/000002.png"]
    assert list(drawn["image"]) == paths
    assert list(drawn["mask"])[1:] == [path.replace("images", "masks") for path in paths[1:]]


def test_the_panel_paints_keeps_and_finds_everything_again(panel: StudioPanel, open_studio, run: Path):
    panel.drawer.canvas.value = make_mask()
    paint_in(panel)
    assert "2 painted" in panel.message.value
    assert [card.image.request.seed for card in panel.cards] == [1, 0]
    assert read_manifest(run / "masks" / "manifest.csv")["source_image"].tolist() == [NAMES[0]]
    panel.cards[0].note.value = "right where it should be"
    panel.cards[0].accept_button.click()
    panel.cards[1].reject_button.click()
    panel.other_button.click()
    panel.worker.join(60)
    assert [card.image.request.seed for card in panel.cards] == [3, 2, 1, 0]
    later = StudioPanel(open_studio(), run / "masks")
    assert "1 accepted, 1 rejected" in later.summary.value
    assert [card.image.row["accepted"] for card in later.cards] == [False, True]
    assert later.cards[1].note.value == "right where it should be"
    np.testing.assert_array_equal(later.drawer.canvas.mask, make_mask())
    later.drawer.next_button.click()
    later.prompt.value = "something else"
    later.cards[1].reuse_button.click()
    assert (later.drawer.chooser.value, later.prompt.value, later.seed.value) == (NAMES[0], "crack", 1)
    np.testing.assert_array_equal(later.drawer.canvas.mask, make_mask())
    row = later.studio.read_kept().iloc[0].to_dict()  # painted in a thread, remade in this one
    np.testing.assert_array_equal(later.studio.remake(row), panel.cards[2].image.after_u8)


def test_stop_ends_between_steps_and_keeps_what_is_finished(panel: StudioPanel, monkeypatch):
    panel.drawer.canvas.value, panel.count.value = make_mask(), 5
    steps, on_step = [], panel._on_step

    def press_stop_in_the_second_image() -> None:
        steps.append(1)
        if len(steps) == 5:
            panel.stop_button.click()
        on_step()

    monkeypatch.setattr(panel, "_on_step", press_stop_in_the_second_image)
    paint_in(panel)
    assert len(steps) == 5
    assert len(panel.cards) == 1
    assert "stopped: 1 of 5 finished" in panel.message.value
    assert panel.stop_button.disabled and not panel.generate_button.disabled
    monkeypatch.undo()
    panel.count.value = 1
    paint_in(panel)
    assert len(panel.cards) == 2


def test_the_panel_tells_what_is_wrong_and_leaves_what_is_there(panel: StudioPanel, run: Path, monkeypatch):
    panel.generate()
    assert "the mask is empty" in panel.message.value
    panel.drawer.canvas.value, panel.prompt.value = make_mask(), "crack " * 30
    panel.generate()
    assert "the model&#x27;s limit is 60" in panel.message.value
    panel.prompt.value = "crack"
    paint_in(panel)
    panel.cards[0].accept_button.click()
    before = read_all(run)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(studio_module, "write_png", refuse)  # root may write anywhere
    panel.cards[1].accept_button.click()
    assert "can&#x27;t be written to" in panel.message.value
    assert "accepted" not in panel.cards[1].image.row
    monkeypatch.undo()
    assert read_all(run) == before
    (run / "data" / NAMES[0]).unlink()
    panel.generate()
    assert "not a readable image" in panel.message.value
    assert len(panel.cards) == 2 and panel.drawer.canvas.mask.any()


def test_a_picture_that_vanished_is_told_at_opening(panel: StudioPanel, open_studio, run: Path):
    panel.drawer.canvas.value = make_mask()
    paint_in(panel)
    for card in panel.cards:
        card.accept_button.click()
    (run / "diag_studio/images/000000.png").unlink()
    later = StudioPanel(open_studio(), run / "masks")
    assert "1 stored images can&#x27;t be shown" in later.message.value
    assert len(later.cards) == 1
    (run / "diag_studio/manifest.csv").write_text("image\n")
    broken = StudioPanel(open_studio(), run / "masks")
    assert "not a readable table" in broken.message.value
    with pytest.raises(ManifestError):
        broken.studio.read_kept()


def test_the_recipe_holds_everything_else(studio: Studio):
    studio.decide(next(studio.paint(ask(guidance=4.5, strength=0.8))), True)
    (recipe,) = json.loads((studio.folder / "recipe.json").read_text()).values()
    assert recipe["settings"] | {"guidance": 4.5, "strength": 0.8, "steps": 4} == recipe["settings"]
    assert recipe["settings"]["effective_steps"] == 3
    assert recipe["model"]["fingerprint"] and "diffusers" in recipe["versions"]


def test_on_a_grey_negative_a_picture_is_grey_and_its_recipe_says_so(run: Path, studio: Studio):
    path = run / "data" / NAMES[0]
    write_png(path, read_image(path)[..., :1].repeat(3, axis=2))
    for name, is_grey in zip(NAMES, (True, False), strict=True):
        (made,) = studio.paint(ask(source_image=name))
        assert (made.after_u8 == made.after_u8[..., :1]).all() == is_grey
        kept = studio.decide(made, accepted=True)
        recipe = studio.read_recipes()[kept.row["recipe"]]
        assert recipe.get("stay_grey", False) == is_grey


def test_a_decision_costs_one_row_however_many_are_kept(studio: Studio, open_studio, monkeypatch):
    images = list(studio.paint(ask(), 5))
    studio.decide(images[0], True)
    before, read = (studio.folder / "manifest.csv").read_bytes(), []
    monkeypatch.setattr(kept_pictures, "read_manifest", lambda path: read.append(path) or read_manifest(path))
    for image in images[1:]:
        studio.decide(image, True)
    studio.decide(images[2], False, "two\nlines")
    assert studio.kept.count() == (4, 1)
    assert not read and (studio.folder / "manifest.csv").read_bytes() == before
    kept = studio.read_kept()
    assert list(kept["accepted"]) == [True, True, False, True, True]
    assert list(kept["reviewer_note"]) == ["", "", "two lines", "", ""]
    later = open_studio()
    assert (later.folder / "manifest.csv").read_bytes() != before, "opening takes the journals in"
    assert sorted(path.name for path in later.folder.iterdir() if path.suffix != ".lock") == [
        *("images", "manifest.csv", "masks", "recipe.json")
    ]
    pd.testing.assert_frame_equal(later.read_kept(), kept)


def test_the_studio_and_a_review_of_its_pictures_see_each_other(studio: Studio):
    first, second = studio.paint(ask(), 2)
    studio.decide(first, True)
    review = PoolReview(studio.folder)
    studio.decide(second, True)
    review.reload()
    review.decide("images/000001.png", False)
    review.decide("images/000000.png", False)
    assert studio.kept.count() == (0, 2)
    studio.decide(first, True)
    assert studio.kept.count() == (1, 1)
    review.reload()
    assert review.counts[True] == review.counts[False] == 1
    review.fold()
    assert studio.decide(second, True).row["image"] == "images/000001.png"
    assert list(read_manifest(studio.folder / "manifest.csv")["accepted"]) == [True, True]


def test_widgets_of_pictures_that_are_no_longer_shown_are_closed(panel: StudioPanel, monkeypatch):
    monkeypatch.setattr(studio_panel, "MAX_CARDS", 2)
    panel.drawer.canvas.value, numbers = make_mask(), []
    for _ in range(3):
        paint_in(panel)
        panel.cards[0].accept_button.click()
        panel.seed.value += 2
        numbers.append(len(ipywidgets.widgets.widget._instances))
    assert numbers[0] == numbers[1] == numbers[2]
    assert len(panel.cards) == 2 and panel.cards[0].comm is not None
