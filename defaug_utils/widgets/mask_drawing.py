"""A drawing program for masks in notebooks, and a tool that steps through training negatives.

The canvas is our own, because existing painting widgets give smoothed strokes at screen resolution, and a
mask must be exact at the image's size. The browser rasterises by the integer rule at the top of
`static/mask_canvas.js` and notifies the kernel when a stroke ends. anywidget needs no build step.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets

from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import ManifestError
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.masks.drawn import delete_drawn, load_drawn, mask_file_name, save_drawn
from defaug_utils.widgets.parts import BAD, GOOD, STATIC, Message, encode_image, make_button, read_script

HEADER_BYTES = 4  # of a packed mask: the number of its image


def pack_mask(mask: np.ndarray, image_number: int) -> bytes:
    """A mask in transport form: the image's number in 4 bytes, then 8 pixels per byte, row by row."""
    return image_number.to_bytes(HEADER_BYTES, "little") + np.packbits(mask).tobytes()


def unpack_mask(packed: bytes, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """The mask, bool, of an image with (width, height) pixels, and the image's number."""
    width, height = size
    expected = HEADER_BYTES + -(-width * height // 8)
    if len(packed) != expected:
        raise ValueError(
            f"received a packed mask of {len(packed)} bytes, but {width} × {height} pixels need {expected}"
        )
    bits = np.unpackbits(np.frombuffer(packed, np.uint8, offset=HEADER_BYTES), count=width * height)
    return bits.reshape(height, width).astype(bool), int.from_bytes(packed[:HEADER_BYTES], "little")


def check_drawn(mask: np.ndarray, size: tuple[int, int], name: str = "mask") -> np.ndarray:
    """A read-only copy of a mask, uint8, exactly 0 or 255.

    Raises a ValueError, which calls the mask `name`, if it doesn't have `size` (width, height), or is neither
    bool nor uint8 with only 0 and 255 (or 0 and 1).
    """
    mask = np.asarray(mask)
    if mask.shape != (size[1], size[0]):
        found = " × ".join(str(side) for side in mask.shape[1::-1] + mask.shape[2:])
        raise ValueError(
            f"{name} has {found} pixels (width × height), but the image {size[0]} × {size[1]}: load the mask "
            "of this image, or resize it with defaug_utils.core.images.fit_mask"
        )
    if mask.dtype != bool and not (mask.dtype == np.uint8 and np.isin(mask, (0, 1, 255)).all()):
        raise ValueError(f"{name} must be bool, or uint8 with only 0 and 255: threshold it first")
    exact = np.where(mask, np.uint8(255), np.uint8(0))
    exact.setflags(write=False)
    return exact


class MaskCanvas(anywidget.AnyWidget):
    """Draw a mask over an image; `value` is the mask, and `observe` reports the end of each stroke.

    `value` has the shape (height, width), uint8, exactly 0 or 255, read-only; assign to it to load a mask.
    """

    _esm = read_script("mask_canvas.js")
    _css = STATIC / "mask_canvas.css"

    value = traitlets.Instance(np.ndarray)
    name = traitlets.Unicode().tag(sync=True)
    canvas_height = traitlets.Int(520, min=80).tag(sync=True)  # of the drawing area, CSS pixels
    width = traitlets.Int().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    image_png = traitlets.Bytes().tag(sync=True)
    image_number = traitlets.Int().tag(sync=True)
    packed_mask = traitlets.Bytes().tag(sync=True, from_json=lambda packed, widget: bytes(packed))

    def __init__(
        self, image_u8: np.ndarray, mask: np.ndarray | None = None, name: str = "", **traits: Any
    ) -> None:
        """Show an image, shape (height, width, 3), uint8, with an initial mask; both are checked."""
        super().__init__(**self._describe_image(image_u8, mask, name, 0), **traits)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image in pixels."""
        return self.width, self.height

    @property
    def mask(self) -> np.ndarray:
        """The mask in the package's usual form, shape (height, width), bool."""
        return self.value > 0

    def set_image(self, image_u8: np.ndarray, mask: np.ndarray | None = None, name: str = "") -> None:
        """Show another image; if it or its mask is refused with a ValueError, the old one stays."""
        described = self._describe_image(image_u8, mask, name, self.image_number + 1)
        value = described.pop("value")
        with self.hold_sync():
            for trait, content in described.items():
                self.set_trait(trait, content)
            self.value = value  # last, because it is checked against the new size

    @staticmethod
    def _describe_image(image_u8: np.ndarray, mask: np.ndarray | None, name: str, number: int) -> dict:
        if image_u8.dtype != np.uint8 or image_u8.ndim != 3 or image_u8.shape[2] != 3:
            raise ValueError(
                f"image {name!r} has shape {image_u8.shape} and type {image_u8.dtype}, expected (height, "
                "width, 3) and uint8: read it with defaug_utils.core.images.read_image"
            )
        height, width = image_u8.shape[:2]
        drawn = np.zeros((height, width), bool) if mask is None else mask
        value = check_drawn(drawn, (width, height), f"the mask of {name!r}")
        return {
            "name": name,
            "width": width,
            "height": height,
            "image_number": number,
            "image_png": encode_image(image_u8, compress_level=1),
            "packed_mask": pack_mask(value > 0, number),
            "value": value,
        }

    @traitlets.validate("value")
    def _check_value(self, proposal: dict) -> np.ndarray:
        return check_drawn(proposal["value"], self.size, f"the mask of {self.name!r}")

    @traitlets.observe("value")
    def _send_value(self, change: dict) -> None:
        self.packed_mask = pack_mask(change["new"] > 0, self.image_number)

    @traitlets.observe("packed_mask")
    def _take_strokes(self, change: dict) -> None:
        mask, number = unpack_mask(change["new"], self.size)
        if number != self.image_number:  # a stroke on a previous image
            self.packed_mask = pack_mask(self.mask, self.image_number)
            return
        if not np.array_equal(mask, self.mask):
            self.value = mask
        self.send({"kind": "received", "pixels": int(mask.sum())})


class MaskDrawer(ipywidgets.VBox):
    """Step through images, draw on each and save; stored masks are shown again."""

    def __init__(
        self, data_folder: Path | str, folder: Path | str, names: Sequence[str] | None = None
    ) -> None:
        """Open the first image; raises a ValueError if it, or its stored mask, can't be used.

        Drawn masks are stored in `folder`. Names must be training negatives (all if not given); others are
        refused with a ManifestError.
        """
        known = list(list_sources(read_dataset(data_folder))["image"])
        self.names = known if names is None else list(names)
        foreign = sorted(set(self.names) - set(known))
        if foreign or not self.names:
            raise ManifestError(f"these are not training negatives: {', '.join(foreign) or 'no names given'}")
        self.data_folder, self.folder, self.index = Path(data_folder), Path(folder), 0
        self._files = {mask_file_name(name) for name in self.names}
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
        self.chooser = ipywidgets.Dropdown(options=self.names, index=0, layout={"width": "210px"})
        self.chooser.tooltip = "The image to draw on"
        self.chooser.observe(lambda change: self.show_image(change["new"]), "index")
        self.previous_button = make_button("◀ Previous", "Previous image", lambda: self.step(-1))
        self.next_button = make_button("Next ▶", "Next image", lambda: self.step(1))
        self.save_button = make_button("Save mask", "Store this mask as PNG", self.save, "primary")
        self.delete_button = make_button("Delete mask", "Remove this image's stored mask", self.ask_to_delete)
        moves = [self.previous_button, self.chooser, self.next_button]
        controls = [*moves, self.save_button, self.delete_button]
        self.controls = ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"})
        self.message, self.question_text = Message(), Message()
        self.confirm_button = make_button("Delete it", "Remove the file", self.delete, "danger")
        self.keep_button = make_button("Keep it", "Leave the file as it is", self._show_state)
        answers = [self.question_text, self.confirm_button, self.keep_button]
        self.question = ipywidgets.HBox(answers, layout={"display": "none", "align_items": "center"})

    @property
    def has_unsaved_strokes(self) -> bool:
        """Whether the mask shown differs from the one stored."""
        return not np.array_equal(self.canvas.mask, self._saved)

    def step(self, by: int) -> None:
        """Go forward or back, within the list of images."""
        self.chooser.index = min(max(self.index + by, 0), len(self.names) - 1)

    def show_image(self, index: int) -> None:
        """Show an image with its stored mask; unsaved strokes are saved first, errors are shown."""
        if index == self.index:
            return
        left, is_cleared = self.names[self.index], self.has_unsaved_strokes and not self.canvas.mask.any()
        if self.has_unsaved_strokes and not is_cleared and not self.save():
            self.chooser.index = self.index
            return
        with self.message.tell_errors():
            self.canvas.set_image(*self._read(index))
            self.index, self._saved = index, self.canvas.mask
            self._show_state()
            if is_cleared:
                told = "its mask was cleared here but not deleted; the stored one is kept"
                self.message.say(f"{left}: {told}", BAD)
        self.chooser.index = self.index

    def save(self) -> bool:
        """Store the mask and show the result in the widget; for an empty mask, ask whether to delete it."""
        if self.has_stored_mask and not self.canvas.mask.any():
            self.ask_to_delete()
            return False
        with self.message.tell_errors():
            path = save_drawn(self.folder, self.data_folder, self.names[self.index], self.canvas.mask)
            self._saved = self.canvas.mask
            self._show_state()
            self.message.say(f"saved as {path.name}", GOOD)
            return True
        return False

    @property
    def has_stored_mask(self) -> bool:
        """Whether the current image has a mask in the folder."""
        return (self.folder / mask_file_name(self.names[self.index])).is_file()

    def ask_to_delete(self) -> None:
        """Show the question; only its answer deletes the mask."""
        self.question_text.say(f"Delete the stored mask of {self.names[self.index]}?", BAD)
        self.question.layout.display = "flex"

    def delete(self) -> bool:
        """Delete the stored mask and clear the canvas, where undo still restores the strokes."""
        name = self.names[self.index]
        with self.message.tell_errors():
            delete_drawn(self.folder, name)
            self._saved = np.zeros_like(self.canvas.mask)
            self.canvas.value = self._saved
            self._show_state()
            self.message.say(f"the mask of {name} was deleted; undo and save restore it", GOOD)
            return True
        return False

    def _show_state(self) -> None:
        self.previous_button.disabled = self.index == 0
        self.next_button.disabled = self.index == len(self.names) - 1
        self.question.layout.display = "none"
        self.delete_button.disabled = not self.has_stored_mask
        done = len(self._files.intersection(os.listdir(self.folder))) if self.folder.is_dir() else 0
        state = "not saved yet" if self.has_unsaved_strokes else "nothing to save"
        self.message.say(f"image {self.index + 1} of {len(self.names)} · {done} with a stored mask · {state}")
