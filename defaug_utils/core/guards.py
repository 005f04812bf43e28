"""Guards: valid settings, folders that match their settings, and a fixed number of threads."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from defaug_utils.core.files import write_json

MAX_SHOWN = 40  # characters of a value in a message
MAX_LISTED_PROBLEMS = 20


def raise_problems(what: str, problems: Sequence[str], error: type[Exception] = ValueError) -> None:
    """Raise one error that lists every problem (the first 20 in full), or return if there is none."""
    if problems:
        lines = [f"{what}: {len(problems)} problem(s)"]
        lines += [f"  - {problem}" for problem in problems[:MAX_LISTED_PROBLEMS]]
        if len(problems) > MAX_LISTED_PROBLEMS:
            lines.append(f"  … and {len(problems) - MAX_LISTED_PROBLEMS} more")
        raise error("\n".join(lines))


def name_nearest(name: object, known: Iterable[object]) -> str:
    """A hint such as " (did you mean 'seed'?)", or an empty string if no known name is similar."""
    matches = difflib.get_close_matches(str(name), [str(word) for word in known], n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


@contextmanager
def collect_problems(problems: list[str]) -> Iterator[None]:
    """Add a ValueError of the block to the problems, and continue after the block."""
    try:
        yield
    except ValueError as error:
        problems.append(str(error))


def check_demands(what: str, demands: Mapping[str, bool], error: type[Exception] = ValueError) -> None:
    """Raise one error that lists every unmet demand; `demands` maps messages to whether they are met."""
    raise_problems(what, [message for message, is_met in demands.items() if not is_met], error)


@contextmanager
def hold_threads(count: int | None = None) -> Iterator[None]:
    """Make PyTorch, and Intel's MKL below it, use exactly `count` threads.

    The number of threads decides how a sum is split, and therefore its last bits. Unless PyTorch is given a
    number, even its own (None), MKL may use fewer, so that results would depend on the process's history.
    """
    import torch  # imported late: planning and drawing don't need it

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_settings(settings: object, *later: str) -> dict:
    """The fields of a dataclass, without those of `later` that have their default.

    Records that were written before there were such fields therefore stay valid.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    values = asdict(settings).items()
    return {name: value for name, value in values if name not in later or value != defaults[name]}


def claim_folder(
    folder: Path | str,
    settings: Mapping,
    what: str,
    file: str = "settings.json",
    error: type[Exception] = ValueError,
) -> None:
    """Record in a folder everything that its content (`what`, such as "a pool") depends on, as JSON values.

    An existing record is kept. If it holds other settings or is damaged, `error` is raised.
    """
    path = Path(folder) / file
    if not path.is_file():
        return write_json(path, settings)
    found = read_settings(path, "delete the folder, or choose another one", error)
    refuse_other_settings(folder, found, settings, what, error)


def read_settings(path: Path | str, advice: str, error: type[Exception] = ValueError) -> dict:
    """Read a JSON object; `error` is raised with the file, the problem and the advice."""
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
    """Refuse a folder whose content was made with other settings; the error lists every difference."""
    differing = list_differences(found, asked)
    if differing:
        raise error(
            f"{folder} contains {what} made with other settings: {'; '.join(differing)}: "
            "delete the folder to start again, or choose another one"
        )


def list_differences(found: Mapping, asked: Mapping, prefix: str = "") -> list[str]:
    """All settings that differ, such as "lora.rank (32, requested 16)", with dotted names if nested."""
    found, asked, listed = as_json(found), as_json(asked), []
    for name in sorted({*found, *asked}):
        one, other = found.get(name), asked.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            listed += list_differences(one, other, f"{prefix}{name}.")
        elif one != other:
            texts = (str(value) for value in (one, other))
            shown, wanted = (t if len(t) <= MAX_SHOWN else f"{t[:MAX_SHOWN]}…" for t in texts)
            listed.append(f"{prefix}{name} ({shown}, requested {wanted})")
    return listed


def as_json(settings: Mapping) -> dict:
    """Settings as JSON returns them: tuples become lists, keys become strings."""
    return json.loads(json.dumps(settings, allow_nan=False))
