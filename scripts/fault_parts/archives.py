"""Broken and dangerous archives, through `unpack_archive`."""

import functools
import io
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from defaug_utils.data.download import unpack_archive
from fault_parts.judging import Cases, Trial

NAMES = {
    "parent": "../x",
    "parent-inside": "a/../../x",
    "absolute": "/etc/x",
    "backslash": "..\\x",
    "backslash-inside": "a\\..\\..\\x",
    "drive": "C:\\x",
    "drive-relative": "C:x",
    "share": "\\\\server\\x",
    "share-slash": "//server/x",
    "stream": "a.png:x",
    "newline": "a\nb",
    "escape": "a\x1b[31mb",
    "only-parent": "..",
    "back-and-forth": "a/../b",
    "long": "x" * 300,
    "deep": "a/" * 3000 + "x",
}
SAFE = {
    "spaces": "a b .png",
    "umlauts": "Prüf/Größe.png",
    "emoji": "🔧.png",
    "percent": "%2e%2e/x",
    "tilde": "~/x",
    "dot": "./a.png",
    "hidden": ".a",
    "dots": "a..b",
    "backslash-folder": "a\\b.png",
    "device-name": "CON",
}


def zip_members(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive as bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def special(name: str, kind: int) -> zipfile.ZipInfo:
    """A member of another kind than file, by its Unix mode."""
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


def named(name: str) -> zipfile.ZipInfo:
    """A member whose name is kept as it is."""
    member = zipfile.ZipInfo("x")
    member.filename = name
    return member


def patch(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Bytes of the first header of a kind replaced."""
    changed, place = bytearray(content), content.find(signature)
    changed[place + offset : place + offset + len(value)] = value
    return bytes(changed)


def _case(
    make: Callable[[], bytes],
    culprit: str,
    expected: dict[str, bytes] | None,
    refusable: bool,
    folder: Path,
    rng: random.Random,
) -> Trial:
    (folder / "set.zip").write_bytes(make())
    (folder / "in").mkdir()

    def is_right(_: object) -> bool:
        root = folder / "in" / "out"
        found = {
            path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
        }
        return found == expected and {path.name for path in folder.iterdir()} == {"set.zip", "in"}

    def read() -> None:
        try:
            unpack_archive(folder / "set.zip", folder / "in" / "out")
        except BaseException:
            left = [path.name for path in (*folder.iterdir(), *(folder / "in").iterdir())]
            if sorted(left) != ["in", "set.zip"]:
                raise RuntimeError(f"refused, but {left} are left") from None
            raise

    return Trial(read, culprit, None if expected is None else is_right, refusable)


def list_cases() -> Cases:
    """All of this module."""

    def add(
        title: str,
        make: Callable[[], bytes],
        culprit: str = "set.zip",
        expected: dict | None = None,
        refusable: bool = False,
    ) -> tuple:
        return f"archive/{title}", functools.partial(_case, make, culprit, expected, refusable)

    good = zip_members(("a/1.png", b"one" * 50), ("a/2.png", b"two"))
    right = {"a/1.png": b"one" * 50, "a/2.png": b"two"}
    for title, name in NAMES.items():
        shown = repr(name)[1:-1][:60]
        yield add(
            f"name-{title}", functools.partial(zip_members, (named(name), b"x"), ("a/1.png", b"y")), shown
        )
    for title, name in SAFE.items():
        kept = name.replace("\\", "/").removeprefix("./")
        yield add(f"safe-{title}", functools.partial(zip_members, (named(name), b"x")), expected={kept: b"x"})
    kinds = {
        "link": stat.S_IFLNK,
        "pipe": stat.S_IFIFO,
        "block": stat.S_IFBLK,
        "character": stat.S_IFCHR,
        "socket": stat.S_IFSOCK,
    }
    for title, kind in kinds.items():
        yield add(title, functools.partial(zip_members, (special("a.png", kind), b"/etc/hostname")), "a.png")
    yield add(
        "link-then-below", lambda: zip_members((special("a", stat.S_IFLNK), b"/tmp"), ("a/x", b"x")), "'a'"
    )
    yield add("good", lambda: good, expected=right)
    for share in (0.0, 0.2, 0.6, 0.95):
        yield add(f"cut-{share}", functools.partial(bytes, good[: int(share * len(good))]))
    yield add("last-byte", lambda: good[:-1])
    yield add("more-before", lambda: b"#!/bin/sh\n" + good, expected=right)
    yield add("more-behind", lambda: good + b"\0" * 100, expected=right, refusable=True)
    yield add("text", lambda: b"<html>404</html>")
    yield add("tar", _tar)
    yield add("rar", lambda: b"Rar!\x1a\x07\x01\0" + b"\0" * 100)
    yield add("no-members", lambda: zip_members(), expected={}, refusable=True)
    yield add("only-folders", lambda: zip_members(("a/", b"")), expected={}, refusable=True)
    yield add("encrypted", lambda: patch(good, b"PK\1\2", 8, b"\1\0"), "a/1.png")
    yield add("method-99", lambda: patch(patch(good, b"PK\1\2", 10, b"\x63\0"), b"PK\3\4", 8, b"\x63\0"))
    yield add("checksum", lambda: patch(good, b"PK\1\2", 16, b"\0\0\0\0"))
    yield add("version-99", lambda: patch(good, b"PK\1\2", 6, b"\x63\0"))
    yield add("offset", lambda: patch(good, b"PK\1\2", 42, b"\xff\xff\0\0"))
    yield add("directory-offset", lambda: patch(good, b"PK\5\6", 16, b"\xff\xff\xff\0"))
    yield add("fewer-members", lambda: patch(good, b"PK\5\6", 8, b"\1\0\1\0"), expected=right, refusable=True)
    yield add("other-name", lambda: patch(good, b"PK\3\4", 30, b"../x.pn"), "a/1.png")
    claimed = patch(good, b"PK\1\2", 24, struct.pack("<I", 10**6))  # the content's checksum still holds
    yield add("claims-more", lambda: claimed, expected=right, refusable=True)
    yield add("claims-less", lambda: patch(good, b"PK\1\2", 24, struct.pack("<I", 3)))
    yield add("claims-4-gb-thrice", lambda: _claim(3, 0xFFFFFFF0), "bytes")
    yield add(
        "bomb-by-count", lambda: zip_members(*((f"{n}", b"") for n in range(100_001))), "100001 members"
    )
    yield add("ratio-100", lambda: zip_members(("z", bytes(10**7))), expected={"z": bytes(10**7)})
    yield add("overlapping", _overlap)
    yield add("archive-within", lambda: zip_members(("b.zip", good)), expected={"b.zip": good})
    yield add("name-twice", _twice, "a.png")
    yield add("name-twice-in-capitals", lambda: zip_members(("a.png", b"1"), ("A.PNG", b"2")), "A.PNG")
    yield add("file-and-folder", lambda: zip_members(("a", b"1"), ("a/b", b"2")), "'a'")
    yield add("folder-and-file", lambda: zip_members(("a/b", b"1"), ("a", b"2")), "'a'")
    for title, method in {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}.items():
        content = zip_members(("a.png", bytes(range(256)) * 9), method=method)
        yield add(f"{title}", functools.partial(bytes, content), expected={"a.png": bytes(range(256)) * 9})
        yield add(f"{title}-broken", functools.partial(patch, content, b"PK\3\4", 45, b"\xff" * 40))
        yield add(f"{title}-zeros", functools.partial(patch, content, b"PK\3\4", 36, b"\0" * 60))
    for number in range(10):
        yield f"archive/bits-{number}", functools.partial(_flip_case, good, right)


def _flip_case(good: bytes, right: dict[str, bytes], folder: Path, rng: random.Random) -> Trial:
    changed = bytearray(good)
    for _ in range(3):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    trial = _case(lambda: bytes(changed), "set.zip", right, True, folder, rng)

    def is_right(_: object) -> bool:
        """Names are under no checksum; contents are."""
        contents = sorted(path.read_bytes() for path in (folder / "in" / "out").rglob("*") if path.is_file())
        return contents == sorted(right.values())

    return trial._replace(right=is_right)


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return stream.getvalue()


def _claim(count: int, size: int) -> bytes:
    content = bytearray(zip_members(*((f"{n}.png", b"x") for n in range(count))))
    place = content.find(b"PK\1\2")
    while place >= 0:
        content[place + 24 : place + 28] = struct.pack("<I", size)
        place = content.find(b"PK\1\2", place + 4)
    return bytes(content)


def _overlap() -> bytes:
    """Two members of the directory that share one content."""
    content = zip_members(("1.png", b"x" * 100), ("2.png", b"x" * 100))
    second = content.find(b"PK\1\2", content.find(b"PK\1\2") + 4)
    return content[: second + 42] + struct.pack("<I", 0) + content[second + 46 :]


def _twice() -> bytes:
    content = zip_members(("a.png", b"1"), ("b.png", b"2"))
    return content.replace(b"b.png", b"a.png")
