"""What the book's own widgets share: how a script comes together, and pictures as a browser takes them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STATIC = Path(__file__).parent / "static"


def read_script(name: str) -> str:
    """A widget's JavaScript as one module: `shared.js`, then its own file.

    Args:
        name: of its file in `static`, such as "mask_canvas.js".
    """
    return "\n".join((STATIC / part).read_text(encoding="utf-8") for part in ("shared.js", name))


def encode_image(pixels_u8: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file.

    Args:
        pixels_u8: shape (height, width, 3), or 4 with transparency, uint8.
        kind: "PNG" or "JPEG".
        options: of Pillow's writer, such as `quality`.
    """
    stream = io.BytesIO()
    Image.fromarray(pixels_u8).save(stream, kind, **options)
    return stream.getvalue()
