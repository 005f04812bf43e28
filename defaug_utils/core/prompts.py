"""The prompt board: the expert's prompts, their weights, and what must not appear."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from defaug_utils.core.guards import raise_problems


class Prompt(NamedTuple):
    """A line of the board: a defect's description, what to avoid, how often, and the shape of its masks."""

    text: str
    negative: str = ""
    weight: float = 1.0
    shape: str = ""  #: of procedural masks, a kind in `masks.shapes.SHAPES`; empty: any, by their weights
    length: tuple[float, ...] = ()  #: of these, smallest and largest share of the shorter side; empty: usual
    place: str = ""  #: of their centres, a word of `masks.shapes.PLACES`; empty: anywhere
    contrast: float = 0.0  #: least mean change inside the mask, grey levels, if above that of all images

    def describe(self) -> dict:
        """For the recipe of a pool; what masks and checks need only if it is set: older pools stay valid."""
        optional = Prompt._fields[3:]
        return {name: value for name, value in self._asdict().items() if value or name not in optional}


def make_prompts(
    board: Sequence[str | Mapping], negative: str = "", shapes: Mapping[str, str] | None = None
) -> list[Prompt]:
    """Read a board; each line is a text, or a mapping with `text` and other fields of `Prompt`.

    Lines without a negative prompt use `negative`, lines without a shape the one in `shapes` for their text.
    Raises a ValueError that lists every line that is empty or repeated, or has unknown keys or an invalid
    weight.
    """
    prompts, problems, shapes = [], [], shapes or {}
    for number, line in enumerate(board):
        entry = {"text": line} if isinstance(line, str) else dict(line)
        unknown = sorted(set(entry) - set(Prompt._fields))
        known = {name: value for name, value in entry.items() if name not in unknown}
        usual = {"text": "", "negative": negative, "shape": shapes.get(entry.get("text"), "")}
        prompt = Prompt(**usual | known)
        found = {
            f"unknown {', '.join(unknown)}, expected {', '.join(Prompt._fields)}": unknown,
            "the prompt is empty, describe the defect to paint": not prompt.text.strip(),
            f"weight {prompt.weight} must be above 0": not 0 < prompt.weight < float("inf"),
            f"{prompt.text!r} is already on the board, give it a weight instead": (
                prompt[:2] in [other[:2] for other in prompts]
            ),
        }
        problems += [f"line {number}: {problem}" for problem, is_found in found.items() if is_found]
        prompts.append(prompt)
    if not prompts:
        problems.append("there is no prompt")
    raise_problems("prompt board", problems)
    return prompts


def choose_prompt(prompts: Sequence[Prompt], index: int) -> Prompt:
    """The prompt of image `index`: prompts take turns, and each gets its share to within one image."""
    weights = tuple(prompt.weight for prompt in prompts)
    return prompts[_take_turns(weights, 2 ** index.bit_length())[index]]


@lru_cache(maxsize=64)
def _take_turns(weights: tuple[float, ...], count: int) -> list[int]:
    """The first `count` turns; each goes to the prompt that is furthest below its weight."""
    owed, taken = [0.0] * len(weights), []
    for _ in range(count):
        owed = [debt + weight for debt, weight in zip(owed, weights, strict=True)]
        taken.append(max(range(len(owed)), key=owed.__getitem__))
        owed[taken[-1]] -= sum(weights)
    return taken


def check_prompts(model: Any, prompts: Sequence[str]) -> None:
    """Refuse prompts that are empty or that the model's `pipeline` would truncate; lists them all."""
    problems = []
    tokenizers = [getattr(model.pipeline, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    longest = getattr(model, "longest_text", None)
    for prompt in dict.fromkeys(prompts):
        if not prompt.strip():
            problems.append("a prompt is empty: describe the defect to paint")
        for tokenizer in filter(None, tokenizers):
            count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
            limit = min(tokenizer.model_max_length, longest or tokenizer.model_max_length)
            if count > limit:
                problems.append(f"{prompt[:60]!r}… has {count} tokens, the model's limit is {limit}")
                break
    raise_problems("prompts (they would be truncated: shorten them)", problems)
