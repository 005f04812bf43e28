"""The expert's catalogue: read, checked, stored, and what masks and checks make of its rows."""

from pathlib import Path

import numpy as np
import pytest

from defaug_utils.core.prompts import Prompt, make_prompts
from defaug_utils.masks.catalogue import COLUMNS, TYPES, read_catalogue, write_catalogue
from defaug_utils.masks.shapes import PLACES, SHAPES, ShapePriors
from defaug_utils.masks.sources import ProceduralMasks, choose_shape
from defaug_utils.widgets.catalogue_form import CatalogueForm

ROOT = Path(__file__).parents[1]
EMPTY = dict.fromkeys(COLUMNS, "")
SCRATCH = EMPTY | {"type": "scratch"}


def write(folder: Path, text: str) -> Path:
    (folder / "catalogue.csv").write_text(text, encoding="utf-8")
    return folder / "catalogue.csv"


def test_the_catalogue_that_comes_with_the_book_is_a_board():
    board = make_prompts(read_catalogue(ROOT / "profiles" / "catalogue.csv"), "smooth")
    assert board[0] == Prompt("background scratched", "smooth", 2.0, "scratch", (0.4, 0.8), "", 6.0)
    assert {kind.shape for kind in TYPES.values()} <= SHAPES.keys()


def test_what_is_empty_is_as_for_all_and_a_row_may_have_its_own_words(tmp_path: Path):
    path = tmp_path / "catalogue.csv"
    write_catalogue(
        [SCRATCH, SCRATCH | {"prompt": "copper scratches", "place": "top", "strength": "5"}], path
    )
    plain, own = make_prompts(read_catalogue(path))
    assert plain == Prompt("background scratched", shape="scratch")
    assert plain.describe() == {
        "text": "background scratched",
        "negative": "",
        "weight": 1.0,
        "shape": "scratch",
    }
    assert own == Prompt("copper scratches", shape="scratch", place="top", contrast=5.0)


def test_every_bad_row_is_in_one_report(tmp_path: Path):
    text = ",".join(COLUMNS) + "\n"
    text += "scrach,,,,,,\nstain,,centre,,,,\ncrack,,,0.5,0.2,,\ncrack,,,0.5,,,\n"
    text += "mark,,,,,much,\nmark,,,,,300,0\nmark,,,,,nan,\n"
    with pytest.raises(ValueError, match=r"catalogue\.csv: 8 problem") as caught:
        read_catalogue(write(tmp_path, text))
    for told in (
        "row 1: type 'scrach' is not one of scratch, crack, stain, mark (did you mean 'scratch'?)",
        "row 2: place 'centre' is not one of left, right, top, bottom, middle",
        "row 3: sizes '0.5' to '0.2' must rise, above 0",
        "row 4: sizes '0.5' to ''",
        "row 5: strength 'much' is not a number",
        "row 6: strength 300 must be in 0 … 255 grey levels",
        "row 6: weight 0 must be above 0",
        "row 7: strength nan must be",
    ):
        assert told in str(caught.value)


def test_missing_and_unknown_columns_and_an_empty_table_are_told(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"'place' is missing[\s\S]*'plce' is unknown \(did you mean 'place'"
    ):
        read_catalogue(write(tmp_path, ",".join(COLUMNS).replace("place", "plce") + "\nmark,,,,,,\n"))
    with pytest.raises(ValueError, match="there is no row"):
        read_catalogue(write(tmp_path, ",".join(COLUMNS) + "\n"))
    with pytest.raises(ValueError, match="type 'dent' is not one of"):
        write_catalogue([EMPTY | {"type": "dent"}], tmp_path / "new.csv")
    assert not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize("place", PLACES)
def test_a_place_holds_the_centres_of_its_masks(place: str):
    (left, top), (right, bottom) = PLACES[place]
    prompt = Prompt("stain", shape="blob", length=(0.05, 0.06), place=place)
    source = choose_shape(ProceduralMasks(ShapePriors()), prompt)
    for seed in range(30):
        drawn = source.draw(seed, (200, 100))
        rows, columns = np.nonzero(drawn.mask)
        assert left - 0.05 <= columns.mean() / 200 <= right + 0.05
        assert top - 0.05 <= rows.mean() / 100 <= bottom + 0.05
        assert np.ptp(columns) <= 0.06 * 100 * 1.7 + 2, "no longer than the row says"


def test_a_prompt_without_a_place_draws_the_masks_that_it_always_drew():
    source = ProceduralMasks(ShapePriors())
    same = choose_shape(source, Prompt("stain"))
    assert all(
        (same.draw(seed, (60, 90)).mask == source.draw(seed, (60, 90)).mask).all() for seed in range(5)
    )
    with pytest.raises(ValueError, match=r"place 'midle' is not one of .* \(did you mean 'middle'\?\)"):
        choose_shape(source, Prompt("stain", place="midle"))


def test_the_form_shows_changes_and_stores_the_catalogue(tmp_path: Path):
    path = tmp_path / "catalogue.csv"
    write_catalogue([SCRATCH | {"strength": "5"}, SCRATCH | {"prompt": "copper scratches"}], path)
    form = CatalogueForm(path)
    assert form.lines.children[0].read() == SCRATCH | {"strength": "5"}
    form.add()
    first, second, third = form.lines.children
    first.fields["type"].value = ""  # this line is left out
    third.fields["type"].value, third.fields["smallest"].value = "stain", "large"
    form.store()
    assert "Nothing is stored" in form.told.value and len(read_catalogue(path)) == 2, "the file is as it was"
    assert "smallest &#x27;large&#x27; is not a number" in third.told.value
    assert "is not" not in first.told.value + second.told.value
    third.fields["smallest"].value = " "
    form.store()
    assert "Stored in" in form.told.value and "is not" not in third.told.value
    assert [line["text"] for line in read_catalogue(path)] == ["copper scratches", "stain"]
    second.fields["type"].value = third.fields["type"].value = ""
    form.store()
    assert "there is no row" in form.told.value and len(read_catalogue(path)) == 2


def test_the_form_keeps_an_unknown_type_of_the_file_until_it_is_changed(tmp_path: Path):
    form = CatalogueForm(write(tmp_path, ",".join(COLUMNS) + "\nscrach,,,,,,\n"))
    (line,) = form.lines.children
    assert line.fields["type"].value == "scrach"
    form.store()
    assert "did you mean" in line.told.value
    assert len(CatalogueForm(tmp_path / "new.csv").lines.children) == 1
