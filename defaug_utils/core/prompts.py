"""The prompt board: what the expert asks for, how often, and what must not appear."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from defaug_utils.core.guards import raise_problems


class Prompt(NamedTuple):
    """A line of the board: the defect's description, what to avoid, and how often it comes."""

    text: str
    negative: str = ""
    weight: float = 1.0


def make_prompts(board: Sequence[str | Mapping], negative: str = "") -> list[Prompt]:
    """Read a board from plain data, one prompt a line.

    Args:
        board: each a text, or a mapping with `text` and optionally `negative` and `weight`.
        negative: of all lines that have none of their own.

    Raises:
        ValueError: lists every line that is empty, repeated, or has unknown words or a wrong weight.
    """
    prompts, problems = [], []
    for number, line in enumerate(board):
        entry = {"text": line} if isinstance(line, str) else dict(line)
        unknown = sorted(set(entry) - set(Prompt._fields))
        known = {name: value for name, value in entry.items() if name not in unknown}
        prompt = Prompt(**{"text": "", "negative": negative} | known)
        if unknown:
            problems.append(
                f"line {number}: unknown {', '.join(unknown)}, expected {', '.join(Prompt._fields)}"
            )
        if not prompt.text.strip():
            problems.append(f"line {number}: the prompt is empty, say what defect to paint")
        if not 0 < prompt.weight < float("inf"):
            problems.append(f"line {number}: weight {prompt.weight} must be above 0")
        if prompt[:2] in [other[:2] for other in prompts]:
            problems.append(
                f"line {number}: {prompt.text!r} is on the board already, give it a weight instead"
            )
        prompts.append(prompt)
    if not prompts:
        problems.append("no prompt at all")
    raise_problems("prompt board", problems)
    return prompts


def choose_prompt(prompts: Sequence[Prompt], index: int) -> Prompt:
    """The prompt of image `index`: they take turns, and each has its share to within one."""
    weights = tuple(prompt.weight for prompt in prompts)
    return prompts[_take_turns(weights, 2 ** index.bit_length())[index]]


@lru_cache(maxsize=64)
def _take_turns(weights: tuple[float, ...], count: int) -> list[int]:
    """Whose turn it is, `count` times: by weights, the one's that is owed most."""
    owed, taken = [0.0] * len(weights), []
    for _ in range(count):
        owed = [debt + weight for debt, weight in zip(owed, weights, strict=True)]
        taken.append(max(range(len(owed)), key=owed.__getitem__))
        owed[taken[-1]] -= sum(weights)
    return taken


def check_prompts(model: Any, prompts: Sequence[str]) -> None:
    """Refuse texts that the model's `pipeline` would silently cut.

    Raises:
        ValueError: lists every text that is empty or longer than a tokenizer's limit.
    """
    problems = []
    names = [name for name in ("tokenizer", "tokenizer_2") if getattr(model.pipeline, name, None)]
    for prompt in dict.fromkeys(prompts):
        if not prompt.strip():
            problems.append("a prompt is empty: say what defect to paint")
        for name in names:
            tokenizer = getattr(model.pipeline, name)
            count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
            if count > tokenizer.model_max_length:
                problems.append(
                    f"{prompt[:60]!r}… has {count} tokens, the model's limit is {tokenizer.model_max_length}"
                )
                break
    raise_problems("prompts (nothing is cut silently, shorten them)", problems)
