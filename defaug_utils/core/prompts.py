"""The prompt board: what the expert asks for, how often, and what must not appear."""

from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple


class Prompt(NamedTuple):
    """A line of the board: the defect's description, what to avoid, and how often it comes."""

    text: str
    negative: str = ""
    weight: float = 1.0


def make_prompts(board: Sequence[str | Mapping], negative: str = "") -> list[Prompt]:
    """Read a board from plain data.

    Args:
        board: each a text, or a mapping with `text` and optionally `negative` and `weight`.
        negative: of all lines that have none of their own.

    Returns:
        One prompt a line.

    Raises:
        ValueError: lists every line that is empty, repeated, or has unknown words or a wrong weight.
    """
    prompts, problems = [], []
    for number, line in enumerate(board):
        entry = {"text": line} if isinstance(line, str) else dict(line)
        unknown = sorted(set(entry) - set(Prompt._fields))
        prompt = Prompt(
            **{"text": "", "negative": negative} | {n: entry[n] for n in entry if n not in unknown}
        )
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
    if problems or not prompts:
        raise ValueError("prompt board: " + ("; ".join(problems) or "no prompt at all"))
    return prompts


def choose_prompt(prompts: Sequence[Prompt], index: int) -> Prompt:
    """The prompt of image `index`: they take turns, and among the first n each has its share to within one.

    Args:
        prompts: the board.
        index: place in the pool, from 0.
    """
    return prompts[_open_turns(tuple(prompt.weight for prompt in prompts)).look_up(index)]


@lru_cache(maxsize=64)
def _open_turns(weights: tuple[float, ...]) -> "_Turns":
    return _Turns(weights)


class _Turns:
    """Whose turn it is, by weights: the one that is owed most. Turns once taken are remembered."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        self.weights, self.owed, self.taken = weights, [0.0] * len(weights), array("L")
        self.lock = Lock()

    def look_up(self, index: int) -> int:
        """The number of the one whose turn `index` is."""
        with self.lock:
            while len(self.taken) <= index:
                self.owed = [debt + weight for debt, weight in zip(self.owed, self.weights, strict=True)]
                chosen = max(range(len(self.owed)), key=self.owed.__getitem__)
                self.owed[chosen] -= sum(self.weights)
                self.taken.append(chosen)
            return self.taken[index]


def check_prompts(model: Any, prompts: Sequence[str]) -> None:
    """Refuse texts that the model would silently cut.

    Args:
        model: with the `pipeline` whose tokenizers read them.
        prompts: the texts.

    Raises:
        ValueError: lists every text that is empty or longer than the tokenizer's limit.
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
    if problems:
        raise ValueError("prompts: " + "; ".join(problems) + ": nothing is cut silently, shorten them")
