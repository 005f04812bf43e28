"""In&Out's scenarios as data: what a generator is fine-tuned on, for how long, and what it is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from defaug_utils.dreambooth_images import choose_training_rows
from defaug_utils.dreambooth_plan import DreamBoothError
from defaug_utils.manifest import raise_problems
from defaug_utils.prompts import Prompt, make_prompts
from defaug_utils.runs import SCENARIOS

NUMBERS = {"instances": int, "epochs": int, "share": float}


@dataclass(frozen=True)
class ScenarioPlan:
    """A line of the scenarios table (Capogrosso et al. 2024, section 4).

    Attributes:
        instances: images to fine-tune on: random negatives in zero-shot, the known positives in few-shot;
            0 takes all positives, in full-shot only.
        epochs: of fine-tuning.
        share: α, the adapter's weight at generation.
        prompts: what the pool's images are asked for, in turns.
    """

    instances: int
    epochs: int
    share: float
    prompts: tuple[Prompt, ...]


def read_scenarios(table: Mapping[str, Mapping], negative: str = "") -> dict[str, ScenarioPlan]:
    """Read the scenarios table from plain data.

    Args:
        table: scenario → `instances`, `epochs`, `share` and `prompts` (see `make_prompts`).
        negative: negative prompt of all lines that have none of their own.

    Returns:
        Scenario → its plan.

    Raises:
        DreamBoothError: lists every scenario, value and number that makes no sense.
    """
    problems, plans = [], {}
    for name, given in table.items():
        found = _find_line_problems(name, given)
        problems += [f"{name}: {problem}" for problem in found]
        if not found:
            prompts = tuple(make_prompts(given["prompts"], negative))
            plans[name] = ScenarioPlan(given["instances"], given["epochs"], float(given["share"]), prompts)
    raise_problems("scenarios table", problems, DreamBoothError)
    return plans


def _find_line_problems(name: str, given: Mapping) -> list[str]:
    if name not in SCENARIOS:
        return [f"it is none of {', '.join(SCENARIOS)}"]
    expected = (*NUMBERS, "prompts")
    if not isinstance(given, Mapping) or set(given) != set(expected):
        return [f"expected {', '.join(expected)}, found {', '.join(given) or 'nothing'}"]
    problems = []
    for key, kind in NUMBERS.items():
        value = given[key]
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        least = 1 if key == "epochs" or (key == "instances" and name != "full-shot") else 0
        if not is_number or not least <= value < float("inf"):
            problems.append(f"{key} {value!r} must be a number of {least} or more")
    if name == "full-shot" and given["instances"] != 0:
        problems.append(f"instances {given['instances']!r} must be 0, full-shot takes all positives")
    if not isinstance(given["prompts"], list):
        problems.append(f"prompts {given['prompts']!r} must be a list")
    return problems


def choose_instances(
    dataset: pd.DataFrame, scenario: str, plan: ScenarioPlan, pool_of_seed: int, seed: int = 0
) -> pd.DataFrame:
    """The rows that a scenario's generator is fine-tuned on.

    Args:
        dataset: manifest of the prepared data set.
        scenario: word of `SCENARIOS`.
        plan: of that scenario.
        pool_of_seed: seed of the training sets that the pool is for; draws the positives of few-shot.
        seed: draws the negatives of zero-shot, which are the same for all training sets.

    Raises:
        DreamBoothError: there are fewer negatives than asked for.
        MixingError: the scenario is unknown, or there are too few positives.
    """
    drawn_by = pool_of_seed if scenario == "few-shot" else seed
    count = plan.instances
    return choose_training_rows(dataset, scenario, drawn_by, few_shot_count=count, negative_count=count)
