"""Decisions on images: stored at once, never lost, never given to another pool's image."""

import errno
import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import Drawing

from defaug_utils.core import decisions, pools
from defaug_utils.core.files import lock_file, write_png
from defaug_utils.core.manifest import ManifestError, fold_decisions, read_manifest, write_manifest
from defaug_utils.core.pools import GeneratedImage, PoolPlan
from defaug_utils.protocol import review_store
from defaug_utils.protocol.mixing import usable_rows
from defaug_utils.protocol.review_store import ImageReview, PoolReview, ReviewStoreError, list_reviewers
from defaug_utils.protocol.scenarios import ImageDecision, Review, record_review

COUNT = 12
NAMES = [f"images/{index:06d}.png" for index in range(COUNT)]


def make_drawing(grey: int = 90) -> Drawing:
    def make_batch(indices: list[int], seeds: list[int]) -> list[GeneratedImage]:
        made = []
        for index in indices:
            mask = np.zeros((48, 16), bool)
            mask[4 : 8 + index % 5, 3:9] = True
            row = {"prompt": f"prompt {index % 2}", "check_passed": index % 3 > 0, "change": index / 7}
            row |= {"check_reason": "" if index % 3 else "no contrast"}
            made.append(GeneratedImage(np.full((48, 16, 3), grey + index % 100, np.uint8), mask, row))
        return made

    return Drawing(make_batch, recipe={"grey": grey})


def make_pool(folder: Path, count: int = COUNT, grey: int = 90) -> Path:
    pools.make_pool(folder, make_drawing(grey), PoolPlan(count))
    return folder


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return make_pool(tmp_path / "diag")


def stored(folder: Path) -> pd.DataFrame:
    return read_manifest(folder / "manifest.csv").set_index("image")


def test_a_decision_is_on_the_disk_at_once_and_touches_nothing_else(pool: Path):
    before = stored(pool)
    review = PoolReview(pool)
    assert review.decide(NAMES[2], True) == ImageReview(True, "")
    assert review.write_note(NAMES[3], "  too\nbright ") == ImageReview(None, "too bright")
    review.decide(NAMES[3], False)
    expected = before.copy()
    expected.loc[NAMES[2], "accepted"] = True
    expected.loc[NAMES[3], ["accepted", "reviewer_note"]] = [False, "too bright"]
    pd.testing.assert_frame_equal(stored(pool), expected)
    review.decide(NAMES[2], None)
    assert pd.isna(stored(pool).loc[NAMES[2], "accepted"])
    assert PoolReview(pool).decisions[NAMES[3]] == ImageReview(False, "too bright")


def test_mixing_draws_by_these_decisions(pool: Path):
    review = PoolReview(pool)
    review.decide(NAMES[0], True)  # failed its check
    review.decide(NAMES[1], False)
    drawn = set(usable_rows(read_manifest(pool / "manifest.csv"))["image"])
    assert NAMES[0] in drawn
    assert NAMES[1] not in drawn


def test_two_windows_keep_the_decisions_of_both(pool: Path):
    first, second = PoolReview(pool), PoolReview(pool)
    first.decide(NAMES[0], True)
    second.decide(NAMES[1], False)
    second.write_note(NAMES[0], "seen in the second")
    first.decide(NAMES[2], True)
    table = stored(pool)
    assert list(table.loc[NAMES[:3], "accepted"]) == [True, False, True]
    assert table.loc[NAMES[0], "reviewer_note"] == "seen in the second"
    assert first.decisions[NAMES[1]].accepted is False


def decide_half(folder: Path, start: int, reviewer: str, barrier: object) -> None:
    review = PoolReview(folder, reviewer)
    barrier.wait(60)
    for index in range(start, 40, 2):
        review.decide(f"images/{index:06d}.png", start == 0)


@pytest.mark.parametrize("reviewer", ["", "ann"])
def test_two_processes_at_once_lose_nothing(tmp_path: Path, reviewer: str):
    folder = make_pool(tmp_path / "diag", count=40)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    arguments = [(folder, start, reviewer, barrier) for start in (0, 1)]
    processes = [context.Process(target=decide_half, args=given) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    decisions = PoolReview(folder, reviewer).decisions
    assert [decisions[f"images/{index:06d}.png"].accepted for index in range(40)] == [True, False] * 20
    assert not list(folder.glob("*.tmp*"))


def test_a_pool_that_grows_keeps_its_decisions_and_the_open_review_sees_it(pool: Path):
    review = PoolReview(pool)
    review.decide(NAMES[0], False)
    make_pool(pool, count=COUNT + 3)
    assert list(stored(pool)["accepted"].notna()) == [True] + [False] * (COUNT + 2)
    review.decide("images/000001.png", True)
    review.decide(f"images/{COUNT + 2:06d}.png", True)
    assert len(review.decisions) == COUNT + 3


def test_undo_goes_back_step_by_step(pool: Path):
    review = PoolReview(pool)
    review.decide(NAMES[0], True)
    review.decide(NAMES[0], True)  # nothing changes, so nothing to undo
    review.write_note(NAMES[0], "fine")
    review.decide(NAMES[0], False)
    assert review.undoable == 3
    for expected in (ImageReview(True, "fine"), ImageReview(True, ""), ImageReview()):
        assert review.undo() == NAMES[0]
        assert PoolReview(pool).decisions[NAMES[0]] == expected
    assert review.undo() is None


def test_undo_leaves_what_somebody_else_decided_since(pool: Path):
    first, second = PoolReview(pool), PoolReview(pool)
    first.decide(NAMES[1], True)
    first.decide(NAMES[0], True)
    second.decide(NAMES[0], False)
    with pytest.raises(ReviewStoreError, match="was changed elsewhere in the meantime"):
        first.undo()
    assert PoolReview(pool).decisions[NAMES[0]].accepted is False
    assert first.undo() == NAMES[1]


def test_a_reviewers_own_file_leaves_the_manifest_alone_and_hides_other_decisions(pool: Path):
    PoolReview(pool).decide(NAMES[5], True)
    before = (pool / "manifest.csv").read_bytes()
    ann = PoolReview(pool, "ann")
    assert ann.decisions[NAMES[5]] == ImageReview()
    ann.decide(NAMES[0], True)
    ann.decide(NAMES[1], False)
    ann.write_note(NAMES[1], 'a, "quoted" note')
    ann.undo()
    assert (pool / "manifest.csv").read_bytes() == before
    table = pd.read_csv(pool / "review-ann.csv", dtype=str, keep_default_na=False)
    assert list(table["image"]) == [NAMES[0], NAMES[1], NAMES[1], NAMES[1]]
    assert list(table["accepted"]) == ["true", "false", "false", "false"]
    assert list(table["note"]) == ["", "", 'a, "quoted" note', ""]
    assert set(table["reviewer"]) == {"ann"}
    assert pd.to_datetime(table["time"]).notna().all()
    assert list_reviewers(pool) == ["ann"]
    assert PoolReview(pool, "ann").decisions[NAMES[1]] == ImageReview(False, "")


def test_a_pool_made_anew_gets_no_decisions_meant_for_the_old_one(pool: Path, tmp_path: Path):
    review, own = PoolReview(pool), PoolReview(pool, "ann")
    review.decide(NAMES[0], True)
    own.decide(NAMES[0], True)
    other = make_pool(tmp_path / "other", grey=30)
    foreign = (other / "manifest.csv").read_bytes()
    (pool / "manifest.csv").write_bytes(foreign)
    for opened in (review, own):
        with pytest.raises(ReviewStoreError, match=r"is not the pool that was opened: 12 images .*000000"):
            opened.decide(NAMES[1], True)
    assert (pool / "manifest.csv").read_bytes() == foreign
    with pytest.raises(ReviewStoreError, match=r"'images/000000.png' with seed .* is not an image"):
        PoolReview(pool, "ann")


def test_an_image_that_vanished_is_told_and_other_decisions_stay(pool: Path):
    review = PoolReview(pool)
    review.decide(NAMES[0], True)
    (pool / NAMES[0]).unlink()
    with pytest.raises(ReviewStoreError, match=r"000000.png is missing, so nothing was stored"):
        review.decide(NAMES[0], False)
    review.decide(NAMES[1], False)
    assert list(stored(pool).loc[NAMES[:2], "accepted"]) == [True, False]
    with pytest.raises(ReviewStoreError, match=r"has no image nowhere\.png"):
        review.decide("nowhere.png", True)


def test_a_read_only_folder_is_told_and_nothing_is_lost(pool: Path, monkeypatch: pytest.MonkeyPatch):
    review = PoolReview(pool)
    review.decide(NAMES[0], True)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(decisions, "append_line", refuse)
        with pytest.raises(PermissionError, match=r"diag can't be written to .* earlier ones are kept"):
            review.decide(NAMES[1], True)
        with pytest.raises(PermissionError):
            review.undo()
    assert list(stored(pool)["accepted"].notna()) == [True] + [False] * (COUNT - 1)
    assert review.undo() == NAMES[0]
    assert stored(pool)["accepted"].isna().all()


def test_a_lock_that_nobody_gives_back_is_told(pool: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(review_store, "lock_file", lambda path: lock_file(path, seconds=0.2))
    review = PoolReview(pool)
    with lock_file(pool / "manifest.csv"), pytest.raises(TimeoutError, match="in use by another process"):
        review.decide(NAMES[0], True)
    assert stored(pool)["accepted"].isna().all()
    review.decide(NAMES[0], True)


@pytest.mark.parametrize("name", ["../ann", "a b", "", "x" * 41])
def test_a_reviewers_name_stays_a_file_name(pool: Path, name: str):
    with pytest.raises(ReviewStoreError, match="use 1 to 40 letters"):
        review_store.review_file_name(name)


def test_every_broken_row_of_a_reviewers_file_is_told(pool: Path):
    PoolReview(pool, "ann").decide(NAMES[0], True)
    path = pool / "review-ann.csv"
    row = path.read_text().splitlines()[1]
    broken = [row.replace("true", word).replace("000000", "000001") for word in ("maybe", "perhaps")]
    path.write_text("\n".join([path.read_text().strip(), *broken]) + "\n")
    with pytest.raises(ReviewStoreError, match=r"accepted is 'maybe', .*accepted is 'perhaps', "):
        PoolReview(pool, "ann")
    path.write_text("image,accepted\na.png,true\n")
    with pytest.raises(ReviewStoreError, match="column reviewer is missing"):
        PoolReview(pool, "ann")


def test_a_decision_is_one_line_whatever_the_size_of_the_pool(pool: Path, monkeypatch: pytest.MonkeyPatch):
    review, before = PoolReview(pool), (pool / "manifest.csv").read_bytes()
    monkeypatch.setattr(review_store, "read_manifest", None)  # nothing reads the whole table …
    for image in NAMES:
        length = len((pool / "review.csv").read_bytes()) if image != NAMES[0] else 0
        review.decide(image, True)
        assert len((pool / "review.csv").read_bytes()) - length < 150
    assert (pool / "manifest.csv").read_bytes() == before  # … or writes it
    assert stored(pool)["accepted"].all()
    assert review.counts == {None: 0, True: COUNT}


@pytest.mark.parametrize("reviewer", ["", "ann"])
def test_a_line_torn_by_a_kill_is_passed_over_and_the_next_one_is_whole(pool: Path, reviewer: str):
    review = PoolReview(pool, reviewer)
    review.decide(NAMES[0], True)
    with review.path.open("ab") as log:
        log.write(f'{reviewer},{NAMES[1]},1,key,false,"a torn, no'.encode())
    review.decide(NAMES[2], False)
    for seen in (review, PoolReview(pool, reviewer)):
        assert [seen.decisions[name].accepted for name in NAMES[:3]] == [True, None, False]


def test_columns_and_line_ends_of_an_editor_are_read_and_kept(pool: Path):
    PoolReview(pool, "ann").decide(NAMES[0], True)
    path = pool / "review-ann.csv"
    columns = ["note", "image", "seed", "recipe", "accepted", "time", "reviewer"]
    table = pd.read_csv(path, dtype=str, keep_default_na=False)[columns]
    path.write_bytes(table.to_csv(index=False, lineterminator="\r\n").strip().encode("utf-8-sig"))
    review = PoolReview(pool, "ann")
    assert review.decisions[NAMES[0]].accepted is True
    review.write_note(NAMES[0], "fine")
    assert PoolReview(pool, "ann").decisions[NAMES[0]] == ImageReview(True, "fine")


def test_opening_takes_the_decisions_into_the_manifest_and_open_windows_go_on(pool: Path):
    first = PoolReview(pool)
    first.decide(NAMES[0], True)
    first.write_note(NAMES[1], "odd")
    second = PoolReview(pool)
    assert not second.path.exists()
    table = pd.read_csv(pool / "manifest.csv", dtype=str, keep_default_na=False).set_index("image")
    assert (table.loc[NAMES[0], "accepted"], table.loc[NAMES[1], "reviewer_note"]) == ("True", "odd")
    second.decide(NAMES[2], False)
    assert first.undo() == NAMES[1]
    assert first.decisions[NAMES[2]].accepted is False
    second.reload()
    assert second.decisions[NAMES[:2][1]] == ImageReview()


def test_a_kill_while_decisions_are_taken_in_loses_none(pool: Path, monkeypatch: pytest.MonkeyPatch):
    PoolReview(pool).decide(NAMES[0], True)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # killed between the two files
    fold_decisions(pool / "manifest.csv")
    monkeypatch.undo()
    assert (pool / "review.csv").is_file()
    assert PoolReview(pool).decide(NAMES[0], False) == ImageReview(False)
    assert list(stored(pool)["accepted"].notna()) == [True] + [False] * (COUNT - 1)


def test_decisions_on_another_pools_images_wait_in_the_log(pool: Path, tmp_path: Path):
    PoolReview(pool).decide(NAMES[0], True)
    former = (pool / "manifest.csv").read_bytes()
    (pool / "manifest.csv").write_bytes((make_pool(tmp_path / "b", grey=9) / "manifest.csv").read_bytes())
    review = PoolReview(pool)
    assert review.decide(NAMES[1], False) and review.counts == {None: COUNT - 1, False: 1}
    review.fold()
    (pool / "manifest.csv").write_bytes(former)
    assert PoolReview(pool).decisions[NAMES[0]].accepted is True


def test_what_other_stages_write_into_the_manifest_counts_after_the_log(pool: Path):
    review = PoolReview(pool)
    review.decide(NAMES[0], False)
    row = stored(pool).loc[NAMES[0]]
    record_review(pool, Review([], [ImageDecision(row["prompt"], row["seed"], True)]))
    assert stored(pool).loc[NAMES[0], "accepted"]
    review.reload()
    assert review.decisions[NAMES[0]].accepted is True


def test_a_broken_manifest_is_told_and_left_alone(pool: Path):
    review = PoolReview(pool)
    (pool / "manifest.csv").write_text("image\n")
    with pytest.raises(ManifestError, match="column mask is missing"):
        review.decide(NAMES[0], True)
    assert (pool / "manifest.csv").read_text() == "image\n"
    with pytest.raises(FileNotFoundError, match="no manifest"):
        PoolReview(pool / "nowhere")


def test_a_pool_without_seeds_can_be_reviewed(tmp_path: Path):
    folder = make_pool(tmp_path / "diag")
    table = read_manifest(folder / "manifest.csv")
    table["seed"] = pd.NA
    write_manifest(table, folder / "manifest.csv")
    write_png(folder / NAMES[0], np.zeros((4, 4, 3), np.uint8))
    PoolReview(folder, "ann").decide(NAMES[0], True)
    assert PoolReview(folder, "ann").decisions[NAMES[0]].accepted is True
