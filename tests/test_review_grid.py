"""The review grid without a browser: pages, filters, decisions and what goes wrong."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_review_store import COUNT, NAMES, make_drawing, make_pool, stored

from defaug_utils.core.files import write_png
from defaug_utils.protocol.review_store import PoolReview
from defaug_utils.widgets import review_grid
from defaug_utils.widgets.review_grid import ReviewGrid, draw_thumbnail


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return make_pool(tmp_path / "diag")


def shown(grid: ReviewGrid) -> list[str]:
    return [card["image"] for card in grid.cards]


def press(grid: ReviewGrid, kind: str, **content: object) -> None:
    """What the browser sends."""
    grid._handle_custom_msg({"kind": kind, "number": "view-1", **content}, [])


def test_a_thumbnail_is_small_and_its_outline_runs_outside_the_mask(tmp_path: Path):
    mask = np.zeros((400, 100), bool)
    mask[100:200, 20:60] = True
    write_png(tmp_path / "image.png", np.full((400, 100, 3), 77, np.uint8))
    write_png(tmp_path / "mask.png", mask)
    drawn = draw_thumbnail(tmp_path, "image.png", "mask.png", 400)
    outline_u8 = np.asarray(Image.open(io.BytesIO(drawn["outline"])))
    is_drawn = outline_u8[..., 3] > 0
    assert not (is_drawn & mask).any()
    assert is_drawn[99, 20:60].all()
    assert is_drawn[200, 20:60].all()
    assert is_drawn.sum() <= 2 * (100 + 40 + 2)
    small = draw_thumbnail(tmp_path, "image.png", "", 40)
    assert Image.open(io.BytesIO(small["picture"])).size == (10, 40)
    assert (small["outline"], small["problem"]) == (b"", "")


def test_only_the_page_shown_is_read(pool: Path, monkeypatch: pytest.MonkeyPatch):
    read = []
    monkeypatch.setattr(
        review_grid,
        "read_image",
        lambda path: read.append(Path(path).name) or np.zeros((48, 16, 3), np.uint8),
    )
    grid = ReviewGrid(pool, page_size=5)
    assert (grid.pages, grid.found, shown(grid)) == (3, COUNT, NAMES[:5])
    assert read == [Path(name).name for name in NAMES[:5]]
    grid.page = 2
    assert shown(grid) == NAMES[10:]
    assert set(grid.thumbnails) == {f"0:{name}" for name in NAMES[10:]}
    assert len(read) == 7
    grid.page = 99
    assert (grid.page, shown(grid)) == (2, NAMES[10:])


def test_a_decision_describes_the_page_alone(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    grid, described = ReviewGrid([pool, make_pool(tmp_path / "more")], page_size=4), []
    describe = ReviewGrid._describe
    monkeypatch.setattr(review_grid, "describe_images", None)  # no pool is described again
    monkeypatch.setattr(
        ReviewGrid, "_describe", lambda self, key: described.append(key) or describe(self, key)
    )
    grid.decide(f"0:{NAMES[1]}", True)
    assert described == [f"0:{name}" for name in NAMES[:4]]
    assert grid.counts == {"open": 2 * COUNT - 1, "accepted": 1, "rejected": 0}
    grid.page = 5
    assert described[4:] == [f"1:{name}" for name in NAMES[8:]]
    grid.show(decision="accepted", page=0)
    assert shown(grid) == [NAMES[1]]


def test_filters_by_decision_check_and_prompt(pool: Path):
    review = PoolReview(pool)
    review.decide(NAMES[3], True)
    review.decide(NAMES[4], False)
    grid = ReviewGrid(pool, page_size=4)
    assert grid.choices == {
        "origin": ["diag"],
        "prompt": ["prompt 0", "prompt 1"],
        "check": ["failed", "passed"],
    }
    grid.page = 1
    grid.show(decision="accepted", page=0)
    assert shown(grid) == [NAMES[3]]
    grid.show(decision="", check="failed")
    assert shown(grid) == NAMES[::3]
    assert {card["reason"] for card in grid.cards} == {"no contrast"}
    grid.show(prompt="prompt 1")
    assert shown(grid) == [NAMES[3], NAMES[9]]
    grid.show(decision="open")
    assert shown(grid) == [NAMES[9]]
    grid.show(decision="rejected")
    assert (shown(grid), grid.pages, grid.found) == ([], 1, 0)


def test_several_pools_are_told_apart_by_origin(pool: Path, tmp_path: Path):
    other = make_pool(tmp_path / "memseg", grey=30)
    manifest = other / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",diag,", ",memseg,"))
    grid = ReviewGrid([pool, other], page_size=COUNT)
    assert (grid.found, grid.pages) == (2 * COUNT, 2)
    grid.origin = "memseg"
    press(grid, "decide", key=grid.cards[0]["key"], accepted=True)
    assert stored(other).loc[NAMES[0], "accepted"]
    assert stored(pool)["accepted"].isna().all()
    assert grid.counts == {"open": 2 * COUNT - 1, "accepted": 1, "rejected": 0}
    press(grid, "undo")
    assert stored(other)["accepted"].isna().all()
    with pytest.raises(ValueError, match="no pool to review"):
        ReviewGrid([])


def test_keys_of_the_browser_store_decisions_and_notes(pool: Path, monkeypatch: pytest.MonkeyPatch):
    grid, answers = ReviewGrid(pool, decision="open"), []
    monkeypatch.setattr(grid, "send", lambda content, buffers=None: answers.append((content, buffers)))
    press(grid, "decide", key=f"0:{NAMES[0]}", accepted=True)
    press(grid, "note", key=f"0:{NAMES[1]}", note="halo")
    press(grid, "decide", key=f"0:{NAMES[1]}", accepted=False)
    table = stored(pool)
    assert list(table.loc[NAMES[:2], "accepted"]) == [True, False]
    assert table.loc[NAMES[1], "reviewer_note"] == "halo"
    assert shown(grid) == NAMES  # what is decided stays in its place …
    assert [card["decision"] for card in grid.cards[:3]] == ["accepted", "rejected", "open"]
    assert grid.counts == {"open": COUNT - 2, "accepted": 1, "rejected": 1}
    press(grid, "refresh")
    assert shown(grid) == NAMES[2:]  # … until asked for
    press(grid, "undo")
    assert list(stored(pool)["accepted"].notna()[:2]) == [True, False]
    assert "was restored" in grid.message
    assert [content["kind"] for content, _ in answers] == ["answer"] * 5
    press(grid, "look", key=f"0:{NAMES[0]}")
    content, (picture, outline) = answers[-2]
    assert (content["kind"], content["problem"]) == ("large", "")
    assert Image.open(io.BytesIO(picture)).size == Image.open(io.BytesIO(outline)).size == (16, 48)
    press(grid, "show", state={"decision": "accepted", "page": 0})
    assert (shown(grid), grid.shown) == ([NAMES[0]], "view-1")


def test_undo_without_and_with_a_change_that_changed_nothing(pool: Path):
    grid = ReviewGrid(pool)
    grid.undo()
    assert grid.message == "there is nothing to undo"
    grid.decide(f"0:{NAMES[0]}", None)
    grid.undo()
    assert grid.message == "there is nothing to undo"


def test_failures_are_told_in_the_widget_and_on_the_card_and_nothing_is_lost(pool: Path, tmp_path: Path):
    grid = ReviewGrid(pool)
    (pool / NAMES[1]).unlink()
    grid.decide(f"0:{NAMES[0]}", True)
    grid.decide(f"0:{NAMES[1]}", True)
    assert grid.is_problem
    assert "is missing" in grid.message
    grid.decide(f"0:{NAMES[2]}", False)
    assert not grid.is_problem
    assert ["is missing" in card["unstored"] for card in grid.cards[:3]] == [False, True, False]
    assert list(stored(pool)["accepted"].notna()[:3]) == [True, False, True]
    grid.refresh()
    assert "not a readable image" in grid.thumbnails[f"0:{NAMES[1]}"]["problem"]
    kept = (pool / "manifest.csv").read_bytes()
    (pool / "manifest.csv").write_bytes((make_pool(tmp_path / "b", grey=9) / "manifest.csv").read_bytes())
    grid.decide(f"0:{NAMES[3]}", True)
    assert "is not the pool that was opened" in grid.message
    (pool / "manifest.csv").write_bytes(kept)
    grid.decide(f"0:{NAMES[3]}", True)
    assert not grid.is_problem
    assert (PoolReview(pool).decisions[NAMES[0]].accepted, grid.counts["accepted"]) == (True, 2)


def test_a_folder_that_refuses_writing_is_told_in_the_widget(pool: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    grid = ReviewGrid(pool)
    monkeypatch.setattr("defaug_utils.protocol.review_store.lock_file", refuse)
    grid.decide(f"0:{NAMES[0]}", True)
    assert grid.is_problem
    assert "can't be written to" in grid.message
    assert grid.counts["open"] == COUNT


def test_a_reviewer_of_their_own_starts_from_nothing(pool: Path):
    ReviewGrid(pool).decide(f"0:{NAMES[0]}", True)
    own = ReviewGrid(pool, reviewer="ann")
    assert own.counts == {"open": COUNT, "accepted": 0, "rejected": 0}
    assert "review-ann.csv" in own.title
    own.decide(f"0:{NAMES[0]}", False)
    assert stored(pool).loc[NAMES[0], "accepted"]


def test_refresh_and_close_leave_the_decisions_in_the_manifest_itself(pool: Path):
    grid = ReviewGrid(pool)
    for leave in (grid.refresh, grid.close):
        grid.decide(f"0:{NAMES[0]}", grid.cards[0]["decision"] == "open")
        assert (pool / "review.csv").is_file()
        leave()
        assert not (pool / "review.csv").exists()
    assert stored(pool).loc[NAMES[0], "accepted"] == False  # noqa: E712


def test_an_image_is_made_again_by_the_method_that_the_grid_was_given(pool: Path):
    for methods, told, is_problem in (
        ({"diag": make_drawing()}, "remade, is identical", False),
        ({"diag": make_drawing(grey=91)}, "grey (90, requested 91)", True),
        ({}, "can't be remade here", False),
    ):
        grid = ReviewGrid(pool, methods=methods)
        assert grid.can_remake == bool(methods)
        press(grid, "remake", key=f"0:{NAMES[2]}")
        assert (told in grid.message, grid.is_problem) == (True, is_problem)
    write_png(pool / NAMES[2], np.zeros((48, 16, 3), np.uint8))
    grid = ReviewGrid(pool, methods={"diag": make_drawing()})
    grid.remake(f"0:{NAMES[2]}")
    assert "remade, differs" in grid.message and grid.is_problem
