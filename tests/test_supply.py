"""What others install: the lock with its hashes, the wheel and the source archive."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_house import ROOT, constraints, project, read_text, requirements

IS_TESTED = (sys.platform, sys.version_info[:2], version("torch")) == ("linux", (3, 11), "2.13.0+cpu")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
BUILD = "from setuptools import build_meta; build_meta.build_{}({!r})"
IMPORT = """
from importlib.resources import files
import defaug_utils
from defaug_utils.widgets.parts import read_script
print(defaug_utils.__file__)
print(len(files("defaug_utils.report").joinpath("papers.csv").read_bytes()))
print(len(read_script("review_grid.js")))
"""


def read_lock(text: str) -> dict[str, tuple[Version, list[str]]]:
    """Version and hashes by normalised name, of a requirements file in which each entry has hashes."""
    entries = {}
    for entry in re.sub(r"(?m)^#.*\n|\\\n", "", text).splitlines():
        wanted, *hashes = entry.split()
        requirement = Requirement(wanted)
        (specifier,) = requirement.specifier
        name = canonicalize_name(requirement.name)
        assert specifier.operator == "==" and name not in entries, entry
        assert hashes and all(map(HASH.fullmatch, hashes)), f"{wanted} has no hash, or something else"
        entries[name] = Version(specifier.version), hashes
    return entries


def check_lock(text: str) -> None:
    found = {name: pinned.public for name, (pinned, _) in read_lock(text).items()}
    assert found == constraints(), "the lock and constraints.txt differ: run make lock"
    missing = {canonicalize_name(requirement.name) for requirement in requirements()} - found.keys()
    assert not missing


def test_the_lock_is_of_the_tested_versions_and_names_no_host():
    text = read_text("requirements.lock")
    check_lock(text)
    assert "://" not in text and not re.search(r"(?m)^\s*-(?!-hash)", text)


def test_the_locks_pytorch_is_the_tested_build():
    pinned, _ = read_lock(read_text("requirements.lock"))["torch"]
    assert pinned.local == "cpu"


@pytest.mark.skipif(not IS_TESTED, reason="another system, Python or build of PyTorch needs other packages")
def test_the_lock_leaves_no_requirement_of_its_packages_out():
    """It is installed with --no-deps, since pip takes no pin without extras for a package with extras."""
    locked = read_lock(read_text("requirements.lock"))
    waiting, seen = [*requirements()], set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        assert name in locked and locked[name][0] in wanted.specifier, str(wanted)
        for extra in {"", *wanted.extras} - {known for package, known in seen if package == name}:
            seen.add((name, extra))
            needed = map(Requirement, distribution(name).requires or [])
            waiting += [one for one in needed if not one.marker or one.marker.evaluate({"extra": extra})]
    assert {name for name, _ in seen} == locked.keys(), "packages that nothing needs"


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (r"tqdm==\S+", "tqdm==1.0"),  # another version
        (r"tqdm==\S+", "tqdm>=1.0"),  # no exact one
        (r"tqdm==[^=]+(=sha256:\w+[\s\\]+--hash)*=sha256:\w+\n", ""),  # an entry that is missing
        (r"(torch==\S+) \\\n.*\n", r"\1\n"),  # no hash
        (r"(torch==\S+ \\\n.*sha256:)\w{8}", r"\1"),  # a hash cut short
        (r"(torch==\S+ \\\n.*)sha256", r"\1md5"),  # a weak one
        (r"\Z", "left-pad==1.0 --hash=sha256:" + 64 * "0"),  # an entry too many
    ],
)
def test_a_broken_lock_is_found(pattern: str, change: str):
    text = read_text("requirements.lock")
    broken = re.sub(pattern, change, text, count=1)
    assert broken != text
    with pytest.raises(AssertionError):
        check_lock(broken)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of a working copy, and the wheel that is built from it; no network is needed."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for name in ("defaug_utils", "tests", "notebooks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("runs/smoke/data/manifest.csv", "defaug_utils/core/__pycache__/old.pyc", "data/a.png"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("left behind")
    build("sdist", copy, out)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(out, filter="data")
    build("wheel", out / archive.name.removesuffix(".tar.gz"), out)
    (wheel,) = out.glob("*.whl")
    return archive, wheel


def build(kind: str, folder: Path, out: Path) -> None:
    command = [sys.executable, "-c", BUILD.format(kind, str(out))]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def list_package() -> set[str]:
    """Modules and data files of the package, as the repository has them."""
    files = (path.relative_to(ROOT) for path in (ROOT / "defaug_utils").rglob("*") if path.is_file())
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_its_data_and_the_licence_and_nothing_else(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        about = f"defaug_utils-{project()['version']}.dist-info"
        assert opened.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert {name for name in names if not name.startswith(about)} == list_package()
    suffixes = {PurePosixPath(name).suffix for name in list_package()}
    assert suffixes == {".py", ".csv", ".css", ".js"}, "a new kind of file: does the wheel hold it?"


def test_the_source_archive_holds_what_the_wheel_is_built_from_and_nothing_else(built):
    archive, _ = built
    with tarfile.open(archive) as opened:
        files = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    written = {"PKG-INFO", "setup.cfg"}  # by setuptools
    own = {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
    found = {name for name in files if not name.startswith("defaug_utils.egg-info/")}
    assert found == list_package() | own | written


def test_the_wheel_installs_into_an_empty_environment(built, tmp_path):
    _, wheel = built
    python = tmp_path / "empty" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, wheel], check=True)
    libraries = os.pathsep.join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    env = os.environ | {"PYTHONPATH": libraries}  # where no .pth file is read, so this is the wheel's package
    command = {"cwd": tmp_path, "env": env, "check": True, "capture_output": True, "text": True}
    told = subprocess.run([python, "-c", IMPORT], **command).stdout.splitlines()
    assert Path(told[0]).is_relative_to(tmp_path)
    assert int(told[1]) == (ROOT / "defaug_utils" / "report" / "papers.csv").stat().st_size
    assert int(told[2]) > 1000
