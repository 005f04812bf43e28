"""A drawing program for masks in the notebook: brush, shapes, fill, undo and zoom over a part's image.

It is a widget of our own on anywidget, plain JavaScript without a build step: that runs in
JupyterLab 4, Notebook 7, VS Code and Colab from the installed package alone. ipycanvas asks the kernel about
every mouse move, and ready-made painting widgets give smoothed strokes at the size of the screen, where a
mask must be exact at the size of the image; here the browser rasterises by a rule of whole numbers (written
down at the top of `static/mask_canvas.js`), and the kernel is told when a stroke ends.
"""

import struct
from typing import Any

import anywidget
import numpy as np
import traitlets

from defaug_utils.widgets.widget_parts import STATIC, encode_image, read_script

HEADER = struct.Struct("<I")  # the number of the image that a packed mask belongs to


def pack_mask(mask: np.ndarray, image_number: int) -> bytes:
    """A mask as it travels: the image's number in 4 bytes, then 8 pixels a byte, row by row."""
    return HEADER.pack(image_number) + np.packbits(mask).tobytes()


def unpack_mask(packed: bytes, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Read a packed mask.

    Args:
        packed: from `pack_mask` or the browser.
        size: (width, height) of the image.

    Returns:
        The mask, shape (height, width), bool, and the number of its image.

    Raises:
        ValueError: it has not as many bytes as this size takes.
    """
    width, height = size
    expected = HEADER.size + -(-width * height // 8)
    if len(packed) != expected:
        raise ValueError(
            f"a packed mask of {len(packed)} bytes came, {width} × {height} pixels take {expected}"
        )
    bits = np.unpackbits(np.frombuffer(packed, np.uint8, offset=HEADER.size), count=width * height)
    return bits.reshape(height, width).astype(bool), HEADER.unpack_from(packed)[0]


def check_drawn(mask: np.ndarray, size: tuple[int, int], name: str = "mask") -> np.ndarray:
    """Bring a mask to exact 0 / 255.

    Args:
        mask: shape (height, width), bool, or uint8 with 0 and 255 (or 0 and 1) only.
        size: (width, height) that it must have.
        name: what to call it in an error.

    Returns:
        A copy, uint8, 0 or 255, that can't be written to.

    Raises:
        ValueError: another size, type or value; a mask is never stretched or thresholded in silence.
    """
    mask = np.asarray(mask)
    if mask.shape != (size[1], size[0]):
        found = " × ".join(str(side) for side in mask.shape[1::-1] + mask.shape[2:])
        raise ValueError(
            f"{name} has {found} pixels (width × height), the image {size[0]} × {size[1]}: load the mask of "
            "this image, or bring it to the size with defaug_utils.core.images.fit_mask"
        )
    if mask.dtype != bool and not (mask.dtype == np.uint8 and np.isin(mask, (0, 1, 255)).all()):
        raise ValueError(f"{name} must be bool or uint8 of 0 and 255 only: threshold it first")
    exact = np.where(mask, np.uint8(255), np.uint8(0))
    exact.setflags(write=False)
    return exact


class MaskCanvas(anywidget.AnyWidget):
    """Draw a mask over an image; `value` is the mask, and `observe` tells when a stroke ended.

    Attributes:
        value: shape (height, width), uint8, exactly 0 or 255, read-only; assign to load a mask.
        name: what the image is called.
        canvas_height: of the drawing area, in CSS pixels.
    """

    _esm = read_script("mask_canvas.js")
    _css = STATIC / "mask_canvas.css"

    value = traitlets.Instance(np.ndarray)
    name = traitlets.Unicode().tag(sync=True)
    canvas_height = traitlets.Int(520, min=80).tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    image_png = traitlets.Bytes().tag(sync=True)
    image_number = traitlets.Int().tag(sync=True)
    packed_mask = traitlets.Bytes().tag(sync=True, from_json=lambda packed, widget: bytes(packed))

    def __init__(
        self, image_u8: np.ndarray, mask: np.ndarray | None = None, name: str = "", **traits: Any
    ) -> None:
        """Show an image.

        Args:
            image_u8: shape (height, width, 3), uint8.
            mask: to go on from; nothing is drawn when not given.
            name: what the image is called.
            traits: such as `canvas_height`, `layout`.

        Raises:
            ValueError: no such image, or a mask that is not this image's.
        """
        super().__init__(**self._describe_image(image_u8, mask, name, 0), **traits)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image in pixels."""
        return self.width, self.height

    @property
    def mask(self) -> np.ndarray:
        """The mask as the rest of the package takes it, shape (height, width), bool."""
        return self.value > 0

    def set_image(self, image_u8: np.ndarray, mask: np.ndarray | None = None, name: str = "") -> None:
        """Show another image; what was drawn on the one before is in nobody's way.

        Raises:
            ValueError: no such image, or a mask that is not this image's; the old one stays.
        """
        described = self._describe_image(image_u8, mask, name, self.image_number + 1)
        with self.hold_sync():
            for trait, content in described.items():
                if trait != "value":
                    self.set_trait(trait, content)
            self.value = described["value"]

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
        if number != self.image_number:  # a stroke on an image that is no longer shown
            self.packed_mask = pack_mask(self.mask, self.image_number)
            return
        if not np.array_equal(mask, self.mask):
            self.value = mask
        self.send({"kind": "received", "pixels": int(mask.sum())})
