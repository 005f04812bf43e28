"""Guards: settings that make sense, folders that belong to their settings, and a fixed number of threads."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from defaug_utils.core.files import write_json

MAX_SHOWN = 40  # characters of a value in a message
MAX_LISTED_PROBLEMS = 20


def raise_problems(what: str, problems: Sequence[str], error: type[Exception] = ValueError) -> None:
    """Raise one error that lists every problem (the first 20 in full), or return when there is none."""
    if problems:
        lines = [f"{what}: {len(problems)} problem(s)"]
        lines += [f"  - {problem}" for problem in problems[:MAX_LISTED_PROBLEMS]]
        if len(problems) > MAX_LISTED_PROBLEMS:
            lines.append(f"  … and {len(problems) - MAX_LISTED_PROBLEMS} more")
        raise error("\n".join(lines))


def name_nearest(name: object, known: Iterable[object]) -> str:
    """Such as " (did you mean 'seed'?)", or nothing where no known name is near."""
    matches = difflib.get_close_matches(str(name), [str(word) for word in known], n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


@contextmanager
def collect_problems(problems: list[str]) -> Iterator[None]:
    """Note a ValueError of the block among the problems, and go on behind it."""
    try:
        yield
    except ValueError as error:
        problems.append(str(error))


def check_demands(what: str, demands: Mapping[str, bool], error: type[Exception] = ValueError) -> None:
    """Raise one error that lists every demand (a message, and whether it is met) that is not met."""
    raise_problems(what, [message for message, is_met in demands.items() if not is_met], error)


@contextmanager
def hold_threads(count: int | None = None) -> Iterator[None]:
    """Let PyTorch, and Intel's MKL below it, work with exactly so many threads.

    Threads share out a sum, and so decide its last bits. Until PyTorch is told a number, even its own (None),
    MKL takes fewer where it sees fit: what a process did before would decide what it computes.
    """
    import torch  # only here: what plans or draws runs without it

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def claim_folder(
    folder: Path | str,
    settings: Mapping,
    what: str,
    file: str = "settings.json",
    error: type[Exception] = ValueError,
) -> None:
    """Note in a folder all that its content (`what`, such as "a pool") depends on, as JSON values.

    A folder with a note stays as it is; one of other settings, or a damaged note, raises `error`.
    """
    path = Path(folder) / file
    if not path.is_file():
        return write_json(path, settings)
    found = read_settings(path, "delete the folder, or choose another one", error)
    refuse_other_settings(folder, found, settings, what, error)


def read_settings(path: Path | str, advice: str, error: type[Exception] = ValueError) -> dict:
    """Read a JSON object; `error` names the file, what is wrong with it and the advice."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} can't be read ({problem}): {advice}") from problem
    if not isinstance(found, dict):
        raise error(f"{path} can't be read (expected a JSON object, found {type(found).__name__}): {advice}")
    return found


def refuse_other_settings(
    folder: Path | str, found: Mapping, asked: Mapping, what: str, error: type[Exception] = ValueError
) -> None:
    """Refuse a folder whose content was made with other settings; the error names every difference."""
    differing = list_differences(found, asked)
    if differing:
        raise error(
            f"{folder} holds {what} made with other settings: {'; '.join(differing)}: "
            "delete the folder to make it again, or choose another one"
        )


def list_differences(found: Mapping, asked: Mapping, prefix: str = "") -> list[str]:
    """Every setting that differs, such as "lora.rank (32, asked for 16)", with dots between nested names."""
    found, asked, listed = as_json(found), as_json(asked), []
    for name in sorted({*found, *asked}):
        one, other = found.get(name), asked.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            listed += list_differences(one, other, f"{prefix}{name}.")
        elif one != other:
            texts = (str(value) for value in (one, other))
            shown, wanted = (t if len(t) <= MAX_SHOWN else f"{t[:MAX_SHOWN]}…" for t in texts)
            listed.append(f"{prefix}{name} ({shown}, asked for {wanted})")
    return listed


def as_json(settings: Mapping) -> dict:
    """Settings as they read back from JSON: a tuple is a list, a key is text."""
    return json.loads(json.dumps(settings, allow_nan=False))
