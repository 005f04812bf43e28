"""Broken images, masks and folders, through `load_dataset` and `prepare_dataset`."""

import functools
import io
import os
import pickle
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from layouts import draw_part, save, write_btad, write_ksdd2, write_mvtec
from PIL import Image

from defaug_utils.core.images import read_image, read_mask
from defaug_utils.data.datasets import DatasetWarning, load_dataset
from defaug_utils.data.preparation import prepare_dataset
from fault_parts.judging import Case, Cases, Trial

FORMATS = {"png": "PNG", "bmp": "BMP", "jpg": "JPEG", "tif": "TIFF", "webp": "WEBP"}
SIZE = (24, 64)


def write_parts(root: Path) -> None:
    """Own parts: four negatives, two positives with masks."""
    for index in range(4):
        save(root / "negative" / f"n{index}.png", draw_part(index, SIZE)[0])
    for index in range(2):
        image_u8, mask = draw_part(50 + index, SIZE, is_positive=True)
        save(root / "positive" / f"p{index}.png", image_u8)
        save(root / "masks" / f"p{index}.png", mask)


def encode(pixels: np.ndarray | Image.Image, suffix: str = "png", **options: object) -> bytes:
    """Pixels as the bytes of a file."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, FORMATS.get(suffix, suffix.upper()), **options)
    return stream.getvalue()


def load_and_prepare(folder: Path, **options: object) -> np.ndarray:
    """Load and prepare a data set; return the final manifest."""
    root = folder / "own"
    dataset = load_dataset(root, **options)
    prepare_dataset(dataset, root, folder / "prepared", (16, 48))
    return dataset


def replace_image(
    name: str, content: bytes, expected: np.ndarray | None, refusable: bool = False, tolerance: int = 0
) -> Case:
    """Another file in place of a negative; if accepted, it must decode to `expected`."""

    def case(folder: Path, rng: random.Random) -> Trial:
        root = folder / "own"
        write_parts(root)
        (root / "negative" / "n1.png").unlink()
        path = root / "negative" / name
        path.write_bytes(content)

        def is_right(dataset: object) -> bool:
            row = dataset.set_index("image").loc[f"negative/{name}"]
            found = read_image(path)
            if found.shape != expected.shape or (row["height"], row["width"]) != expected.shape[:2]:
                return False
            return np.abs(found.astype(int) - expected).max() <= tolerance

        right = None if expected is None else is_right
        return Trial(lambda: load_and_prepare(folder), name, right, refusable)

    return case


def replace_mask(
    name: str, content: bytes, expected: np.ndarray | None, refusable: bool = False, warning: str = ""
) -> Case:
    """Another file in the place of the first positive's mask, or both masks where a warning is wanted."""

    def case(folder: Path, rng: random.Random) -> Trial:
        root = folder / "own"
        write_parts(root)
        (root / "masks" / "p0.png").unlink()
        (root / "masks" / name).write_bytes(content)
        if warning:
            (root / "masks" / "p1.png").write_bytes(content)

        def read() -> tuple:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                dataset = load_and_prepare(folder)
            return dataset, " ".join(str(w.message) for w in told if w.category is DatasetWarning)

        def is_right(result: tuple) -> bool:
            dataset, told = result
            row = dataset.set_index("image").loc["positive/p0.png"]
            found = read_mask(root / "masks" / name)
            is_told = warning in told if warning else not told
            return np.array_equal(found, expected) and row["defect_pixels"] == expected.sum() and is_told

        return Trial(read, name, None if expected is None else is_right, refusable)

    return case


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and contains almost nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def claim_size(suffix: str, width: int, height: int) -> bytes:
    """A small file of a format whose header claims another size."""
    if suffix == "png":
        return png_header(width, height)
    content = bytearray(encode(draw_part(1, SIZE)[0], suffix))
    if suffix == "bmp":
        content[18:26] = struct.pack("<ii", width, height)
    elif suffix == "tif":
        for tag, value in ((256, width), (257, height)):
            place = content.find(struct.pack("<HH", tag, 4), 8)
            place = place if place > 0 else content.find(struct.pack("<HH", tag, 3), 8)
            content[place : place + 12] = struct.pack("<HHII", tag, 4, 1, value)
    elif suffix == "jpg":
        place = content.find(b"\xff\xc0")
        content[place + 5 : place + 9] = struct.pack(">HH", min(height, 65500), min(width, 65500))
    return bytes(content)


def flip_bits(content: bytes, rng: random.Random, count: int = 8) -> bytes:
    """Flip some bits of a file."""
    changed = bytearray(content)
    for _ in range(count):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def list_broken_images() -> Cases:
    """Truncated, empty, foreign and mislabelled files in place of an image."""
    image_u8 = draw_part(1, SIZE)[0]
    for suffix in FORMATS:
        options = {"lossless": True} if suffix == "webp" else {}
        content = encode(image_u8, suffix, **options)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        for share in (0.1, 0.5, 0.9):
            yield (
                f"cut-{suffix}-{share}",
                replace_image(f"n1.{suffix}", content[: int(share * len(content))], None),
            )
        yield f"last-byte-{suffix}", replace_image(f"n1.{suffix}", content[:-1], expected, True)
        yield f"more-behind-{suffix}", replace_image(f"n1.{suffix}", content + b"\0" * 999, expected, True)
        yield f"empty-{suffix}", replace_image(f"n1.{suffix}", b"", None)
        other = "bmp" if suffix == "png" else "png"
        yield f"{suffix}-called-{other}", replace_image(f"n1.{other}", content, expected)
        yield f"capitals-{suffix}", replace_image(f"N1.{suffix.upper()}", content, expected)
        for number in range(4):
            yield f"bits-{suffix}-{number}", _flip_case(suffix, content, image_u8.shape)
    for suffix in ("png", "bmp", "tif", "jpg"):
        for width, height in ((50_000, 50_000), (1, 2**30))[: 1 if suffix == "jpg" else 2]:
            yield (
                f"bomb-{suffix}-{width}",
                replace_image(f"n1.{suffix}", claim_size(suffix, width, height), None),
            )
    yield "bomb-negative-bmp", replace_image("n1.bmp", claim_size("bmp", -24, 64), None)
    yield "no-pixel-png", replace_image("n1.png", png_header(0, 0), None)
    yield "no-width-bmp", replace_image("n1.bmp", claim_size("bmp", 0, 64), None)
    for name, content in _foreign_files().items():
        yield f"foreign-{name}", replace_image("n1.png", content, None)


def _flip_case(suffix: str, content: bytes, shape: tuple[int, ...]) -> Case:
    def case(folder: Path, rng: random.Random) -> Trial:
        name = f"n1.{suffix}"
        trial = replace_image(name, flip_bits(content, rng), np.zeros(shape, np.uint8))(folder, rng)
        path = folder / "own" / "negative" / name
        return trial._replace(right=lambda dataset: read_image(path).dtype == np.uint8, may_refuse=True)

    return case


def _foreign_files() -> dict[str, bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.png", "no image")
    return {
        "text": b"no image at all\n",
        "html": b"<!doctype html><html><body>404</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "zip": stream.getvalue(),
        "pickle": pickle.dumps({"a": 1}),
        "pdf": b"%PDF-1.4\n%%EOF\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 64\nshowpage\n",
        "zeros": b"\0" * 4096,
        "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    }


def list_image_modes() -> Cases:
    """Colours, depths, palettes, frames and orientation tags: what must be read as the same picture."""
    image_u8 = draw_part(1, SIZE)[0]
    picture, grey = Image.fromarray(image_u8), Image.fromarray(image_u8).convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    repeated = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    cmyk = picture.convert("CMYK")
    palette = picture.quantize(16)
    one_bit = grey.point(lambda value: 255 * (value > 104), "1")
    yield "cmyk-tif", replace_image("n1.tif", encode(cmyk, "tif"), np.asarray(cmyk.convert("RGB")))
    jpeg = encode(cmyk, "jpg")
    yield "cmyk-jpg", replace_image("n1.jpg", jpeg, np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))
    yield "grey-png", replace_image("n1.png", encode(grey), repeated)
    yield "grey-16-png", replace_image("n1.png", encode(deep), repeated)
    yield "grey-16-tif", replace_image("n1.tif", encode(deep, "tif"), repeated)
    yield "whole-32-tif", replace_image("n1.tif", encode(deep.astype(np.int32), "tif"), repeated)
    yield "fractions-tif", replace_image("n1.tif", encode(deep.astype(np.float32) / 65535, "tif"), None)
    yield "palette-png", replace_image("n1.png", encode(palette), np.asarray(palette.convert("RGB")))
    clear = encode(palette, transparency=0)
    yield "palette-clear-png", replace_image("n1.png", clear, np.asarray(palette.convert("RGB")))
    yield "one-bit-png", replace_image("n1.png", encode(one_bit), np.asarray(one_bit.convert("RGB")))
    yield "alpha-png", replace_image("n1.png", encode(picture.convert("RGBA")), image_u8)
    see_through = picture.copy()
    see_through.putalpha(0)
    yield "see-through-png", replace_image("n1.png", encode(see_through), image_u8)
    yield "grey-alpha-png", replace_image("n1.png", encode(grey.convert("LA")), repeated)
    yield "lab-tif", replace_image("n1.tif", encode(_to_lab(picture), "tif"), image_u8, tolerance=2)
    others = [Image.fromarray(draw_part(7, SIZE)[0])]
    frames = {"save_all": True, "append_images": others}
    for suffix, options in (("png", {}), ("webp", {"lossless": True}), ("tif", {})):
        yield (
            f"frames-{suffix}",
            replace_image(f"n1.{suffix}", encode(picture, suffix, **frames, **options), None),
        )
    yield "frames-gif-called-png", replace_image("n1.png", encode(picture, "gif", **frames), None)
    for orientation in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535):
        for suffix in ("png", "jpg"):
            yield f"turned-{orientation}-{suffix}", _turn_case(picture, orientation, suffix)
    yield "broken-exif", replace_image("n1.png", encode(picture, exif=b"Exif\0\0garbage"), image_u8, True)


def _to_lab(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")


TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def _turn_case(picture: Image.Image, orientation: int, suffix: str) -> Case:
    exif = Image.Exif()
    exif[274] = orientation
    content = encode(picture, suffix, exif=exif.tobytes())
    plain = np.asarray(Image.open(io.BytesIO(encode(picture, suffix))).convert("RGB"))
    return replace_image(f"n1.{suffix}", content, TURNS.get(orientation, lambda a: a)(plain))


def list_masks() -> Cases:
    """Masks of the wrong size, meaning, format or depth."""
    mask = draw_part(50, SIZE, is_positive=True)[1]
    full = mask.astype(np.uint8) * 255
    inverted = "most masks cover more than half"
    yield "inverted", replace_mask("p0.png", encode(255 - full), ~mask, warning=inverted)
    yield (
        "all-255",
        replace_mask("p0.png", encode(np.full_like(full, 255)), np.ones_like(mask), warning=inverted),
    )
    yield "empty-mask", replace_mask("p0.png", encode(np.zeros_like(full)), None)
    for width, height in ((-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (-23, -63)):
        other = np.zeros((SIZE[1] + height, SIZE[0] + width), np.uint8)
        other[0, 0] = 255
        yield f"size-{width}-{height}", replace_mask("p0.png", encode(other), None)
    yield "lying-down", replace_mask("p0.png", encode(np.ascontiguousarray(full.T)), None)
    yield "double-size", replace_mask("p0.png", encode(full.repeat(2, 0).repeat(2, 1)), None)
    for name in ("p0.jpg", "p0.jpeg", "p0.png", "p0.bmp"):
        yield f"jpeg-called-{name}", replace_mask(name, encode(full, "jpg"), None)
    yield "jpeg-2000", replace_mask("p0.png", encode(full, "jpeg2000"), None)
    yield "lossy-webp", replace_mask("p0.webp", encode(Image.fromarray(full).convert("RGB"), "webp"), None)
    lossless = encode(Image.fromarray(full).convert("RGB"), "webp", lossless=True)
    yield "lossless-webp", replace_mask("p0.webp", lossless, mask)
    yield "jpeg-in-tif", replace_mask("p0.tif", encode(full, "tif", compression="jpeg"), None)
    for suffix in ("png", "bmp", "tif"):
        for value in (1, 2, 128):
            yield (
                f"value-{value}-{suffix}",
                replace_mask(f"p0.{suffix}", encode(full // 255 * value, suffix), mask),
            )
    deep = mask.astype(np.uint16)
    yield "deep-1", replace_mask("p0.png", encode(deep), mask)
    yield "deep-tif", replace_mask("p0.tif", encode(deep, "tif"), mask)
    yield "one-bit", replace_mask("p0.png", encode(Image.fromarray(full).convert("1")), mask)
    yield "fractions", replace_mask("p0.tif", encode(mask.astype(np.float32) / 9, "tif"), mask)
    holes = np.where(mask, np.nan, 0).astype(np.float32)
    yield "no-numbers", replace_mask("p0.tif", encode(holes, "tif"), mask, refusable=True)
    minus = np.where(mask, -1.0, 0).astype(np.float32)
    yield "below-zero", replace_mask("p0.tif", encode(minus, "tif"), mask, refusable=True)
    colour = np.zeros((*mask.shape, 3), np.uint8)
    colour[mask, 2] = 200
    yield "blue", replace_mask("p0.png", encode(colour), mask)
    palette = Image.fromarray(mask.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    yield "palette", replace_mask("p0.png", encode(palette), mask)
    palette.putpalette([255, 255, 255, 0, 0, 0])
    yield "palette-inverted", replace_mask("p0.png", encode(palette), ~mask, refusable=True, warning=inverted)
    alpha = np.dstack([colour, np.where(mask, 0, 255).astype(np.uint8)])
    yield "alpha", replace_mask("p0.png", encode(alpha), mask)
    pages = {"save_all": True, "append_images": [Image.fromarray(full)]}
    yield "second-page", replace_mask("p0.tif", encode(np.zeros_like(full), "tif", **pages), None)
    first = {"save_all": True, "append_images": [Image.fromarray(np.zeros_like(full))]}
    yield "two-pages", replace_mask("p0.tif", encode(full, "tif", **first), None)
    yield "two-frames", replace_mask("p0.png", encode(full, "png", **first), None)
    for share in (0.3, 0.8):
        content = encode(full)[: int(share * len(encode(full)))]
        yield f"cut-{share}", replace_mask("p0.png", content, mask, refusable=True)
    yield "empty", replace_mask("p0.png", b"", None)
    yield "bomb", replace_mask("p0.png", png_header(50_000, 50_000), None)
    exif = Image.Exif()
    exif[274] = 6
    yield "turned", replace_mask("p0.png", encode(full, exif=exif.tobytes()), None)


NAMES = {
    "spaces": " n 1 .png",
    "umlauts": "Prüfteil Größe.png",
    "decomposed": "Pru\u0308fteil.png",
    "emoji": "n🔧.png",
    "newline": "n\n1.png",
    "return": "n\r1.png",
    "tab": "n\t1.png",
    "comma": 'n,"1".png',
    "formula": "=1+1.png",
    "apostrophe": "'=1.png",
    "pipe": "n|1`$x$.png",
    "backslash": "n\\1.png",
    "dots": "n..1.png",
    "percent": "%2e%2e%2fn1.png",
    "drive": "C:n1.png",
    "tilde": "~n1.png",
    "nan": "nan.png",
    "number": "1e5.png",
    "long": "n" * 250 + ".png",
    "no-utf-8": os.fsdecode(b"n\xff1.png"),
    "right-to-left": "n\u202e1.png",
    "no-letters": "##.png",
}


def list_names() -> Cases:
    """Names that a file may have: the same picture under each, and twice where names clash."""
    for title, name in NAMES.items():
        yield f"name-{title}", functools.partial(_name_case, name)


def _name_case(name: str, folder: Path, rng: random.Random) -> Trial:
    image_u8 = draw_part(1, SIZE)[0]
    trial = replace_image(name, encode(image_u8), image_u8)(folder, rng)

    def is_right(dataset: object) -> object:
        from defaug_utils.core.manifest import read_manifest

        prepared = read_manifest(folder / "prepared" / "manifest.csv", check_files=True)
        originals = dict(zip(prepared["original_image"], prepared["image"], strict=True))
        return trial.right(dataset) and f"negative/{name}" in originals and len(prepared) == 6

    culprit = name.encode("utf-8", "replace").decode().split("?")[0] if name.isprintable() else "n"
    return trial._replace(right=is_right, culprit=culprit, may_refuse=True)


def change_folder(
    change: Callable[[Path], object],
    culprit: str,
    right: Callable | None = None,
    write: Callable[[Path], None] = write_parts,
    **options: object,
) -> Case:
    """A data set whose folder was changed; `right` receives its manifest."""

    def case(folder: Path, rng: random.Random) -> Trial:
        write(folder / "own")
        change(folder / "own")
        return Trial(lambda: load_and_prepare(folder, **options), culprit, right)

    return case


def list_layouts() -> Cases:
    """Folders with missing or extra parts, or with links elsewhere."""

    def link(name: str, target: str) -> Callable[[Path], None]:
        def change(root: Path) -> None:
            (root / name).unlink(missing_ok=True)
            (root / name).symlink_to(target)

        return change

    def swap(name: str, other: str) -> Callable[[Path], None]:
        return lambda root: (root / name).rename(root / other)

    def write(name: str, content: bytes) -> Callable[[Path], None]:
        return lambda root: (root / name).write_bytes(content)

    def turn_into(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
        def change(root: Path) -> None:
            (root / name).unlink()
            make(root / name)

        return change

    def nothing(root: Path) -> None:
        pass

    n1 = "negative/n1.png"
    yield "no-mask", change_folder(lambda root: (root / "masks/p0.png").unlink(), "p0.png")
    yield "no-image", change_folder(lambda root: (root / "positive/p0.png").unlink(), "p0.png")
    yield "no-masks", change_folder(swap("masks", "mask"), "p0.png")
    yield "capital-folders", change_folder(swap("masks", "Masks"), "p0.png")
    yield "mask-of-another-name", change_folder(swap("masks/p0.png", "masks/p9.png"), "p9.png")
    yield (
        "two-of-one-name",
        change_folder(lambda root: save(root / "negative/n1.bmp", draw_part(1, SIZE)[0]), "n1.png"),
    )
    yield (
        "twice-positive",
        change_folder(lambda root: save(root / "images/p0.png", draw_part(1, SIZE)[0]), "p0.png"),
    )
    yield (
        "a-folder-called-image",
        change_folder(turn_into(n1, Path.mkdir), "n1.png", lambda dataset: len(dataset) == 5),
    )
    yield "a-pipe-called-image", change_folder(turn_into(n1, os.mkfifo), "n1.png")
    yield "link-to-nothing", change_folder(link(n1, "nowhere.png"), "n1.png")
    yield "link-to-itself", change_folder(link(n1, "n1.png"), "n1.png")
    yield "link-to-endless-zeros", change_folder(link(n1, "/dev/zero"), "n1.png")
    yield "link-to-nothing-at-all", change_folder(link(n1, "/dev/null"), "n1.png")
    yield "link-to-an-image", change_folder(link(n1, "n2.png"), "n1.png", lambda dataset: len(dataset) == 6)
    yield "link-to-parent", change_folder(link("negative/more", ".."), "more")
    yield "link-to-own-folder", change_folder(link("negative/more", "."), "more")
    yield "unknown-layout", change_folder(nothing, "layout 'mvtek'", layout="mvtek")
    yield "other-layout", change_folder(nothing, "own", layout="mvtec")
    yield "no-such-category", change_folder(nothing, "grid", category="grid")
    yield (
        "other-category",
        change_folder(nothing, "grid", write=lambda root: write_mvtec(root / "nut"), category="grid"),
    )
    yield "unknown-left-out", change_folder(nothing, "n7.png", leave_out=["negative/n7.png"])
    yield "left-out-outside", change_folder(nothing, "../n1.png", leave_out=["../n1.png"])
    yield "left-out-no-name", change_folder(nothing, "3", leave_out=[3])
    yield "left-out-file-missing", change_folder(nothing, "names.txt", leave_out="names.txt")
    yield (
        "left-out-binary",
        change_folder(nothing, "null", leave_out="/dev/null", right=lambda d: len(d) == 6),
    )
    yield "left-out-nul", change_folder(nothing, "a", leave_out="a\0b")
    yield "empty-masks-unknown", change_folder(nothing, "keep", empty_masks="keep")
    yield "share-one", change_folder(nothing, "1", test_share=1.0)
    yield "share-nan", change_folder(nothing, "nan", test_share=float("nan"))
    only = {"write": write_ksdd2}
    yield (
        "ksdd2-no-mask",
        change_folder(lambda root: (root / "train/10001_GT.png").unlink(), "10001.png", **only),
    )
    yield (
        "ksdd2-twice",
        change_folder(lambda root: save(root / "train/010001.png", draw_part(1)[0]), "010001.png", **only),
    )
    yield "ksdd2-in-both", change_folder(swap("train/10001.png", "test/10001.png"), "10001.png", **only)
    for title, content in {
        "binary": b"\x89PNG\xff\xfe\0\0",
        "no-columns": b"a,b\n1,2\n",
        "empty": b"",
        "unclosed": b'image,defect_type\n"train',
        "utf-16": "image,defect_type\n".encode("utf-16"),
        "ragged": b"image,defect_type\ntrain/10000.png,a,b,c\n",
    }.items():
        yield f"surfaces-{title}", change_folder(write("surfaces.csv", content), "surfaces.csv", **only)
    own = {"write": lambda root: write_mvtec(root / "nut")}
    yield "mvtec-no-test", change_folder(swap("nut/test", "nut/Test"), "test", **own)
    yield "mvtec-no-truth", change_folder(swap("nut/ground_truth", "nut/truth"), "ground_truth", **own)
    yield (
        "mvtec-good-masked",
        change_folder(
            lambda root: save(root / "nut/ground_truth/good/000_mask.png", draw_part(1)[0]),
            "000_mask.png",
            **own,
        ),
    )
    yield "mvtec-no-good", change_folder(swap("nut/train/good", "nut/train/Good"), "own", **own)
    yield (
        "btad-other-mask",
        change_folder(
            swap("01/ground_truth/ko/0000.png", "01/ground_truth/ko/0009.png"), "0009.png", write=write_btad
        ),
    )
    for title, size in {"zero": (0, 9), "minus": (-4, 9), "huge": (10**6, 10**6)}.items():
        yield f"prepared-size-{title}", functools.partial(_size_case, size, "resize")
    yield "prepared-fit", functools.partial(_size_case, (16, 48), "stretch")
    yield "prepared-three-crops", functools.partial(_size_case, (16, 48), "three_crops")
    for title, content in {
        "empty": b"",
        "list": b"[]",
        "number": b"3",
        "null": b"null",
        "binary": b"\xff\xfe\0",
        "half": b'{"size": [16',
        "deep": b"[" * 100_000,
        "other": b'{"size": [16, 48], "fit": "windows"}',
        "text": b'"size"',
        "nul": b"\0" * 40,
    }.items():
        yield f"settings-{title}", functools.partial(_settings_case, "settings.json", content, None)
    for title, content in {
        "number": b"3\n",
        "null": b"null\n",
        "short": b'["n1"]\n',
        "wrong": b'["n1", "x", 4]\n',
        "binary": b"\xff\xfe\0\n",
        "object": b"{}\n",
        "empty-row": b'["negative-n1", "x", {}]\n',
        "unhashable": b'[["n1"], {"a": 1}, {"image": "", "mask": ""}]\n',
        "deep": b"[" * 100_000 + b"\n",
    }.items():
        yield f"journal-{title}", functools.partial(_settings_case, "finished.jsonl", content, "made")


def _size_case(size: tuple[int, int], fit: str, folder: Path, rng: random.Random) -> Trial:
    write_parts(folder / "own")
    dataset = load_dataset(folder / "own")
    culprit = str(size) if fit == "resize" else fit
    return Trial(lambda: prepare_dataset(dataset, folder / "own", folder / "prepared", size, fit), culprit)


def _settings_case(name: str, content: bytes, right: str | None, folder: Path, rng: random.Random) -> Trial:
    """A file of the prepared folder that was damaged before the call."""
    write_parts(folder / "own")
    (folder / "prepared").mkdir()
    (folder / "prepared" / name).write_bytes(content)
    culprit = "prepared" if name == "settings.json" else name
    return Trial(lambda: load_and_prepare(folder), culprit, None if right is None else lambda d: len(d) == 6)


def list_cases() -> Cases:
    """All of this module."""
    for group in (list_broken_images, list_image_modes, list_masks, list_names, list_layouts):
        for name, case in group():
            yield f"pictures/{group.__name__.removeprefix('list_')}/{name}", case
