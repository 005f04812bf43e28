"""Put everything that a room without network needs into one file: `make bundle`.

The archive holds the wheels of the lock, the project with its models, and the one line that installs them.
The wheels are those of this system and this Python.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from packaging.utils import parse_wheel_filename

from defaug_utils.core.files import write_atomically

ROOT = Path(__file__).parents[1]
TOP = "defaug"  # the folder that the archive unpacks to
BUILT_FROM = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
EARLIEST = (1980, 1, 1, 0, 0, 0)  # every member's date, so that equal content gives equal bytes
INSTALL_LINE = (
    ".venv/bin/python -m pip install --no-index --find-links ../wheels --no-deps "
    "--requirement ../wheels/requirements.txt"
)
INSTALL_TEXT = f"""\
How to install without network ({{system}}, Python {{python}})

Unpack this archive, open a terminal in the folder {TOP}/project, and type:

    python{{python}} -m venv .venv
    {INSTALL_LINE}
    touch .venv/.installed
    make lab

`make lab` opens JupyterLab. Without make: .venv/bin/python -m jupyter lab notebooks/01_data_prep.ipynb
On Windows, type .venv\\Scripts\\python instead of .venv/bin/python, and leave `touch` out.
"""


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pins", default="requirements.lock", help="file of exact versions")
    parser.add_argument("target", type=Path, help="archive to write, ending in .zip")
    parser.add_argument("pip_options", nargs="*", help="further options for pip, after --")
    return parser.parse_args(arguments)


def main() -> None:
    """Gather the wheels, and write the archive."""
    given = read_arguments()
    tracked = list_tracked()
    with tempfile.TemporaryDirectory() as folder:
        wheels, package = Path(folder, "wheels"), Path(folder, "package")
        copy_package(tracked, package)
        gather_wheels(wheels, package, given.pins, given.pip_options)
        members = list_members(tracked, sorted(wheels.glob("*.whl")))
        write_archive(members, given.target)
    print(f"{given.target}: {len(members)} files, {given.target.stat().st_size / 1e6:.0f} MB")


def copy_package(tracked: Iterable[str], folder: Path) -> None:
    """Copy what the package's wheel is built from, so that nothing of an earlier build gets into it."""
    for name in tracked:
        if name in BUILT_FROM or name.startswith("defaug_utils/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def gather_wheels(folder: Path, package: Path, pins: str, pip_options: Iterable[str]) -> None:
    """Download the wheel of every pin, checked by its hash if there is one, and build the package's own."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder)]
    asked = [*command, *pip_options, "--requirement", pins]
    for one in (asked, [*command, "--no-build-isolation", str(package)]):
        subprocess.run(one, cwd=ROOT, check=True)  # noqa: S603


def list_tracked() -> list[str]:
    """The project's files: those that git tracks, so that no run and no environment comes along."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def list_members(tracked: Iterable[str], wheels: Iterable[Path]) -> dict[str, Path | str]:
    """The archive's members by name, sorted: a file to copy, or a text."""
    wheels = list(wheels)
    told = {"system": sys.platform, "python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    members: dict[str, Path | str] = {
        "INSTALL.txt": INSTALL_TEXT.format(**told),
        "wheels/requirements.txt": pin_wheels(wheels),
        **{f"wheels/{wheel.name}": wheel for wheel in wheels},
        **{f"project/{name}": ROOT / name for name in tracked},
    }
    return {f"{TOP}/{name}": members[name] for name in sorted(members)}


def pin_wheels(wheels: Iterable[Path]) -> str:
    """A requirements file with the exact version and the hash of every wheel."""
    lines = []
    for wheel in wheels:
        name, version, *_ = parse_wheel_filename(wheel.name)
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return "".join(sorted(lines))


def write_archive(members: Mapping[str, Path | str], target: Path) -> None:
    """Write a zip; wheels, which are compressed already, are stored."""
    with write_atomically(target) as temporary, ZipFile(temporary, "w") as archive:
        for name, content in members.items():
            info = ZipInfo(name, EARLIEST)
            is_program = isinstance(content, Path) and bool(content.stat().st_mode & 0o100)
            info.external_attr = (0o755 if is_program else 0o644) << 16
            info.compress_type = ZIP_STORED if name.endswith(".whl") else ZIP_DEFLATED
            archive.writestr(info, content if isinstance(content, str) else content.read_bytes())


if __name__ == "__main__":
    main()
