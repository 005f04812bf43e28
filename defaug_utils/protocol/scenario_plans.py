"""In&Out's scenarios as data: what a generator is fine-tuned on, for how long, and what it is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from defaug_utils.core.manifest import raise_problems
from defaug_utils.core.prompts import Prompt, make_prompts
from defaug_utils.core.runs import SCENARIOS
from defaug_utils.diffusion.training_images import DreamBoothError, choose_training_rows


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


def read_scenarios(
    instances: Mapping[str, int],
    epochs: Mapping[str, int],
    shares: Mapping[str, float],
    prompts: Mapping[str, Sequence[str | Mapping]],
    instance_prompt: str,
    negative: str = "",
) -> dict[str, ScenarioPlan]:
    """Read the scenarios table from plain data, each column a mapping from the scenario.

    Args:
        instances: see `ScenarioPlan`.
        epochs: likewise.
        shares: likewise.
        prompts: likewise, as `make_prompts` takes them; scenarios left out ask for the instance prompt.
        instance_prompt: text of the images that are fine-tuned on.
        negative: negative prompt of all lines that have none of their own.

    Returns:
        Scenario → its plan, for all of `SCENARIOS`.

    Raises:
        DreamBoothError: lists every scenario, value and number that makes no sense.
    """
    columns = {"instances": instances, "epochs": epochs, "shares": shares}
    problems = [
        f"{name}: {scenario!r} is none of {', '.join(SCENARIOS)}"
        for name, column in {**columns, "prompts": prompts}.items()
        for scenario in column
        if scenario not in SCENARIOS
    ]
    for name, column in columns.items():
        problems += [
            p for scenario in SCENARIOS if (p := _find_problem(name, scenario, column.get(scenario)))
        ]
    asked = {scenario: prompts.get(scenario, [instance_prompt]) for scenario in SCENARIOS}
    problems += [
        f"prompts of {s}: {lines!r} is no list" for s, lines in asked.items() if isinstance(lines, str)
    ]
    raise_problems("scenarios table", problems, DreamBoothError)
    return {
        scenario: ScenarioPlan(
            instances[scenario],
            epochs[scenario],
            float(shares[scenario]),
            tuple(make_prompts(asked[scenario], negative)),
        )
        for scenario in SCENARIOS
    }


def _find_problem(name: str, scenario: str, value: object) -> str:
    """What is wrong with a number of the table; empty where nothing is."""
    title = f"{name} of {scenario}: {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float if name == "shares" else int):
        return f"{title} is no {'number' if name == 'shares' else 'whole number'}"
    if (name, scenario) == ("instances", "full-shot"):
        return "" if value == 0 else f"{title} must be 0, full-shot takes all positives"
    least = 0 if name == "shares" else 1
    return "" if least <= value < float("inf") else f"{title} must be {least} or more"


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
