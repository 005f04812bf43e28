"""Masks drawn by hand on training negatives: a folder of PNG files with their manifest, and its tool."""

import errno
import html
from collections.abc import Sequence
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd

from defaug_utils.files import write_atomically, write_png
from defaug_utils.images import read_image, read_mask
from defaug_utils.manifest import ManifestError, make_manifest, read_manifest, write_manifest
from defaug_utils.mask_canvas import MaskCanvas
from defaug_utils.sources import list_sources, read_dataset


def mask_file_name(source_image: str) -> str:
    """Name of an image's mask in the folder: "train/good/000.png" gives "train-good-000.png"."""
    return "-".join(Path(source_image).with_suffix(".png").parts)


def read_drawn(folder: Path | str) -> pd.DataFrame:
    """The manifest of a folder of drawn masks, empty while there is none.

    Raises:
        ManifestError: it is broken, or a file that it lists has vanished.
    """
    path = Path(folder) / "manifest.csv"
    return read_manifest(path, check_files=True) if path.is_file() else make_manifest([])


def load_drawn(folder: Path | str, source_image: str) -> np.ndarray | None:
    """The mask stored for an image, shape (height, width), bool; None when there is none."""
    path = Path(folder) / mask_file_name(source_image)
    return read_mask(path) if path.is_file() else None


def save_drawn(folder: Path | str, data_folder: Path | str, source_image: str, mask: np.ndarray) -> Path:
    """Store a mask, a copy of its image and then their row, each whole or not at all.

    The masks lie in the folder itself, where `open_mask_source("drawn", folder)` finds them.

    Args:
        folder: where drawn masks are kept; made when missing.
        data_folder: folder of the data set's manifest.
        source_image: the image's name in it, a training negative.
        mask: shape (height, width), bool, not empty and not full.

    Returns:
        The mask's file.

    Raises:
        ManifestError: the image is none of the training negatives, another image's mask has its file
            name, or the manifest is broken.
        ValueError: the mask is empty, full or not of the image's size, or the image can't be read.
        PermissionError: the folder can't be written to.
    """
    folder, image = Path(folder), Path(data_folder) / source_image
    sources = list_sources(read_dataset(data_folder)).set_index("image")
    if source_image not in sources.index:
        raise ManifestError(f"{source_image} is no training negative: masks are drawn on those only")
    _check_mask(mask, read_image(image), source_image)
    name, listed = mask_file_name(source_image), read_drawn(folder)
    others = set(listed.loc[listed["mask"] == name, "source_image"]) - {source_image}
    if others:
        raise ManifestError(f"{folder / name} is the mask of {others.pop()}: use another folder")
    row = {"image": f"images/{name.removesuffix('.png')}{image.suffix}", "mask": name}
    row |= {"label": "negative", "split": "train", "origin": "real", "mask_source": "drawn"}
    row |= {"source_image": source_image, "category": sources.loc[source_image, "category"]}
    try:
        write_png(folder / name, mask.astype(bool))
        with write_atomically(folder / row["image"]) as temporary:
            temporary.write_bytes(image.read_bytes())
        kept = listed[listed["mask"] != name].to_dict("records")
        write_manifest(make_manifest([*kept, row]), folder / "manifest.csv")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise
        raise PermissionError(
            f"{folder} can't be written to ({error}): the mask of {source_image} was not saved; choose "
            "another folder, or allow writing and save again"
        ) from error
    return folder / name


def _check_mask(mask: np.ndarray, image_u8: np.ndarray, source_image: str) -> None:
    if mask.shape != image_u8.shape[:2]:
        height, width = image_u8.shape[:2]
        raise ValueError(
            f"the mask of {source_image} has {mask.shape[1]} × {mask.shape[0]} pixels, the image "
            f"{width} × {height} (width × height)"
        )
    if not mask.any():
        raise ValueError(f"the mask of {source_image} is empty: draw where the defect goes, then save")
    if mask.all():
        raise ValueError(f"the mask of {source_image} covers everything: nothing would be left of the part")


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
        super().__init__([self.controls, self.canvas, self.message])
        self._show_state()
        self.canvas.observe(lambda change: self._show_state(), "value")

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray | None, str]:
        name = self.names[index]
        return read_image(self.data_folder / name), load_drawn(self.folder, name), name

    def _make_controls(self) -> None:
        def button(text: str, hint: str, act: object, style: str = "") -> ipywidgets.Button:
            made = ipywidgets.Button(description=text, tooltip=hint, button_style=style)
            made.on_click(act)
            return made

        self.chooser = ipywidgets.Dropdown(options=self.names, index=0, description="Image")
        self.chooser.observe(lambda change: self.show_image(change["new"]), "index")
        self.previous_button = button("◀ Previous", "The image before", lambda _: self.step(-1))
        self.next_button = button("Next ▶", "The next image", lambda _: self.step(1))
        self.save_button = button("Save mask", "Store this mask as PNG", lambda _: self.save(), "primary")
        self.message = ipywidgets.HTML()
        buttons = [self.previous_button, self.chooser, self.next_button, self.save_button]
        self.controls = ipywidgets.HBox(buttons, layout=ipywidgets.Layout(flex_flow="row wrap"))

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
        try:
            image_u8, mask, name = self._read(index)
            self.canvas.set_image(image_u8, mask, name)
        except ValueError as error:
            self.chooser.index = self.index
            self._say(str(error), "#b00020")
            return
        self.index, self._saved = index, self.canvas.mask
        self._show_state()

    def save(self) -> bool:
        """Store the mask; tells in the widget whether it worked."""
        try:
            path = save_drawn(self.folder, self.data_folder, self.names[self.index], self.canvas.mask)
        except (ValueError, OSError) as error:
            self._say(str(error), "#b00020")
            return False
        self._saved = self.canvas.mask
        self._show_state()
        self._say(f"saved as {path.name}", "#1b7f3b")
        return True

    def _show_state(self) -> None:
        self.previous_button.disabled = self.index == 0
        self.next_button.disabled = self.index == len(self.names) - 1
        done = sum((self.folder / mask_file_name(name)).is_file() for name in self.names)
        state = "not saved yet" if self.has_unsaved_strokes else "nothing to save"
        self._say(f"image {self.index + 1} of {len(self.names)} · {done} with a stored mask · {state}")

    def _say(self, text: str, colour: str = "inherit") -> None:
        self.message.value = f'<span style="color: {colour}">{html.escape(text)}</span>'
