"""The runs of the protocol: scenarios and the positives that they know, arms, and how a run is called."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from defaug_utils.core.manifest import raise_problems
from defaug_utils.core.origins import IN_AND_OUT, ORIGINS, list_arms

DATA_FOLDER = "data"
SCENARIOS = ("zero-shot", "few-shot", "full-shot")
_RUN_NAME = re.compile(r"([a-z]+-shot)-([a-z0-9_]+)-(0|[1-9][0-9]*)-seed(0|[1-9][0-9]*)")

Arms = Mapping[str, Mapping[str, float]]


class MixingError(ValueError):
    """A training set can't be put together as asked."""


class Run(NamedTuple):
    """One classifier run of the protocol.

    Attributes:
        scenario: word of `SCENARIOS`: how many real positives are known.
        arm: word of `list_arms`, or one of the profile's own: where generated positives come from.
        n_aug: number of generated positives; 0 for the arm "none" and for no other.
        seed: draws the real positives of few-shot, and the generated ones.
    """

    scenario: str
    arm: str
    n_aug: int
    seed: int

    @property
    def name(self) -> str:
        """Of files and folders, see `run_name`."""
        return run_name(*self)


def run_name(scenario: str, arm: str, n_aug: int, seed: int) -> str:
    """Name of a run in files and folders, such as `few-shot-memseg-40-seed0`."""
    name = f"{scenario}-{arm}-{n_aug}-seed{seed}"
    parse_run_name(name)
    return name


def parse_run_name(name: str) -> Run:
    """The run that `run_name` gave this name to."""
    found = _RUN_NAME.fullmatch(name)
    if not found:
        raise MixingError(
            f"{name!r} is no run name: expected one like few-shot-memseg-40-seed0, the arm in small letters, "
            "digits and underscores, the numbers whole and not negative"
        )
    return Run(found[1], found[2], int(found[3]), int(found[4]))


def pool_name(scenario: str, seed: int) -> str:
    """What the pool of a generator that learns from a scenario's images is called, in the origin's folder.

    Only few-shot draws its real positives by seed: `few-shot-seed0`, but `zero-shot` and `full-shot`.
    """
    return f"{scenario}-seed{seed}" if scenario == "few-shot" else scenario


def pool_scenarios(name: str) -> tuple[str, ...]:
    """The scenarios that a pool serves: of `adabldm/few-shot-seed0` the one in its name, of `diag` all."""
    own = tuple(scenario for scenario in SCENARIOS if name.split("/")[-1].startswith(scenario))
    return own or SCENARIOS


def planned_runs(
    scenarios: Iterable[str],
    arms: Iterable[str],
    n_aug: Iterable[int],
    seeds: Iterable[int],
    extra_arms: Arms | None = None,
    left_out: Mapping[str, Iterable[str]] | None = None,
) -> list[Run]:
    """All runs of a profile, each once: the product of the four lists without what makes no sense.

    The arm "none" is planned with `n_aug` 0 whatever the list says, every other arm with the numbers
    above 0. Zero-shot has no positive at all: it is planned neither without augmentation nor with what is
    made from real positives.

    Args:
        scenarios: words of `SCENARIOS`.
        arms: words of `list_arms` or of `extra_arms`.
        n_aug: numbers of generated positives.
        seeds: one run each.
        extra_arms: see `arm_shares`.
        left_out: scenario → arms that are not planned in it.

    Raises:
        MixingError: an entry is no list, a word or a number is wrong, or no run is left.
    """
    given = {"scenarios": scenarios, "arms": arms, "n_aug": n_aug, "seeds": seeds}
    no_lists = [f"{name} is {entry!r}, not a list" for name, entry in given.items() if not _is_list(entry)]
    raise_problems("planned runs", no_lists, MixingError)
    given = {name: list(entry) for name, entry in given.items()}
    numbers = given["n_aug"] + given["seeds"]
    wrong = [
        f"scenario {word!r} is none of {', '.join(SCENARIOS)}"
        for word in given["scenarios"]
        if word not in SCENARIOS
    ]
    skipped = {(scenario, arm) for scenario, words in (left_out or {}).items() for arm in words}
    wrong += [
        f"left_out names {arm!r} in {scenario!r}, which is not planned anyway"
        for scenario, arm in sorted(skipped)
        if scenario not in given["scenarios"] or arm not in given["arms"]
    ]
    wrong += [f"{number!r} is no whole number of at least 0" for number in numbers if not _is_count(number)]
    raise_problems("planned runs", wrong, MixingError)
    runs = [
        Run(scenario, arm, number, seed)
        for scenario in given["scenarios"]
        for arm in given["arms"]
        for number in (given["n_aug"] if arm_shares(arm, extra_arms=extra_arms) else [0])
        for seed in given["seeds"]
        if (number > 0 or arm == "none")
        and (scenario, arm) not in skipped
        and not (scenario == "zero-shot" and _needs_positives(arm, extra_arms))
    ]
    if not runs:
        raise MixingError(f"no run is left of {given}: every arm but none needs an n_aug above 0")
    return [parse_run_name(run_name(*run)) for run in dict.fromkeys(runs)]


def _needs_positives(arm: str, extra_arms: Arms | None) -> bool:
    origins = arm_shares(arm, extra_arms=extra_arms)
    return not origins or any(ORIGINS[origin].needs_positives for origin in origins)


def _is_list(entry: object) -> bool:
    return isinstance(entry, Iterable) and not isinstance(entry, str | Mapping)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def arm_shares(arm: str, share: float = 0.5, extra_arms: Arms | None = None) -> dict[str, float]:
    """What part of an arm's generated positives comes from which pool.

    Args:
        arm: its name.
        share: part of diffusion in the arm "in_and_out", in [0, 1]; the rest is MemSeg's.
        extra_arms: further arms, name → (origin → share), such as {"diag_memseg": {"diag": 0.3,
            "memseg": 0.7}}; the shares of one arm add up to 1.

    Returns:
        Origin → share, without the origins of share 0; empty for "none".

    Raises:
        MixingError: the arm is unknown, or shares or origins are wrong.
    """
    own, built_in = extra_arms or {}, list_arms()
    arms = {word: built.shares for word, built in built_in.items()} | dict(own)
    if arm == "in_and_out":
        arms[arm] = dict(zip(IN_AND_OUT.shares, (share, 1 - share), strict=True))
    if arm not in arms:
        raise MixingError(f"arm {arm!r} is none of {', '.join(arms)}")
    shares = arms[arm]
    problems = [f"{name} is built in, take another name" for name in own if name in built_in]
    problems += [f"origin {origin!r} is unknown" for origin in shares if origin not in ORIGINS]
    problems += [f"share {part} is not in [0, 1]" for part in (share, *shares.values()) if not 0 <= part <= 1]
    if arm != "none" and abs(sum(shares.values()) - 1) > 1e-6:
        problems.append(f"the shares add up to {sum(shares.values())}, expected 1")
    raise_problems(f"arm {arm}", problems, MixingError)
    return {origin: part for origin, part in shares.items() if part > 0}


def shuffle_rows(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """An order that depends on the seed and the images' names only, so that draws are nested.

    A rejected image is replaced by the next one and all others stay; the rows' own order plays no part.
    """
    keys = [hashlib.sha256(f"{seed} {data_key(image)}".encode()).hexdigest() for image in rows["image"]]
    return rows.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def data_key(image: str) -> str:
    """Name of an image as `data/manifest.csv` and `source_image` have it."""
    return image.removeprefix(f"{DATA_FOLDER}/")


def choose_positives(
    data_manifest: pd.DataFrame, scenario: str, seed: int, few_shot_count: int = 5
) -> pd.DataFrame:
    """The real training positives that a scenario knows: none, `few_shot_count` drawn by seed, or all.

    A generator that is fine-tuned for few-shot takes the same ones by the same call.

    Raises:
        MixingError: the scenario is unknown, or there are fewer positives than asked for.
    """
    positives = data_manifest[(data_manifest["split"] == "train") & (data_manifest["label"] == "positive")]
    if scenario not in SCENARIOS:
        raise MixingError(f"scenario {scenario!r} is none of {', '.join(SCENARIOS)}")
    if scenario == "few-shot" and not 1 <= few_shot_count <= len(positives):
        raise MixingError(
            f"few_shot_count is {few_shot_count}, expected 1 … {len(positives)}: "
            f"the train split has {len(positives)} positives (zero-shot is the scenario without any)"
        )
    known = {"zero-shot": 0, "few-shot": few_shot_count, "full-shot": len(positives)}[scenario]
    return shuffle_rows(positives, seed).iloc[:known]
