"""Guards: folders that belong to other settings."""

import pytest

from defaug_utils.core.guards import (
    check_demands,
    claim_folder,
    list_differences,
    raise_problems,
    refuse_other_settings,
)


def test_a_folder_is_claimed_once_and_taken_up_by_the_same_settings(tmp_path):
    for _ in range(2):
        claim_folder(tmp_path / "new", {"size": (8, 8), "rank": 4}, "a training")
    assert (tmp_path / "new" / "settings.json").is_file()


def test_other_settings_are_refused_by_name_with_both_values_and_nothing_is_emptied(tmp_path):
    claim_folder(tmp_path, {"lora": {"rank": 4, "alpha": 1}, "steps": 9}, "a fine-tuning")
    (tmp_path / "checkpoint").write_text("hours of work")
    with pytest.raises(KeyError) as refused:
        asked = {"lora": {"rank": 8, "alpha": 1}, "seed": 0, "steps": 9}
        claim_folder(tmp_path, asked, "a fine-tuning", error=KeyError)
    message = str(refused.value)
    assert str(tmp_path) in message and "a fine-tuning" in message and "choose another" in message
    assert "lora.rank (4, requested 8)" in message and "seed (None, requested 0)" in message
    assert "alpha" not in message and "steps" not in message
    assert (tmp_path / "checkpoint").read_text() == "hours of work"


@pytest.mark.parametrize("text", ["{", "", "[]", "3", "null", "[" * 100_000])
def test_a_damaged_note_is_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"settings\.json can't be read"):
        claim_folder(tmp_path, {}, "a pool")


def test_settings_are_compared_as_they_read_back():
    assert list_differences({"size": [8, 8]}, {"size": (8, 8)}) == []
    refuse_other_settings("folder", {"size": [8, 8]}, {"size": (8, 8)}, "a pool")
    (difference,) = list_differences({"hash": "a" * 64}, {"hash": "b" * 64})
    assert difference.count("…") == 2 and len(difference) < 120


def test_all_demands_that_are_not_met_are_told_at_once():
    check_demands("settings", {"steps 1 must be 1 or more": True})
    demands = {"steps 0 is too few": False, "fine": True, "size 0 is too small": False}
    with pytest.raises(KeyError, match=r"settings: 2 problem.*steps 0 is too few.*size 0 is too small"):
        check_demands("settings", demands, KeyError)


def test_a_long_list_of_problems_is_cut_and_counted():
    raise_problems("nothing wrong", [])
    with pytest.raises(ValueError, match=r"(?s)data: 23 problem.*number 19\n  … and 3 more$") as caught:
        raise_problems("data", [f"number {index}" for index in range(23)])
    assert "number 20" not in str(caught.value)
    with pytest.raises(KeyError):
        raise_problems("data", ["one"], error=KeyError)
