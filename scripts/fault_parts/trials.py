"""Stages that are killed at random moments, run with scarce resources, or run twice at once, then resumed."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file

from defaug_utils.book.batch import explain_memory
from defaug_utils.core.manifest import read_manifest
from defaug_utils.protocol.review_store import PoolReview
from defaug_utils.training.loop import CHECKPOINT
from fault_parts.stages import STAGES, TOLD, Stage, decide_all, memseg, refill

STAGE_SECONDS = 180  # a stage takes a few
CACHE_MARK = re.compile(rb"\?v=[0-9a-f]{8}\b")  # Sphinx adds it to files that were there before the build
YEAR = 365 * 24 * 3600
MEMORY = 64 << 20  # bytes that a stage may use beyond the process's own, if memory is scarce


class Attempt(NamedTuple):
    """How a stage ended in its process."""

    status: int  #: 0 for success, minus the signal if it was killed
    seconds: float
    message: str  #: of the error, empty if there was none


class Running(NamedTuple):
    """A stage in a process of its own."""

    process: int
    started: float
    note: Path  #: receives the message of an error


def start_stage(
    stage: Stage,
    shared: Path,
    folder: Path,
    limit: Callable[[], None] | None = None,
    name: str = "error",
) -> Running:
    """Start a stage in its own process group."""
    note = folder.with_name(f"{name}.txt")
    note.unlink(missing_ok=True)
    started, child = time.monotonic(), os.fork()
    if child:
        with suppress(OSError):  # the child does the same; either may come first
            os.setpgid(child, child)
        return Running(child, started, note)
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        if limit:
            limit()
        stage(shared, folder)
        os._exit(0)
    except BaseException as error:
        for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_AS):
            resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)
        os.seteuid(os.getuid())
        os.closerange(3, 4)
        is_told = isinstance(error, ValueError | OSError | RuntimeError | MemoryError)
        message = explain_memory(f"{type(error).__name__}: {error}")
        told = f"{'told' if is_told else 'traceback'}: {message}"
        note.write_text(f"{told}\n{traceback.format_exc()[-800:]}")
        os._exit(1)


def await_stage(running: Running, kill_after: float = STAGE_SECONDS) -> Attempt:
    """Wait for a stage, and kill its whole process group some seconds after its start."""
    while time.monotonic() < running.started + kill_after:
        ended, status = os.waitpid(running.process, os.WNOHANG)
        if ended:
            break
        time.sleep(0.002)
    else:
        os.killpg(running.process, signal.SIGKILL)
        _, status = os.waitpid(running.process, 0)
    seconds = time.monotonic() - running.started
    message = running.note.read_text() if running.note.is_file() else ""
    return Attempt(os.waitstatus_to_exitcode(status), seconds, message)


def run_stage(
    stage: Stage,
    shared: Path,
    folder: Path,
    kill_after: float = STAGE_SECONDS,
    limit: Callable[[], None] | None = None,
) -> Attempt:
    """Run a stage in its own process group, and kill the whole group after some seconds."""
    return await_stage(start_stage(stage, shared, folder, limit), kill_after)


def list_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """A stage's results by name, without locks, journals, and what a book's build keeps for itself."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        is_own = name.startswith("_build/") and path.suffix != ".html"
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if not (is_hidden or is_own or path.suffix == ".jsonl"):
            yield name, path


def read_result(path: Path) -> object:
    """The content of a file, without what may differ: times, the order of weights, a page's cache marks."""
    if path.suffix == ".safetensors":
        return {key: value.numpy().tobytes() for key, value in load_file(path).items()}
    if path.suffix == ".csv" and path.name != "manifest.csv":
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return table.drop(columns=["seconds", "time"], errors="ignore").to_csv()
    content = path.read_bytes()
    return CACHE_MARK.sub(b"", content) if path.suffix == ".html" else content


def read_results(folder: Path) -> dict[str, object]:
    """A stage's results, by name."""
    found = {name: read_result(path) for name, path in list_files(folder)}
    if folder.with_name(TOLD).is_file():  # it doesn't matter whether rows and decisions are in a journal
        found.pop("review.csv", None)
        found["decisions"] = read_manifest(folder / "manifest.csv").to_csv()
    return found


def list_differing(found: dict[str, object], whole: dict[str, object]) -> list[str]:
    """Names of results that differ from an undisturbed run."""
    passed = {"manifest.csv"} if "decisions" in whole else set()
    return sorted(name for name in {*found, *whole} - passed if found.get(name) != whole.get(name))


def count_half_made(folder: Path, whole: dict[str, object]) -> int:
    """Files under their final names, right after a kill, that differ from a complete run."""
    if "built" in whole and not (folder / "built").is_file():
        return 0  # this empty file says that a book is whole
    wrong = 0
    for name, path in list_files(folder):
        if path.name in ("history.csv", "review.csv"):
            continue
        try:
            wrong += read_result(path) != whole.get(name) and path.name != CHECKPOINT
        except (SafetensorError, ValueError):
            wrong += 1
    return wrong


def list_finished(folder: Path) -> dict[str, int]:
    """Images that a journal lists as finished, with the time of their last change."""
    names = []
    for journal in folder.glob("*.jsonl"):
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            row = entry[2] if isinstance(entry, list) else entry.get("row", entry)
            names.append(row["image"])
    return {name: (folder / name).stat().st_mtime_ns for name in names}


def count_lost(folder: Path, finished: dict[str, int]) -> int:
    """Finished images that were remade, and confirmed decisions that are missing."""
    lost = sum((folder / name).stat().st_mtime_ns != changed for name, changed in finished.items())
    told = folder.with_name(TOLD)
    if told.is_file():
        decided = {image: said.accepted for image, said in PoolReview(folder).decisions.items()}
        lines = [line.split() for line in told.read_text().splitlines()]
        lost += sum(str(decided.get(image)) != accepted for image, accepted in lines)
    return lost


def try_kill(stage: str, shared: Path, folder: Path, whole: tuple, rng: random.Random) -> dict:
    """Kill a stage at a random moment, resume it, and count the faults."""
    results, seconds = whole
    moment = rng.uniform(0, seconds)
    killed = run_stage(STAGES[stage], shared, folder, moment)
    half_made, finished = count_half_made(folder, results), list_finished(folder)
    lost = count_lost(folder, {})
    ended = run_stage(STAGES[stage], shared, folder)
    differing = list_differing(read_results(folder), results)
    return {
        "killed": int(killed.status == -signal.SIGKILL),
        "lost": lost + count_lost(folder, finished),
        "half_made": half_made,
        "unequal": len(differing) if ended.status == 0 else -1,
        "seconds": round(moment, 3),
        "detail": " ".join(differing)[:200] or ended.message[:200],
    }


def try_twice(stage: str, shared: Path, folder: Path, whole: tuple, rng: random.Random) -> dict:
    """Start a stage, and again before it has finished; each ends well or tells of the other."""
    results, seconds = whole
    first = start_stage(STAGES[stage], shared, folder)
    time.sleep(rng.uniform(0, seconds / 4))
    second = start_stage(STAGES[stage], shared, folder, name="second")
    ended = [await_stage(one) for one in (first, second)]
    refused = [one.message for one in ended if one.message.startswith("told") and "another" in one.message]
    unclear = sum(one.status != 0 for one in ended) - len(refused)
    differing = list_differing(read_results(folder), results)
    return {
        "refused": len(refused),
        "unclear": unclear + (len(refused) == len(ended)),
        "mixed": len(differing),
        "lost": count_lost(folder, {}),
        "detail": " ".join([*differing, *(one.message for one in ended)])[:300],
    }


def try_review(shared: Path, folder: Path, rng: random.Random) -> dict:
    """Review a pool while it is made larger."""
    undisturbed = folder.with_name("undisturbed")
    attempts = [run_stage(refill, shared, undisturbed), run_stage(memseg, shared, folder)]
    refilling = start_stage(refill, shared, folder)
    time.sleep(rng.uniform(0, attempts[0].seconds / 2))
    attempts += [run_stage(decide_all, shared, folder), await_stage(refilling)]
    decided = ["accepted", "reviewer_note"]
    tables = [
        read_manifest(one / "manifest.csv").drop(columns=decided).to_csv() for one in (folder, undisturbed)
    ]
    differing = [
        name
        for name, path in list_files(undisturbed)
        if path.suffix == ".png" and (folder / name).read_bytes() != path.read_bytes()
    ]
    return {
        "refused": 0,
        "unclear": sum(one.status != 0 for one in attempts),
        "mixed": len(differing) + (tables[0] != tables[1]),
        "lost": count_lost(folder, {}),
        "detail": " ".join([*differing, *(one.message for one in attempts)])[:300],
    }


# Scarce resources: what is done in the stage's process before it starts.


def fill_disk(call: int) -> Callable[[], None]:
    """Make the call-th and all later renamings of a finished file fail as on a full disk."""

    def limit() -> None:
        calls, replace = [0], os.replace

        def fail(*paths: object, **options: object) -> None:
            calls[0] += 1
            if calls[0] >= call:
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(*paths, **options)

        os.replace = fail

    return limit


def limit_files(size: int) -> Callable[[], None]:
    """Let no file grow beyond so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def limit_handles() -> None:
    """Leave a process two more open files."""
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def limit_memory() -> None:
    """Leave a process little more memory than it has."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))


def lose_home() -> None:
    """No HOME and no other folder of the user's."""
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "USERPROFILE"):
        os.environ.pop(name, None)


def become_nobody() -> None:
    """Lose the right to write; a file system does not refuse root."""
    if os.geteuid() == 0:
        os.seteuid(65534)


FAILING = {
    "disk-full-at-1": fill_disk(1),
    "disk-full-at-5": fill_disk(5),
    "files-of-300-bytes": limit_files(300),
    "no-handles": limit_handles,
    "little-memory": limit_memory,
    "read-only": become_nobody,
}
LONG_NAME = f"Prüf teile {'x' * 150} Größe – ä"


def date_files(folder: Path, moment: float) -> None:
    """Give all files of a folder the same time of their last change."""
    for path in folder.rglob("*"):
        os.utime(path, (moment, moment), follow_symlinks=False)


def choose_folder(kind: str, folder: Path) -> Path:
    """Where a stage runs: in some kinds elsewhere than in the trial's folder."""
    if kind == "strange-path":
        return folder.parent / LONG_NAME / "run 1"
    if kind == "other-disk":
        return Path(tempfile.mkdtemp(prefix="faults-", dir=OTHER_DISK)) / "run"
    if kind == "linked-run":
        folder.with_name("elsewhere").mkdir()
        folder.rmdir()
        folder.symlink_to(folder.with_name("elsewhere"))
    return folder


def try_resource(stage: str, kind: str, shared: Path, folder: Path, whole: tuple) -> dict:
    """Run a stage with something scarce: it ends well, or tells so and is finished later, all files equal."""
    links, folder = folder.with_name("inputs"), choose_folder(kind, folder)
    if kind == "linked-data":
        links.symlink_to(shared)
        shared = links
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "read-only":
        folder.chmod(0o555)
    if kind == "clock-set-back":  # what a first half left is from the future
        run_stage(STAGES[stage], shared, folder, whole[1] / 2)
        date_files(folder, time.time() + YEAR)
    limit = lose_home if kind == "no-home" else FAILING.get(kind)
    first = run_stage(STAGES[stage], shared, folder, limit=limit)
    told = first.message.split("\n")[0]
    folder.chmod(0o755)
    ended = run_stage(STAGES[stage], shared, folder) if first.status else first
    is_equal = ended.status == 0 and not list_differing(read_results(folder), whole[0])
    words = ("memory ran out",) if kind == "little-memory" else (str(folder), str(shared))
    is_clear = kind in FAILING and told.startswith("told") and any(word in told for word in words)
    is_told = first.status == 0 or is_clear
    detail = "" if is_equal and is_told else f"{told or first.message} / {ended.message}"
    if kind == "other-disk":
        shutil.rmtree(folder.parent)
    return {"survived": int(is_equal and is_told), "status": first.status, "detail": (detail or told)[:300]}


OTHER_DISK = Path("/dev/shm")  # noqa: S108 - a file system of its own, where there is one
KINDS = (*FAILING, "no-home", "strange-path", "linked-data", "linked-run", "clock-set-back")
KINDS += ("other-disk",) if OTHER_DISK.is_dir() else ()
