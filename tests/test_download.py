"""Downloads go on where they stopped; nothing wrong or dangerous is unpacked."""

import errno
import hashlib
import io
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from layouts import write_ksdd2

from defaug_utils.data import download
from defaug_utils.data.datasets import load_dataset
from defaug_utils.data.download import Archive, DownloadError, download_dataset, fetch_archive, unpack_archive


def zip_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `content` at every address, as told by its attributes."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.knows_ranges, self.cuts = content, True, []
        self.content_type, self.status, self.ranges = "application/zip", None, []


class Handler(BaseHTTPRequestHandler):
    """Answers a range, redirects `/short`, and breaks off after as many bytes as `cuts` says."""

    def do_GET(self):
        if self.path == "/short":
            self.send_response(302)
            self.send_header("Location", "/set.zip")
            self.end_headers()
            return
        server, start = self.server, 0
        server.ranges.append(self.headers["Range"])
        if server.knows_ranges and self.headers["Range"]:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        body = server.content[start:]
        status = server.status or (416 if not body else 206 if start or server.knows_ranges else 200)
        self.send_response(status)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def content(tmp_path) -> bytes:
    write_ksdd2(tmp_path / "original")
    files = sorted((tmp_path / "original").rglob("*.png"))
    members = {path.relative_to(tmp_path / "original").as_posix(): path.read_bytes() for path in files}
    return zip_bytes(members | {"split_weakly_0.pyb": b"never unpickled"})


@pytest.fixture
def server(content, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "BLOCK", 100)
    with Server(content) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def archive_at(server: Server, md5: str | None = None, path: str = "/set.zip") -> Archive:
    url = f"http://127.0.0.1:{server.server_port}{path}"
    return Archive("set.zip", url, md5 or hashlib.md5(server.content).hexdigest(), "CC BY-NC-SA 4.0")  # noqa: S324


def test_fetched_unpacked_and_loaded_once(tmp_path, server, content):
    calls = []
    root = download_dataset(tmp_path, archive_at(server, path="/short"), on_bytes=calls.append)
    assert root == tmp_path / "set" and sum(calls) == len(content)
    assert len(load_dataset(root)) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original", "set", "set.zip"]
    assert download_dataset(tmp_path, archive_at(server)) == root
    assert len(server.ranges) == 1


def test_interrupted_download_goes_on(tmp_path, server, content):
    server.cuts = [1000, 500]
    path = fetch_archive(tmp_path, archive_at(server))
    assert path.read_bytes() == content
    assert server.ranges == ["bytes=0-", "bytes=1000-", "bytes=1500-"]


def test_killed_download_goes_on_in_the_next_run(tmp_path, server, content):
    (tmp_path / "set.zip.part").write_bytes(content[:777])
    assert fetch_archive(tmp_path, archive_at(server)).read_bytes() == content
    assert server.ranges == ["bytes=777-"]


def test_complete_part_is_not_fetched_again(tmp_path, server, content):
    (tmp_path / "set.zip.part").write_bytes(content)
    assert fetch_archive(tmp_path, archive_at(server)).read_bytes() == content


def test_server_without_ranges_starts_again(tmp_path, server, content):
    server.knows_ranges = False
    (tmp_path / "set.zip.part").write_bytes(b"x" * 777)
    assert fetch_archive(tmp_path, archive_at(server)).read_bytes() == content


def test_connection_that_keeps_breaking_says_how_to_go_on(tmp_path, server, content):
    server.cuts = [100, 100, 100]
    with pytest.raises(DownloadError, match="300 bytes are kept: run again") as error:
        fetch_archive(tmp_path, archive_at(server))
    assert str(tmp_path / "set.zip") in str(error.value) and "browser" in str(error.value)
    assert fetch_archive(tmp_path, archive_at(server)).read_bytes() == content


def test_wrong_hash_is_refused_and_deleted(tmp_path, server):
    with pytest.raises(DownloadError, match=r"has MD5 .*, expected 0123"):
        download_dataset(tmp_path, archive_at(server, md5="0123"))
    assert not any((tmp_path / name).exists() for name in ("set", "set.zip", "set.zip.part"))


def test_archive_put_there_by_hand(tmp_path, server, content):
    archive = archive_at(server)
    (tmp_path / "set.zip").write_bytes(content[:-1])
    with pytest.raises(DownloadError, match="Delete it and run again"):
        download_dataset(tmp_path, archive)
    assert (tmp_path / "set.zip").is_file()
    (tmp_path / "set.zip").write_bytes(content)
    assert len(load_dataset(download_dataset(tmp_path, archive))) == 12
    assert server.ranges == []


def test_web_page_and_error_status_are_refused(tmp_path, server):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch_archive(tmp_path, archive_at(server))
    server.content_type, server.status = "application/zip", 404
    with pytest.raises(DownloadError, match="HTTPError"):
        fetch_archive(tmp_path, archive_at(server))
    assert not (tmp_path / "set.zip").exists() and not (tmp_path / "set.zip.part").exists()


def test_no_network_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise download.requests.ConnectionError("no route to host")

    monkeypatch.setattr(download.requests, "get", refuse)
    with pytest.raises(DownloadError) as error:
        download_dataset(tmp_path)
    for expected in (
        "https://go.vicos.si/kolektorsdd2",
        f"put it at {tmp_path / 'KolektorSDD2.zip'}",
        "1ed0f628122776ace4965afa30dfe316",
        "CC BY-NC-SA 4.0",
    ):
        assert expected in str(error.value)


def test_no_space_is_told_before_the_download(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("usage", (), {"free": 10}))
    with pytest.raises(DownloadError, match="free some space or choose another folder"):
        fetch_archive(tmp_path, archive_at(server))


def test_archive_with_a_folder_of_its_own(tmp_path, server):
    with zipfile.ZipFile(io.BytesIO(server.content)) as archive:
        server.content = zip_bytes(
            {f"KolektorSDD2/{name}": archive.read(name) for name in archive.namelist()}
        )
    root = download_dataset(tmp_path, archive_at(server))
    assert root == tmp_path / "set/KolektorSDD2" and len(load_dataset(root)) == 12


LINK = stat.S_IFLNK | 0o777


@pytest.mark.parametrize(
    ("name", "mode", "danger"),
    [
        ("../outside.png", 0, "leaves the folder"),
        ("train/../../outside.png", 0, "leaves the folder"),
        ("/etc/outside.png", 0, "leaves the folder"),
        ("C:\\outside.png", 0, "names a drive"),
        ("\\\\host\\share\\outside.png", 0, "leaves the folder"),
        ("train\\..\\..\\outside.png", 0, "leaves the folder"),
        ("train/10000.png:stream", 0, "names a drive"),
        ("train/link.png", LINK, "is a link"),
        ("train/pipe", stat.S_IFIFO | 0o600, "is a link or a device"),
    ],
)
def test_dangerous_members_are_refused_before_anything_is_unpacked(tmp_path, name, mode, danger):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("train/10000.png", b"harmless")
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        archive.writestr(member, b"/etc/passwd")
    with pytest.raises(ValueError, match=f"1 problem.*\n.*{danger}"):
        unpack_archive(tmp_path / "set.zip", tmp_path / "inner/set")
    assert [path.name for path in tmp_path.rglob("*")] == ["set.zip"]


def test_bomb_is_refused(tmp_path):
    (tmp_path / "set.zip").write_bytes(zip_bytes({"zeros.png": b"\0" * 1_000_000}))
    with pytest.raises(ValueError, match="1,000,000 bytes in total"):
        unpack_archive(tmp_path / "set.zip", tmp_path / "set", max_bytes=999_999)
    unpack_archive(tmp_path / "set.zip", tmp_path / "set", max_bytes=1_000_000)


def test_member_larger_than_declared_is_not_unpacked(tmp_path):
    whole = zip_bytes({"zeros.png": b"\0" * 100_000})
    lied = whole.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "set.zip").write_bytes(lied)
    with pytest.raises(ValueError, match="not a readable zip archive"):
        unpack_archive(tmp_path / "set.zip", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_an_archive_that_lists_fewer_members_than_it_announces_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, b"x")
    content = bytearray((tmp_path / "set.zip").read_bytes())
    content[content.rindex(b"PK\5\6") + 10] = 3
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"announces 3 members and lists 2: download it again"):
        unpack_archive(tmp_path / "set.zip", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_damaged_archive_leaves_nothing_behind(tmp_path, content):
    for damaged in (
        b"no archive",
        content[: len(content) // 2],
        content[:300] + b"\xff" * 40 + content[340:],
    ):
        (tmp_path / "set.zip").write_bytes(damaged)
        with pytest.raises(ValueError, match="not a readable zip archive"):
            unpack_archive(tmp_path / "set.zip", tmp_path / "set")
        assert not (tmp_path / "set").exists() and not (tmp_path / ".set.unpacking").exists()


def test_full_disk_leaves_nothing_half_unpacked(tmp_path, content, monkeypatch):
    (tmp_path / "set.zip").write_bytes(content)

    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "copyfileobj", fill)
        with pytest.raises(OSError, match="the disk is full"):
            unpack_archive(tmp_path / "set.zip", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    unpack_archive(tmp_path / "set.zip", tmp_path / "set")
    with pytest.raises(FileExistsError, match="already exists"):
        unpack_archive(tmp_path / "set.zip", tmp_path / "set")


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"a": b"1", "a/b": b"2"}, "'a': occurs twice, or is both a file and a folder"),
        ({"a.png": b"1", "A.PNG": b"2"}, "'A.PNG': occurs twice"),
        ({"x" * 300: b"1"}, "x': its path is too long"),
        ({"a/" * 3000 + "b": b"1"}, "its path is too long"),
        ({}, "has no members"),
    ],
)
def test_members_that_no_folder_can_hold_are_listed(tmp_path, members, told):
    (tmp_path / "set.zip").write_bytes(zip_bytes(members))
    with pytest.raises(ValueError, match=told):
        unpack_archive(tmp_path / "set.zip", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_told_whatever_its_compression(tmp_path, method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.png", bytes(range(256)) * 9)
    content = bytearray(buffer.getvalue())
    content[45:85] = b"\xff" * 40
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.zip is not a readable zip archive"):
        unpack_archive(tmp_path / "set.zip", tmp_path / "out")
    (tmp_path / "set.zip").write_bytes(buffer.getvalue()[:-6] + b"\xff\xff\xff\xff\0\0")
    with pytest.raises(ValueError, match=r"set\.zip is not a readable zip archive"):
        unpack_archive(tmp_path / "set.zip", tmp_path / "out")


@pytest.mark.parametrize("changes", [{96: 8, 133: 128}, {133: 0}])
def test_names_that_are_no_text_are_told_with_the_archive(tmp_path, changes):
    """Found by changing bytes at random: of the directory, the mark for UTF-8 and a name's first byte."""
    content = bytearray(zip_bytes({"a/1.png": b"one" * 30, "a/2.png": b"two"}))
    for place, value in changes.items():
        content[place] = value
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.zip"):
        unpack_archive(tmp_path / "set.zip", tmp_path / "out")
