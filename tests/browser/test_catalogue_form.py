"""The form of an expert's catalogue in a real JupyterLab: read, be told what is wrong, fill in, store."""

import numpy as np
from lab import Lab
from playwright.sync_api import Locator, Page, expect

from defaug_utils.masks.catalogue import COLUMNS, read_catalogue

FILE = ",".join(COLUMNS) + "\nscrach,,top,0.4,0.8,6,2\nstain,<b>oil</b>,,,,,\n"
CELL = "from defaug_utils import widgets\nform = widgets.CatalogueForm('catalogue.csv')\nform"


def find_fields(cell: Locator, column: str) -> Locator:
    """The fields of a column, from top to bottom."""
    return cell.get_by_title(column, exact=True)


def test_an_expert_mends_and_stores_the_table(lab: Lab, page: Page):
    path = lab.folder / "catalogue.csv"
    path.write_text(FILE, encoding="utf-8")
    notebook = lab.open_notebook(page, "catalogue.ipynb", [CELL])
    cell = notebook.run_cell(0)
    press = {name: cell.get_by_role("button", name=name, exact=True) for name in ("Add a line", "Store")}
    press["Add a line"].click()
    for column in COLUMNS:
        expect(find_fields(cell, column)).to_have_count(3)
    expect(find_fields(cell, "prompt").nth(1)).to_have_value("<b>oil</b>")

    find_fields(cell, "type").nth(2).select_option("crack")
    find_fields(cell, "smallest").nth(2).fill("large")
    press["Store"].click()
    told = [cell.get_by_text(text) for text in ("type 'scrach' is not one of", "smallest 'large' is not")]
    expect(cell.get_by_text("Nothing is stored")).to_be_visible()
    notebook.take_screenshot("catalogue-told")
    places = [line.bounding_box()["y"] for line in (*told, *find_fields(cell, "type").all())]
    assert places[2] < places[0] < places[3] < places[4] < places[1], "each below its own line"
    assert path.read_text(encoding="utf-8") == FILE

    find_fields(cell, "type").first.select_option("scratch")
    find_fields(cell, "smallest").nth(2).fill("0.1")
    find_fields(cell, "largest").nth(2).fill("0.2")
    press["Store"].click()
    expect(cell.get_by_text("Stored in catalogue.csv")).to_be_visible()
    for line in told:
        expect(line).to_have_count(0)
    page.set_viewport_size({"width": 700, "height": 900})
    notebook.take_screenshot("catalogue-narrow")
    for column in COLUMNS:  # in a narrow window, too
        places = [cell.get_by_text(column, exact=True), find_fields(cell, column).first]
        assert np.ptp([place.bounding_box()["x"] for place in places]) < 3, f"{column} is below its name"
    stored = read_catalogue(path)
    assert [row["text"] for row in stored] == ["background scratched", "<b>oil</b>", "background cracked"]
    assert stored[0]["place"] == "top" and stored[2]["length"] == (0.1, 0.2)
