"""A form for the expert's catalogue: one line per defect, checked before it is stored."""

from collections.abc import Mapping
from pathlib import Path

import ipywidgets

from defaug_utils.core.files import read_csv
from defaug_utils.masks.catalogue import COLUMNS, TYPES, find_problems, write_catalogue
from defaug_utils.masks.shapes import PLACES
from defaug_utils.widgets.parts import BAD, GOOD, Message, colour_text, make_button

CHOICES = {"type": TYPES, "place": PLACES}  # columns with a list; the others are text
WIDTHS = {"prompt": "15em"}
WIDTH = "8em"  # of the other columns
WHOLE = {"min_width": "max-content"}  # rows keep their width: in a narrow window, the form scrolls
HINTS = {
    "type": "empty: the line is left out",
    "prompt": "words for the model; empty: the type's own",
    "place": "of the centre; empty: anywhere",
    "smallest": "length / shorter side; empty: as for all",
    "largest": "length / shorter side; empty: as for all",
    "strength": "least mean change, grey levels; empty: as for all",
    "weight": "how often, compared with the others; empty: 1",
}


class CatalogueForm(ipywidgets.VBox):
    """Lines of a catalogue's file, with buttons that add a line and store all; a new file starts with one."""

    def __init__(self, path: Path | str) -> None:
        self.path, self.told = Path(path), Message()
        rows = []
        if self.path.is_file():
            rows = read_csv(self.path, dtype=str, keep_default_na=False).to_dict("records")
        self.lines = ipywidgets.VBox([CatalogueLine(row) for row in rows or [{}]], layout=WHOLE)
        buttons = [
            make_button("Add a line", "a further defect", self.add),
            make_button("Store", f"check all lines and write {self.path}", self.store, "primary"),
        ]
        table = ipywidgets.VBox([_make_header(), self.lines], layout={"overflow": "auto"})
        super().__init__([table, ipywidgets.HBox(buttons), self.told])

    def add(self) -> None:
        """Add an empty line."""
        self.lines.children = (*self.lines.children, CatalogueLine({}))

    def store(self) -> None:
        """Store all lines with a type, or say below each line what is wrong with it."""
        rows = [line.read() for line in self.lines.children]
        are_wrong = [line.tell_problems(row) for line, row in zip(self.lines.children, rows, strict=True)]
        if any(are_wrong):
            self.told.say("Nothing is stored: mend what is marked in red.", BAD)
            return
        filled = [row for row in rows if row["type"]]
        with self.told.tell_errors():
            write_catalogue(filled, self.path)
            self.told.say(f"Stored in {self.path}, defects: {len(filled)}. Run this cell again.", GOOD)


class CatalogueLine(ipywidgets.VBox):
    """A defect's fields by column, and what is wrong with them."""

    def __init__(self, row: Mapping[str, str]) -> None:
        self.fields = {name: _make_field(name, str(row.get(name, ""))) for name in COLUMNS}
        self.told = Message()
        fields = ipywidgets.HBox(list(self.fields.values()), layout=WHOLE)
        super().__init__([fields, self.told], layout=WHOLE)

    def read(self) -> dict[str, str]:
        """The text of each column, without spaces at its ends."""
        return {name: field.value.strip() for name, field in self.fields.items()}

    def tell_problems(self, row: Mapping[str, str]) -> bool:
        """Show the problems of what was read; a line without a type, which is left out, has none."""
        problems = find_problems(row) if row["type"] else []
        self.told.say("\n".join(problems), BAD)
        return bool(problems)


def _make_header() -> ipywidgets.HBox:
    """Names of the columns, with what they mean."""
    cells = []
    for name in COLUMNS:
        hint = f'<div style="font-size: 0.8em; line-height: 1.2">{colour_text(HINTS[name])}</div>'
        layout = {"width": WIDTHS.get(name, WIDTH)}
        cells.append(ipywidgets.HTML(f"<b>{name}</b>{hint}", layout=layout))
    return ipywidgets.HBox(cells, layout=WHOLE)


def _make_field(name: str, value: str) -> ipywidgets.Dropdown | ipywidgets.Text:
    """A list for columns with known words, which keeps an unknown one of the file; otherwise a text field."""
    layout = {"width": WIDTHS.get(name, WIDTH)}
    if name in CHOICES:
        words = dict.fromkeys(["", *CHOICES[name], value])
        return ipywidgets.Dropdown(options=list(words), value=value, tooltip=name, layout=layout)
    return ipywidgets.Text(value, tooltip=name, layout=layout)
