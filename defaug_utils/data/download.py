"""Downloading a data set's archive: resumed, checked, and unpacked only if every member is safe."""

import errno
import hashlib
import lzma
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import requests

from defaug_utils.core.files import explain_full_disk
from defaug_utils.core.guards import raise_problems
from defaug_utils.core.manifest import is_inside

BLOCK = 1 << 16  # bytes; the most that a broken connection can lose
ATTEMPTS = 3
TIMEOUT = (10, 60)  # seconds to connect, and between two blocks
MAX_UNPACKED = 8 << 30  # bytes
MANY = 2**16 - 1  # members; stands for "more than can be counted here"
END_BYTES = 22 + 2**16  # record at a zip archive's end and the longest comment
MAX_MEMBERS = 100_000
MAX_NAME, MAX_PATH = 255, 1000  # bytes of a folder or file name, and of a member's whole path
# What zipfile and its decompressors raise on damaged archives, besides OSErrors without a file name.
DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    UnicodeError,
)


class Archive(NamedTuple):
    """A published archive: file name, address, hexadecimal MD5, and licence."""

    name: str
    url: str
    md5: str
    licence: str


KSDD2 = Archive(
    name="KolektorSDD2.zip",
    url="https://go.vicos.si/kolektorsdd2",
    md5="1ed0f628122776ace4965afa30dfe316",
    licence="CC BY-NC-SA 4.0: for non-commercial use, never to be redistributed here",
)


class DownloadError(RuntimeError):
    """An archive could not be downloaded, or is not the expected one."""


def download_dataset(
    folder: Path | str, archive: Archive = KSDD2, on_bytes: Callable[[int], None] | None = None
) -> Path:
    """Download and unpack a data set; finished work is not repeated.

    Args:
        folder: for the archive and the unpacked data set; an archive that you put there is used.
        on_bytes: called with the number of bytes just downloaded (such as `tqdm.update`).

    Returns:
        The data set's folder, for `load_dataset`: named after the archive, or the only folder inside it.

    Raises:
        DownloadError: no network, wrong size or hash; says what to download by hand and where to put it.
        ValueError: the archive contains unsafe members (all are listed).
        OSError: the disk is full.
    """
    unpacked = Path(folder) / Path(archive.name).stem
    if not unpacked.is_dir():
        unpack_archive(fetch_archive(folder, archive, on_bytes), unpacked)
    inner = list(unpacked.iterdir())
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else unpacked


def fetch_archive(
    folder: Path | str, archive: Archive, on_bytes: Callable[[int], None] | None = None
) -> Path:
    """Download an archive to `<name>.part`, resuming an interrupted download, and check its hash."""
    path = Path(folder) / archive.name
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        _check_hash(path, path, archive)
        return path
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with explain_full_disk(part):
                _fetch_rest(archive, part, on_bytes)
            break
        except requests.RequestException as error:
            if attempt == ATTEMPTS:
                have = f"; {part.stat().st_size:,} bytes are kept" if part.is_file() else ""
                raise DownloadError(
                    f"{archive.url} could not be downloaded ({type(error).__name__}){have}: run again, "
                    + _by_hand(path, archive)
                ) from error
    _check_hash(part, path, archive)
    os.replace(part, path)
    return path


def _by_hand(path: Path, archive: Archive) -> str:
    return (
        f"or download {archive.name} from {archive.url} with a browser and put it at {path} "
        f"(MD5 {archive.md5}; licence {archive.licence})"
    )


def _fetch_rest(archive: Archive, part: Path, on_bytes: Callable[[int], None] | None) -> None:
    """Append the missing bytes to a file; a server that can't resume sends everything again."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with requests.get(archive.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is missing, or the hash check will fail
        response.raise_for_status()
        if "html" in response.headers.get("Content-Type", ""):
            raise requests.RequestException("the server sent a web page instead of a file")
        goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open("ab" if goes_on else "wb") as file:
            needed, free = int(response.headers.get("Content-Length", 0)), shutil.disk_usage(part.parent).free
            if needed > free:
                raise DownloadError(
                    f"{part.parent} has {free / 1e6:,.0f} MB left, but the download needs "
                    f"{needed / 1e6:,.0f} MB: free some space or choose another folder"
                )
            expected = file.tell() + needed
            for block in response.iter_content(BLOCK):
                file.write(block)
                if on_bytes:
                    on_bytes(len(block))
            if file.tell() < expected:
                raise requests.ConnectionError(f"ended after {file.tell()} of {expected} bytes")


def _check_hash(found: Path, path: Path, archive: Archive) -> None:
    """Refuse unexpected content; a downloaded file is deleted, one that the user put there is not."""
    with found.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 == archive.md5:
        return
    size, what_to_do = found.stat().st_size, "Delete it and run again"
    if found != path:
        found.unlink()
        what_to_do = "It was deleted: run again"
    raise DownloadError(
        f"{found} ({size:,} bytes) has MD5 {md5}, expected {archive.md5}: it was damaged in transfer, or is "
        f"another version. {what_to_do}, {_by_hand(path, archive)}"
    )


def unpack_archive(path: Path | str, folder: Path | str, max_bytes: int = MAX_UNPACKED) -> None:
    """Unpack a zip archive into a new folder, completely or not at all, after checking every member."""
    path, folder = Path(path), Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} already exists: delete it to unpack {path.name} again")
    unfinished = folder.with_name(f".{folder.name}.unpacking")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        with explain_full_disk(folder), zipfile.ZipFile(path) as archive:
            _check_members(archive, max_bytes)
            for member in archive.infolist():
                member.filename = member.orig_filename.replace("\\", "/")
                archive.extract(member, unfinished)  # at most its declared size, with its CRC checked
            os.replace(unfinished, folder)
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{path} is not a readable zip archive ({error}): download it again") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_members(archive: zipfile.ZipFile, max_bytes: int) -> None:
    """Refuse paths that leave the folder, links, encrypted members and zip bombs; lists every such member."""
    members = archive.infolist()
    problems = [f"{member.orig_filename!r}: {found}" for member in members if (found := _find_danger(member))]
    names = [member.orig_filename.replace("\\", "/").rstrip("/").casefold() for member in members]
    folders = {parent for name in names if len(name) <= MAX_PATH for parent in PurePosixPath(name).parents}
    problems += [
        f"{member.orig_filename!r}: occurs twice, or is both a file and a folder"
        for member, name, times in zip(members, names, map(Counter(names).__getitem__, names), strict=True)
        if times > 1
        or (not member.orig_filename.endswith(("/", "\\")) and PurePosixPath(name[:MAX_PATH]) in folders)
    ]
    problems += [] if members else ["it has no members"]
    announced = _read_count(archive)
    if announced not in (len(members) % (MANY + 1), MANY):
        problems.append(f"it announces {announced} members and lists {len(members)}: download it again")
    total = sum(member.file_size for member in members)
    if total > max_bytes or len(members) > MAX_MEMBERS:
        problems.append(
            f"{len(members)} members with {total:,} bytes in total; the limits are {MAX_MEMBERS:,} members "
            f"and {max_bytes:,} bytes"
        )
    raise_problems(f"archive {archive.filename} is not safe to unpack", problems, ValueError)


def _read_count(archive: zipfile.ZipFile) -> int:
    """The number of members at the archive's end, which zipfile does not compare with its list."""
    archive.fp.seek(0, os.SEEK_END)
    archive.fp.seek(max(0, archive.fp.tell() - END_BYTES))
    end = archive.fp.read()
    return struct.unpack_from("<H", end, end.rfind(b"PK\5\6") + 10)[0]


def _find_danger(member: zipfile.ZipInfo) -> str | None:
    name = member.orig_filename
    path = os.fsencode(name.replace("\\", "/"))
    if len(path) > MAX_PATH or max(map(len, path.split(b"/"))) > MAX_NAME:
        return "its path is too long"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if not name or not is_inside(name) or ":" in name or not name.isprintable():
        return "its path leaves the folder, or names a drive"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    return "is encrypted" if member.flag_bits & 1 else None
