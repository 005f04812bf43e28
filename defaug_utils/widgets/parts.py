"""What the book's widgets share: scripts, encoded images, buttons and messages."""

import html
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from PIL import Image

GOOD, BAD = "#1b7f3b", "#b00020"  # colours of messages
STATIC = Path(__file__).parent / "static"


def read_script(name: str) -> str:
    """A widget's JavaScript as one module: `shared.js`, then its own file in `static`."""
    return "\n".join((STATIC / part).read_text(encoding="utf-8") for part in ("shared.js", name))


def encode_image(pixels_u8: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file; pixels have shape (height, width, 3 or 4), `options` are Pillow's."""
    stream = io.BytesIO()
    Image.fromarray(pixels_u8).save(stream, kind, **options)
    return stream.getvalue()


def make_button(text: str, hint: str, act: Callable[[], object], style: str = "") -> ipywidgets.Button:
    """A button that calls a function without arguments."""
    wide = {"width": "auto"}  # as wide as its text, which is never truncated
    made = ipywidgets.Button(description=text, tooltip=hint, button_style=style, layout=wide)
    made.on_click(lambda _: act())
    return made


def close_whole(widget: ipywidgets.Widget) -> None:
    """Take a widget away with all that is in it; what nobody closes, ipywidgets keeps for ever."""
    for child in getattr(widget, "children", ()):
        close_whole(child)
    for part in (widget, getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, ipywidgets.Widget):
            part.close()


def colour_text(text: str, colour: str = "inherit") -> str:
    """Text as HTML: its special characters are escaped, its lines stay lines."""
    style = f"color: {colour}; line-height: 1.4; white-space: pre-line"
    return f'<div style="{style}">{html.escape(text)}</div>'


class Message(ipywidgets.HTML):
    """A widget's message line."""

    def say(self, text: str, colour: str = "inherit") -> None:
        """Show a message, replacing the previous one."""
        self.value = colour_text(text, colour)

    @contextmanager
    def tell_errors(self) -> Iterator[None]:
        """Show the first value or file error of the block, and end the block."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.say(str(error), BAD)
