"""One broken input in a separate process, with limits, and its result."""

import json
import os
import random
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from defaug_utils.data.download import DownloadError

OUTCOMES = ("clear", "right", "traceback", "silent", "hung")
HUNG_SECONDS = 20
MEMORY = 3 << 30  # bytes that a reader may use beyond the process's own
# ValueError includes the package's own errors, which derive from it.
TOLD = (ValueError, FileNotFoundError, FileExistsError, PermissionError, DownloadError)


class Trial(NamedTuple):
    """A broken input, and the expected result."""

    read: Callable[[], object]  #: calls what a user would call
    culprit: str  #: what a refusal must name: the file or the value
    right: Callable[[object], object] | None = None  #: whether an accepted result is right; None: refuse it
    may_refuse: bool = False  #: a refusal that names the culprit is acceptable, too


class Verdict(NamedTuple):
    """The result of a trial."""

    outcome: str  #: one of `OUTCOMES`
    detail: str  #: the message or the reason


Case = Callable[[Path, random.Random], Trial]  # writes the broken input into an empty folder
Cases = Iterator[tuple[str, Case]]


def judge(trial: Trial) -> Verdict:
    """Read a broken input and judge the result."""
    try:
        result = trial.read()
    except TOLD as error:
        message = f"{type(error).__name__}: {error}"
        if trial.culprit not in str(error):
            return Verdict("traceback", f"does not name {trial.culprit!r}: {message}")
        if trial.right and not trial.may_refuse:
            return Verdict("traceback", f"refused though it is right: {message}")
        return Verdict("clear", message)
    except BaseException as error:
        return Verdict("traceback", f"{type(error).__name__}: {error}")
    if trial.right is None:
        return Verdict("silent", "accepted")
    return Verdict("right", "") if trial.right(result) else Verdict("silent", "accepted with a wrong result")


def try_case(case: Case, folder: Path, seed: str) -> tuple[Verdict, float]:
    """Write and judge a case in a child process; return verdict and seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started, (reader, writer) = time.monotonic(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(case, folder, seed, writer)
    os.close(writer)
    verdict = _wait_for(child, reader, started + HUNG_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    return verdict, time.monotonic() - started


def _answer(case: Case, folder: Path, seed: str, writer: int) -> None:
    """In the child: judge, and exit without the parent's cleanup."""
    try:
        os.setpgid(0, 0)
        warnings.simplefilter("ignore")
        trial = case(folder, random.Random(seed))
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
        verdict = judge(trial)
    except BaseException as error:
        verdict = Verdict("traceback", f"the case itself failed: {type(error).__name__}: {error}")
    with os.fdopen(writer, "wb") as stream:
        stream.write(json.dumps([verdict.outcome, verdict.detail[:2000]]).encode())
    os._exit(0)


def _wait_for(child: int, reader: int, deadline: float) -> Verdict:
    content = b""
    os.set_blocking(reader, False)
    while time.monotonic() < deadline:
        try:
            block = os.read(reader, 1 << 16)
        except BlockingIOError:
            time.sleep(0.005)
            continue
        if not block:
            break
        content += block
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if content:
        return Verdict(*json.loads(content))
    if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
        return Verdict("hung", f"no answer within {HUNG_SECONDS} seconds")
    return Verdict("traceback", f"the process died with status {os.waitstatus_to_exitcode(status)}")
