"""The prompt board: what the expert asks for, how often, and what must not appear."""

from collections.abc import Mapping, Sequence
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
    total = sum(prompt.weight for prompt in prompts)
    owed = [0.0] * len(prompts)
    for _ in range(index + 1):
        owed = [debt + prompt.weight for debt, prompt in zip(owed, prompts, strict=True)]
        chosen = max(range(len(prompts)), key=owed.__getitem__)
        owed[chosen] -= total
    return prompts[chosen]


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
