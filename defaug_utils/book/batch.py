"""Running notebooks unattended, and building the book from their output."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from filelock import FileLock, Timeout
from traitlets.config import Config

from defaug_utils.core.files import write_json
from defaug_utils.core.guards import name_nearest, raise_problems

if TYPE_CHECKING:  # it imports PyTorch, which takes seconds
    from defaug_utils.training.loop import StepDone

START_ATTEMPTS = 3
OPTIONS = {"kernel_name": "python3", "progress_bar": False, "cwd": "."}
OPTIONS |= {"start_timeout": 120, "iopub_timeout": 120}  # seconds; a busy machine is slow to print
ENCRYPTED = Config(KernelManager={"transport_encryption": "auto"})  # kernels listen on a local port
FREE_BYTES = 2**30  # on a run's disk; the workshop's run takes 0.9 GB
JOB_BYTES = 2**30  # of memory; libraries alone take half of it
NO_MEMORY = (  # the words of Python, NumPy, PyTorch, its threads and kernels, and C++
    *("MemoryError", "Unable to allocate", "allocate memory", "out of memory"),
    *("can't start new thread", "could not create a primitive", "bad_alloc"),
)
NUMBERS = ("threads", "shards", "processes")  # of `snakemake --config`, whole ones from 1
CONFIG = ("profile", "data", "several", "run", *NUMBERS)
CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")  # bytes, or "max"
ERRORS = "errors"  # folder of a run for its jobs' error messages


class NotebookError(RuntimeError):
    """A notebook's cell failed, or its kernel did not start."""


def check_options(given: Mapping[str, object], gpus: int = 0) -> None:
    """Refuse unknown options of `snakemake --config`, and numbers that are none; lists them all.

    Where this machine's `gpus` run the jobs, a training can't have more processes than these.
    """
    unknown = [name for name in given if name not in CONFIG]
    problems = [f"unknown option {name!r}{name_nearest(name, CONFIG)}" for name in unknown]
    numbers = {name: str(given.get(name) or 1) for name in NUMBERS}
    wrong = [name for name, text in numbers.items() if not text.isdecimal() or int(text) < 1]
    problems += [f"{name} is {numbers[name]!r}, expected a whole number from 1" for name in wrong]
    if gpus and "processes" not in wrong and int(numbers["processes"]) > gpus:
        problems.append(f"processes is {numbers['processes']!r}, but there are {gpus} GPUs")
    raise_problems("--config", problems)


def check_run(folder: Path | str) -> None:
    """Refuse a run's folder, which need not exist, if it can't be written to or its disk is full.

    Raises:
        RuntimeError: says what to do.
    """
    folder = Path(folder).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise RuntimeError(f"{folder} can't be written: check the access rights of {nearest}")
    free = shutil.disk_usage(nearest).free
    if free < FREE_BYTES:
        raise RuntimeError(
            f"the disk of {folder} is full: {free / 2**20:.0f} MB free, 1 GB needed: free some space, or "
            "run from another disk"
        )


def advise(cores: int) -> list[str]:
    """What this machine lacks for so many jobs at the same time, one sentence each; empty if nothing."""
    memory, advice = measure_memory(), []
    if memory < cores * JOB_BYTES:
        most = max(1, memory // JOB_BYTES)
        advice.append(
            f"{cores} jobs at the same time need about {cores} GB of memory, this machine has "
            f"{memory / 2**30:.1f} GB: run with CORES={most}, or close other programs"
        )
    if list_gpus() and version("torch").endswith("+cpu"):
        advice.append(
            "PyTorch was installed without CUDA and can't use this machine's GPU: install a build with CUDA "
            "(see pytorch.org, Get started), or set CUDA_VISIBLE_DEVICES to nothing"
        )
    return advice


def measure_memory() -> int:
    """Bytes of memory that this process and its jobs may use: the machine's, or its container's."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CONTAINER_MEMORY.read_text().strip() if CONTAINER_MEMORY.is_file() else ""
    return min(memory, int(limit)) if limit.isdecimal() else memory


def claim_run(folder: Path | str) -> FileLock:
    """Create a run's folder and lock it for this process; the lock always ends with the process.

    Raises:
        RuntimeError: another process holds it, it can't be written to, or its disk is full.
    """
    check_run(folder)
    folder = Path(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        shutil.rmtree(folder / ERRORS, ignore_errors=True)
    except Timeout:
        raise RuntimeError(f"another `make` is running in {folder}: wait until it has finished") from None
    except OSError as error:
        raise RuntimeError(f"{folder} can't be written ({error.strerror}): check its access rights") from None
    return lock


def list_gpus() -> list[str]:
    """CUDA names of the GPUs that jobs may use: the visible ones, or all that nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")  # importing PyTorch would take seconds
    if not program:
        return []
    told = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)  # noqa: S603
    lines = [line for line in told.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


@contextmanager
def hold_gpu(run: Path | str, wanted: int) -> Iterator[None]:
    """Give this process as many GPUs as it wants that no other job of the run holds, if there are more.

    A cluster shows a job no more than it wants, and may number the GPUs of every job from 0.
    """
    names, held = list_gpus() if wanted else [], {}
    for name in names if len(names) > wanted else []:
        lock = FileLock(Path(run) / f".gpu-{platform.node()}-{name}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        held[name] = lock
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)  # read at CUDA's first use, here or in a kernel
        if len(held) == wanted:
            break
    yield


def explain_memory(message: str) -> str:
    """An error's message; if memory ran out, which libraries tell in many ways, with what to do."""
    if not any(words in message for words in NO_MEMORY):
        return message
    return f"{message}: memory ran out, close other programs or run again with fewer CORES"


@contextmanager
def tell_job(run: Path | str, name: str) -> Iterator[None]:
    """Print when a job starts and ends; its error message, if any, goes to the run's folder of errors."""
    note, started = Path(run) / ERRORS / f"{name.replace('/', '-')}.txt", time.monotonic()
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {name}\n")
    try:
        yield
    except Exception as error:
        message = str(error) or type(error).__name__
        told = f"{name}: {explain_memory(message)}"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{told}\n", encoding="utf-8")
        is_expected = isinstance(error, NotebookError | ValueError | OSError | MemoryError | ArithmeticError)
        if not is_expected and explain_memory(message) == message:
            raise
        sys.exit(f"\n{told}\n")
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {name}: done in {time.monotonic() - started:.0f} s\n")


@dataclass
class StepTeller:
    """Print a training's progress and remaining time once per minute; for `on_step` of a job."""

    name: str  #: of the job
    every: float = 60.0  #: seconds between two lines
    first: tuple[float, int] | None = None  #: time and step of the first call
    told: float = 0.0  #: time of the last line

    def __call__(self, done: "StepDone") -> None:
        """A step is finished."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.told = (now, done.step), now
            return
        if now - self.told < self.every or done.step == done.steps:
            return
        self.told, (start, step) = now, self.first
        left = (now - start) / (done.step - step) * (done.steps - done.step) / 60
        moment = time.strftime("%H:%M:%S")
        told = f"step {done.step} of {done.steps}, about {left:.0f} minutes left"
        sys.stderr.write(f"{moment}  {self.name}: {told}\n")


def execute_notebook(source: Path | str, target: Path | str, parameters: dict, threads: int = 1) -> None:
    """Execute a notebook with papermill, from the project's root, with values for its parameters cell.

    The target is written only if every cell has run. A failed notebook is saved next to it as
    `<target>.failed.ipynb`, and a NotebookError says which cell failed, or that the kernel did not start. The
    notebook's numerical libraries use at most `threads` threads.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source, target = Path(source), Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".failed.ipynb")
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            with patch.dict(os.environ, limits):  # a kernel has its parent's environment
                papermill.execute_notebook(source, unfinished, parameters, config=ENCRYPTED, **OPTIONS)
        except PapermillExecutionError as error:
            raise NotebookError(
                f"{source} failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}\n"
                f"The notebook up to this cell: {unfinished}"
            ) from None
        except RuntimeError as error:  # the kernel died or lost the race for a port before responding
            if attempt == START_ATTEMPTS:
                raise NotebookError(f"{source}: its kernel did not start or died ({error})") from error
        else:
            break
    os.replace(unfinished, target)


def stage_book(project: Path | str, executed: dict[str, Path | str], folder: Path | str) -> None:
    """Copy the book's sources to a folder, with executed notebooks instead of bare ones.

    Previous content is removed, except a finished build. `project` is the repository's root, `executed` maps
    names (`02_memseg`) to executed notebooks; a FileNotFoundError lists missing ones.
    """
    project, folder = Path(project), Path(folder)
    missing = [str(path) for path in executed.values() if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"not executed yet: {', '.join(missing)}")
    for part in ("book", "notebooks"):
        shutil.rmtree(folder / part, ignore_errors=True)
    shutil.copytree(project / "book", folder / "book")
    (folder / "notebooks").mkdir()
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(project / name, folder / name)
    for name, path in executed.items():
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        notebook["metadata"].pop("widgets", None)  # closed progress bars, for which a page would load scripts
        _fold_injected(notebook)
        write_json(folder / "notebooks" / f"{name}.ipynb", notebook)


def _fold_injected(notebook: dict) -> None:
    """Fold the cell into which papermill wrote the values of this run."""
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("hide-input")
            prompts = {
                f"code_prompt_{way}": f"{way.title()} the values of this run" for way in ("show", "hide")
            }
            cell["metadata"]["mystnb"] = prompts


def build_book(folder: Path | str) -> Path:
    """Build the staged book and return its first page; a NotebookError if Sphinx printed a warning."""
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", folder, "-n", "-W", "--keep-going"]
    finished = subprocess.run(command, check=False)  # noqa: S603
    page = Path(folder) / "_build" / "html" / "index.html"
    if finished.returncode or not page.is_file():
        raise NotebookError(f"the book in {folder} was built with warnings or errors: see the lines above")
    return page
