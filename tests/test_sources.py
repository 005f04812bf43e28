"""What a run knows is read once; whose turn a prompt is costs the same at any place in a pool."""

import os
from pathlib import Path

import numpy as np
import pytest

from defaug_utils.core import prompts, sources
from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, write_manifest
from defaug_utils.core.prompts import choose_prompt, make_prompts
from defaug_utils.core.sources import survey_sources


def test_a_negative_is_read_once_until_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows, read = [], []
    for number in range(3):
        write_png(tmp_path / f"{number}.png", np.full((8, 4, 3), number, np.uint8))
        rows.append({"image": f"{number}.png", "label": "negative", "split": "train", "origin": "real"})
    table, real = make_manifest(rows), sources.read_image
    monkeypatch.setattr(sources, "read_image", lambda path: read.append(Path(path).name) or real(path))
    first = survey_sources(table, tmp_path)
    assert survey_sources(table, tmp_path) == first and read == ["0.png", "1.png", "2.png"]
    write_png(tmp_path / "1.png", np.full((8, 4, 3), 9, np.uint8))
    changed = survey_sources(table, tmp_path)
    assert changed["sha256"] != first["sha256"] and read[3:] == ["1.png"]
    times = os.stat(tmp_path / "2.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes())  # of the same size, and as old
    os.utime(tmp_path / "2.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert survey_sources(table, tmp_path)["sha256"] != changed["sha256"]


def test_prompts_take_turns_as_if_all_turns_before_were_counted_anew():
    board = make_prompts(
        [{"text": "a", "weight": 0.7}, {"text": "b", "weight": 0.1}, {"text": "c", "weight": 3}]
    )
    weights, owed, turns = [prompt.weight for prompt in board], [0.0] * 3, []
    for _ in range(300):
        owed = [debt + weight for debt, weight in zip(owed, weights, strict=True)]
        turns.append(max(range(3), key=owed.__getitem__))
        owed[turns[-1]] -= sum(weights)
    order = np.random.default_rng(0).permutation(300)
    assert all(choose_prompt(board, int(index)) == board[turns[index]] for index in order)


def test_no_turn_is_counted_twice():
    board = make_prompts([{"text": "a", "weight": 2}, "b"])
    choose_prompt(board, 5000)
    counted = prompts._take_turns.cache_info().misses
    assert [choose_prompt(board, 5000 - index).text for index in range(900)].count("a") == 600
    assert prompts._take_turns.cache_info().misses == counted


def test_the_data_set_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows, read, real = [], [], sources.read_manifest
    monkeypatch.setattr(sources, "read_manifest", lambda path: read.append(1) or real(path))
    for count in (1, 2):
        rows.append({"image": f"{count}.png", "label": "negative", "split": "train", "origin": "real"})
        write_manifest(make_manifest(rows), tmp_path / "manifest.csv")
        for _ in range(3):
            table = sources.read_dataset(tmp_path)
            assert list(table["split"]) == ["train"] * count
            table["split"] = "test"  # changes nobody else's
        assert len(read) == count
