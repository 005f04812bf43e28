"""The tool that steps through training negatives and stores the masks drawn on them."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets
import numpy as np

from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import ManifestError
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.masks.drawn import delete_drawn, load_drawn, mask_file_name, save_drawn
from defaug_utils.widgets.mask_canvas import MaskCanvas

GOOD, BAD = "#1b7f3b", "#b00020"  # colours of what is told


def make_button(text: str, hint: str, act: Callable[[], object], style: str = "") -> ipywidgets.Button:
    """A button that calls a function without arguments."""
    wide = ipywidgets.Layout(width="auto")  # as wide as its text, which is never cut
    made = ipywidgets.Button(description=text, tooltip=hint, button_style=style, layout=wide)
    made.on_click(lambda _: act())
    return made


def colour_text(text: str, colour: str = "inherit") -> str:
    """Text as HTML, its special characters escaped."""
    return f'<div style="color: {colour}; line-height: 1.4">{html.escape(text)}</div>'


class MaskDrawer(ipywidgets.VBox):
    """Step through images, draw on each and save; what was saved before is shown again.

    Attributes:
        canvas: the `MaskCanvas` of the current image.
        names: the images.
        index: the current one, from 0.
    """

    def __init__(
        self, data_folder: Path | str, folder: Path | str, names: Sequence[str] | None = None
    ) -> None:
        """Open the first image.

        Args:
            data_folder: folder of the data set's manifest.
            folder: where drawn masks are kept.
            names: images of the data set to step through; all training negatives when not given.

        Raises:
            ManifestError: a name is no training negative.
            ValueError: the first image or its stored mask can't be used.
        """
        known = list(list_sources(read_dataset(data_folder))["image"])
        self.names = known if names is None else list(names)
        foreign = sorted(set(self.names) - set(known))
        if foreign or not self.names:
            raise ManifestError(f"no training negatives to draw on: {', '.join(foreign) or 'no names given'}")
        self.data_folder, self.folder, self.index = Path(data_folder), Path(folder), 0
        self._saved: np.ndarray | None = None
        self.canvas = MaskCanvas(*self._read(0))
        self._saved = self.canvas.mask
        self._make_controls()
        super().__init__([self.controls, self.question, self.canvas, self.message])
        self._show_state()
        self.canvas.observe(lambda change: self._show_state(), "value")

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray | None, str]:
        name = self.names[index]
        return read_image(self.data_folder / name), load_drawn(self.folder, name), name

    def _make_controls(self) -> None:
        narrow = ipywidgets.Layout(width="210px")
        self.chooser = ipywidgets.Dropdown(options=self.names, index=0, layout=narrow)
        self.chooser.tooltip = "The image to draw on"
        self.chooser.observe(lambda change: self.show_image(change["new"]), "index")
        self.previous_button = make_button("◀ Previous", "The image before", lambda: self.step(-1))
        self.next_button = make_button("Next ▶", "The next image", lambda: self.step(1))
        self.save_button = make_button("Save mask", "Store this mask as PNG", self.save, "primary")
        self.delete_button = make_button("Delete mask", "Remove this image's stored mask", self.ask_to_delete)
        self.message = ipywidgets.HTML()
        moves = [self.previous_button, self.chooser, self.next_button]
        row = ipywidgets.Layout(flex_flow="row wrap")
        self.controls = ipywidgets.HBox([*moves, self.save_button, self.delete_button], layout=row)
        self.question_text = ipywidgets.HTML()
        self.confirm_button = make_button("Delete it", "Remove the file", self.delete, "danger")
        self.keep_button = make_button("Keep it", "Leave the file as it is", self._show_state)
        answers = [self.question_text, self.confirm_button, self.keep_button]
        self.question = ipywidgets.HBox(
            answers, layout=ipywidgets.Layout(display="none", align_items="center")
        )

    @property
    def has_unsaved_strokes(self) -> bool:
        """Whether the mask shown differs from the one stored."""
        return not np.array_equal(self.canvas.mask, self._saved)

    def step(self, by: int) -> None:
        """Go on, or back, staying within the images."""
        self.chooser.index = min(max(self.index + by, 0), len(self.names) - 1)

    def show_image(self, index: int) -> None:
        """Show an image with its stored mask; unsaved strokes are saved first, an error is told."""
        if index == self.index:
            return
        if self.has_unsaved_strokes and self.canvas.mask.any() and not self.save():
            self.chooser.index = self.index
            return
        left = self.names[self.index] if self.has_unsaved_strokes and not self.canvas.mask.any() else ""
        try:
            image_u8, mask, name = self._read(index)
            self.canvas.set_image(image_u8, mask, name)
        except ValueError as error:
            self.chooser.index = self.index
            self.say(str(error), BAD)
            return
        self.chooser.index = self.index = index
        self._saved = self.canvas.mask
        self._show_state()
        if left:
            self.say(f"{left}: its mask was cleared here, not deleted; the stored one is kept", BAD)

    def save(self) -> bool:
        """Store the mask; tells in the widget whether it worked. Instead of an empty one, it asks."""
        if self.has_stored_mask and not self.canvas.mask.any():
            self.ask_to_delete()
            return False
        try:
            path = save_drawn(self.folder, self.data_folder, self.names[self.index], self.canvas.mask)
        except (ValueError, OSError) as error:
            self.say(str(error), BAD)
            return False
        self._saved = self.canvas.mask
        self._show_state()
        self.say(f"saved as {path.name}", GOOD)
        return True

    @property
    def has_stored_mask(self) -> bool:
        """Whether the current image has a mask in the folder."""
        return (self.folder / mask_file_name(self.names[self.index])).is_file()

    def ask_to_delete(self) -> None:
        """Show the question; only its answer deletes."""
        name = self.names[self.index]
        self.question_text.value = colour_text(f"Delete the stored mask of {name}?", BAD)
        self.question.layout.display = "flex"

    def delete(self) -> bool:
        """Remove the stored mask and clear the canvas, where undo still brings the strokes back."""
        name = self.names[self.index]
        try:
            delete_drawn(self.folder, name)
        except (ValueError, OSError) as error:
            self.say(str(error), BAD)
            return False
        self._saved = np.zeros_like(self.canvas.mask)
        self.canvas.value = self._saved
        self._show_state()
        self.say(f"the mask of {name} is deleted; undo and save bring it back", GOOD)
        return True

    def _show_state(self) -> None:
        self.previous_button.disabled = self.index == 0
        self.next_button.disabled = self.index == len(self.names) - 1
        self.question.layout.display = "none"
        self.delete_button.disabled = not self.has_stored_mask
        done = sum((self.folder / mask_file_name(name)).is_file() for name in self.names)
        state = "not saved yet" if self.has_unsaved_strokes else "nothing to save"
        self.say(f"image {self.index + 1} of {len(self.names)} · {done} with a stored mask · {state}")

    def say(self, text: str, colour: str = "inherit") -> None:
        """Tell something under the canvas."""
        self.message.value = colour_text(text, colour)
