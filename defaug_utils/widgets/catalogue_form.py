"""A form for the expert's catalogue: one line per defect, checked before it is stored."""

from collections.abc import Mapping
from pathlib import Path

import ipywidgets

from defaug_utils.core.files import read_csv
from defaug_utils.masks.catalogue import COLUMNS, TYPES, write_catalogue
from defaug_utils.masks.shapes import PLACES
from defaug_utils.widgets.parts import GOOD, Message, make_button

CHOICES = {"type": TYPES, "place": PLACES}  # columns with a list; the others are text
HINTS = {
    "type": "empty: the line is left out",
    "prompt": "words for the model; empty: the type's own",
    "place": "of the centre; empty: anywhere",
    "smallest": "length, as a share of the shorter side; empty: as for all",
    "largest": "length, as a share of the shorter side; empty: as for all",
    "strength": "least mean change in the mask, grey levels; empty: as for all",
    "weight": "how often, compared with the others; empty: 1",
}


class CatalogueForm(ipywidgets.VBox):
    """Lines of a catalogue's file, with buttons that add a line and store all; a new file starts with one."""

    def __init__(self, path: Path | str) -> None:
        self.path, self.told = Path(path), Message()
        rows = []
        if self.path.is_file():
            rows = read_csv(self.path, dtype=str, keep_default_na=False).to_dict("records")
        self.lines = ipywidgets.VBox([_make_line(row) for row in rows or [{}]])
        buttons = [
            make_button("Add a line", "a further defect", self.add),
            make_button("Store", f"check all lines and write {self.path}", self.store, "primary"),
        ]
        super().__init__([self.lines, ipywidgets.HBox(buttons), self.told])

    def add(self) -> None:
        """Add an empty line."""
        self.lines.children = (*self.lines.children, _make_line({}))

    def store(self) -> None:
        """Store all lines with a type, or say what is wrong with which row."""
        filled = [[field.value for field in line.children] for line in self.lines.children]
        rows = [dict(zip(COLUMNS, values, strict=True)) for values in filled if values[0]]
        with self.told.tell_errors():
            write_catalogue(rows, self.path)
            self.told.say(f"Stored in {self.path}: run this cell again.", GOOD)


def _make_line(row: Mapping[str, str]) -> ipywidgets.HBox:
    return ipywidgets.HBox([_make_field(name, str(row.get(name, ""))) for name in COLUMNS])


def _make_field(name: str, value: str) -> ipywidgets.Dropdown | ipywidgets.Text:
    """A list for columns with known words, which keeps an unknown one of the file; otherwise a text field."""
    layout = {"width": "14em" if name == "prompt" else "7em"}
    if name in CHOICES:
        words = dict.fromkeys(["", *CHOICES[name], value])
        return ipywidgets.Dropdown(options=list(words), value=value, tooltip=HINTS[name], layout=layout)
    return ipywidgets.Text(value, placeholder=name, tooltip=HINTS[name], layout=layout)
