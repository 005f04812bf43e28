"""The archive for a room without network: its list of files, without any download."""

import hashlib
import re
import shlex
import stat
import subprocess
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest
import write_bundle
from test_house import ROOT, read_text
from write_bundle import INSTALL_LINE, list_members, list_tracked, read_arguments, write_archive

WHEELS = ("zlib_ng-1.2.0-cp311-cp311-linux_x86_64.whl", "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl")
NEEDED = (
    *(
        "_toc.yml",
        "Snakefile",
        "Makefile",
        "constraints.txt",
        "book/references.bib",
        "profiles/workshop.yaml",
    ),
    *(
        "notebooks/01_data_prep.ipynb",
        "defaug_utils/__init__.py",
        "defaug_utils/widgets/static/mask_canvas.js",
    ),
    "models/workshop/inpainting/unet/diffusion_pytorch_model.safetensors",
    "models/backbones/resnet10_quarter.safetensors",
)


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in WHEELS]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


@pytest.fixture
def archive(tmp_path: Path, wheels: list[Path]) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files are the project's")
    write_archive(list_members(list_tracked(), wheels), tmp_path / "bundle.zip")
    return tmp_path / "bundle.zip"


def test_it_has_all_that_the_chapters_read_and_nothing_else(archive: Path):
    with ZipFile(archive) as opened:
        names = opened.namelist()
        assert opened.testzip() is None
        programs = [info.filename for info in opened.infolist() if info.external_attr >> 16 & stat.S_IXUSR]
    assert names == sorted(names)
    paths = [PurePosixPath(name) for name in names]
    assert {path.parts[0] for path in paths} == {"defaug"}
    assert not any(path.is_absolute() or ".." in path.parts or "\\" in path.name for path in paths)
    assert not {".venv", ".git", "runs", "build"} & {part for path in paths for part in path.parts}
    assert {f"defaug/project/{name}" for name in NEEDED} <= set(names)
    assert "defaug/project/.ci/run" in programs


def test_every_wheel_is_pinned_by_its_hash(archive: Path, wheels: list[Path]):
    with ZipFile(archive) as opened:
        lines = opened.read("defaug/wheels/requirements.txt").decode().splitlines()
        assert [line.split(" --hash=sha256:") for line in lines] == [
            ["torch==2.13.0+cpu", hashlib.sha256(wheels[1].read_bytes()).hexdigest()],
            ["zlib-ng==1.2.0", hashlib.sha256(wheels[0].read_bytes()).hexdigest()],
        ]
        for wheel in wheels:
            assert opened.read(f"defaug/wheels/{wheel.name}") == wheel.read_bytes()


def test_it_says_how_to_install_it_without_network(archive: Path):
    with ZipFile(archive) as opened:
        text = opened.read("defaug/INSTALL.txt").decode()
    assert INSTALL_LINE in text and "--no-index" in INSTALL_LINE
    assert not re.search(r"(?<!\w)/(?:home|root|tmp|work)/", text)


def test_equal_content_gives_equal_bytes(archive: Path, wheels: list[Path], tmp_path: Path):
    write_archive(list_members(list_tracked(), wheels[::-1]), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_a_stopped_archive_leaves_the_former_one(tmp_path: Path):
    target = tmp_path / "bundle.zip"
    target.write_bytes(b"former")
    with pytest.raises(FileNotFoundError):
        write_archive({"defaug/a": "text", "defaug/b": tmp_path / "missing"}, target)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.zip"]
    assert target.read_bytes() == b"former"


def test_the_wheels_are_those_of_the_lock_and_pip_is_asked_with_the_options(monkeypatch, tmp_path: Path):
    asked = []
    monkeypatch.setattr(write_bundle.subprocess, "run", lambda command, **_: asked.append(command[1:]))
    write_bundle.gather_wheels(tmp_path, tmp_path, "requirements.lock", ["--extra-index-url", "address"])
    locked, own = asked
    assert locked[-4:] == ["--extra-index-url", "address", "--requirement", "requirements.lock"]
    assert own[-1] == str(tmp_path) and "--no-build-isolation" in own
    assert "bundle:" in read_text("Makefile")


def test_the_package_is_built_from_tracked_files_alone(tmp_path: Path):
    tracked = ["pyproject.toml", "README.md", "defaug_utils/__init__.py", "models/README.md", "tests/x.py"]
    write_bundle.copy_package(tracked, tmp_path)
    copied = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert copied == {"pyproject.toml", "README.md", "defaug_utils/__init__.py"}


@pytest.mark.parametrize("options", ["", "--only-binary :all:"])
def test_the_script_understands_what_make_passes(options: str):
    shown = subprocess.run(
        ["make", "--dry-run", "bundle", f"PIP_OPTIONS={options}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (line,) = [line for line in shown.splitlines() if "write_bundle.py" in line]
    given = read_arguments(shlex.split(line)[2:])
    assert (given.target, given.pins) == (Path("build/defaug.zip"), "requirements.lock")
    assert given.pip_options == options.split()
