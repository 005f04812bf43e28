"""The registry of origins, one row per method, and what follows from it: arms, runs and their names.

The Snakefile's rules, labels, colours, the order of results and the rules on leaks also follow from it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from defaug_utils.core.guards import raise_problems

REAL = "real"  # the origin of the data set's own images
EQUAL, AUGMENTED = "none_equal", "augmented"  # trained as long as arms with n_aug generated images, without
SCENARIOS = ("zero-shot", "few-shot", "full-shot")
MIXING, SHARE = "+", ":"  # in cut_paste:0.75+diag:0.25
SHARE_IN_NAMES = "="  # of files: Windows refuses colons
_PART = rf"[a-z0-9_]+(?:{SHARE_IN_NAMES}[0-9.]+)?"
_RUN_NAME = re.compile(rf"([a-z]+-shot)-({_PART}(?:\{MIXING}{_PART})*)-(0|[1-9][0-9]*)-seed(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")

Shares = Mapping[str, float]
Arms = Mapping[str, Shares]


class MixingError(ValueError):
    """A training set can't be composed as requested."""


@dataclass(frozen=True)
class Arm:
    """Where the generated positives of a run come from, and how results show it."""

    shares: Shares  #: origin → share; they add up to 1; empty for no augmentation
    label: str
    colour: str  #: from Okabe and Ito's palette, or another that is safe for colour-blind readers
    marker: str  #: of matplotlib
    judge: str = "network"  #: of images: a trained "network", a "memory" or a "line", see `finish_classifier`


@dataclass(frozen=True)
class Origin:
    """A method's row. Its key is the origin in manifests, the folder of its pools, and its own arm."""

    label: str  #: this, colour and marker: see `Arm`
    colour: str
    marker: str
    notebook: str  #: the one that makes its pool
    gives_masks: bool = True  #: exact ones
    needs_positives: bool = False  #: needs real positives, which zero-shot doesn't have
    learns: bool = False  #: depends on scenario and seed, so that each has its own pool
    diffusion: str = ""  #: a diffusion model makes it, "as it is" or "fine-tuned"
    wants_gpu: bool = True
    count_parameter: str = "pool_count"  #: of its notebook: images in the pool
    mixes: tuple[tuple[str, Arm], ...] = ()  #: further arms, by word, shown after its own


IN_AND_OUT = Arm({"ddpm": 0.5, "memseg": 0.5}, "In&Out", "#009E73", "d")

ORIGINS: dict[str, Origin] = {
    "memseg": Origin("MemSeg", "#0072B2", "o", "02_memseg", wants_gpu=False),
    "ddpm": Origin(
        *("DDPM", "#D55E00", "s", "03_lora_finetune"),
        gives_masks=False,
        learns=True,
        diffusion="fine-tuned",
        mixes=(("in_and_out", IN_AND_OUT),),
    ),
    "diag": Origin("DIAG", "#CC79A7", "^", "04_diag_inpainting", diffusion="as it is"),
    "diag_real_masks": Origin(
        *("DIAG, masks of real defects", "#999933", "P", "04_diag_inpainting"),
        diffusion="as it is",
        count_parameter="real_mask_count",
    ),
    "adabldm": Origin(
        *("AdaBLDM", "#56B4E9", "v", "05_adabldm"),
        needs_positives=True,
        learns=True,
        diffusion="fine-tuned",
    ),
    "adabldm_plain": Origin(
        *("AdaBLDM, decoder as it is", "#882255", "<", "05_adabldm"),
        needs_positives=True,
        learns=True,
        diffusion="fine-tuned",
        count_parameter="plain_count",
    ),
    "cut_paste": Origin("cut and paste", "#E69F00", "8", "05_adabldm", needs_positives=True, learns=True),
    "paste_refined": Origin(
        *("cut and paste, refined", "#332288", ">", "05_adabldm"),
        needs_positives=True,
        learns=True,
        diffusion="as it is",
        count_parameter="refined_count",
    ),
    "diag_tuned": Origin(
        *("DIAG, tuned", "#117733", "D", "11_diag_tuned"),
        needs_positives=True,
        learns=True,
        diffusion="fine-tuned",
    ),
}


def list_arms() -> dict[str, Arm]:
    """Every built-in arm by its word, in the order of results."""
    arms = {
        "patch_memory": Arm({}, "memory of good patches", "#B8860B", "p", judge="memory"),
        "linear": Arm({}, "linear classifier", "#8C564B", "*", judge="line"),
        "none": Arm({}, "no augmentation", "#000000", "X"),
        EQUAL: Arm({}, "no augmentation, trained as long", "#666666", "h"),
        AUGMENTED: Arm({}, "rotation and brightness, trained as long", "#AA4499", "H"),
    }
    for word, row in ORIGINS.items():
        arms[word] = Arm({word: 1.0}, row.label, row.colour, row.marker)
        arms |= dict(row.mixes)
    return arms


def find_judge(arm: str) -> str:
    """What judges an arm's images, see `Arm`; for a profile's own arms, a network."""
    built_in = list_arms().get(arm)
    return built_in.judge if built_in else "network"


def takes_images(arm: str) -> bool:
    """Whether an arm has an `n_aug`: it generates images, or is trained as long as arms that do."""
    return arm != "none" and find_judge(arm) == "network"


def generates_images(arm: str) -> bool:
    """Whether an arm has generated images; a mixture and a profile's own arm always have."""
    built_in = list_arms().get(arm)
    return built_in is None or bool(built_in.shares)


def uses_diffusion(arm: str) -> bool:
    """Whether a diffusion model makes some of the images of a built-in arm or a mixture."""
    return any(ORIGINS[origin].diffusion for origin in arm_shares(arm))


def list_notebooks() -> list[str]:
    """The notebooks that make pools, each once."""
    return list(dict.fromkeys(row.notebook for row in ORIGINS.values()))


class Run(NamedTuple):
    """One classifier run of the protocol."""

    scenario: str  #: word of `SCENARIOS`: how many real positives are known
    arm: str  #: word of `list_arms`, a mixture, or one of the profile's own, see `arm_shares`
    n_aug: int  #: generated positives, or how many longer training makes up for; 0 unless `takes_images`
    seed: int  #: draws the real positives of few-shot, and the generated ones

    @property
    def name(self) -> str:
        """See `run_name`."""
        return run_name(*self)


def run_name(scenario: str, arm: str, n_aug: int, seed: int) -> str:
    """Name of a run in files and folders, such as `few-shot-memseg-40-seed0`.

    A mixture's shares follow an equals sign there: `few-shot-diag=0.25+memseg=0.75-40-seed0`.
    """
    name = f"{scenario}-{arm.replace(SHARE, SHARE_IN_NAMES)}-{n_aug}-seed{seed}"
    parse_run_name(name)
    return name


def parse_run_name(name: str) -> Run:
    """Parse a name made by `run_name`; raises a `MixingError` if it is not one."""
    found = _RUN_NAME.fullmatch(name)
    if not found:
        raise MixingError(
            f"{name!r} is not a run name: expected one like few-shot-memseg-40-seed0, with an arm of "
            "lower-case letters, digits and underscores, or a mixture such as diag=0.25+memseg=0.75, and "
            "whole numbers that are not negative"
        )
    return Run(found[1], found[2].replace(SHARE_IN_NAMES, SHARE), int(found[3]), int(found[4]))


def pool_name(scenario: str, seed: int) -> str:
    """Name of a pool that learns: `few-shot-seed0`, or `zero-shot`, which draws no positives by seed."""
    return f"{scenario}-seed{seed}" if scenario == "few-shot" else scenario


def pool_scenarios(name: str) -> tuple[str, ...]:
    """Scenarios that a pool serves: for `adabldm/few-shot-seed0` the one in its name, for `diag` all."""
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
    """All runs of a profile, each once: the product of the four lists without impossible combinations.

    Arms without images are planned with `n_aug` 0, all others with the numbers above 0, which tell
    "none_equal" and "augmented" how long to train. Zero-shot has no real positives: it excludes arms that
    need them, and "patch_memory" is its only arm that generates nothing.

    Args:
        extra_arms: see `arm_shares`.
        left_out: scenario → arms that are not planned in it.

    Raises:
        MixingError: an entry is not a list, a word or number is invalid, or no run is left.
    """
    given = {"scenarios": scenarios, "arms": arms, "n_aug": n_aug, "seeds": seeds}
    no_lists = [
        f"{name} is {entry!r}, expected a list"
        for name, entry in given.items()
        if isinstance(entry, str | Mapping) or not isinstance(entry, Iterable)
    ]
    raise_problems("planned runs", no_lists, MixingError)
    given = {name: list(entry) for name, entry in given.items()}
    scenarios, arms, n_aug, seeds = given.values()
    unknown = [word for word in scenarios if word not in SCENARIOS]
    wrong = [f"scenario {word!r} is not one of {', '.join(SCENARIOS)}" for word in unknown]
    skipped = {(scenario, arm) for scenario, words in (left_out or {}).items() for arm in words}
    wrong += [
        f"left_out names {arm!r} in {scenario!r}, which is not planned anyway"
        for scenario, arm in sorted(skipped)
        if scenario not in scenarios or arm not in arms
    ]
    negative = [number for number in n_aug + seeds if type(number) is not int or number < 0]
    wrong += [f"{number!r} is not a whole number of at least 0" for number in negative]
    raise_problems("planned runs", wrong, MixingError)
    origins = {arm: arm_shares(arm, extra_arms=extra_arms) for arm in arms}
    mixed = [arm for arm in origins if MIXING in arm]
    twice = [pair for pair in combinations(mixed, 2) if origins[pair[0]] == origins[pair[1]]]
    raise_problems("arms", [f"{one} and {other} are the same mixture" for one, other in twice], MixingError)
    real = {word for word, row in ORIGINS.items() if row.needs_positives}
    runs = [
        Run(scenario, arm, number, seed)
        for scenario in scenarios
        for arm in arms
        for number in (n_aug if takes_images(arm) else [0])
        for seed in seeds
        if (number > 0) == takes_images(arm)
        and (scenario, arm) not in skipped
        and (
            scenario != "zero-shot"
            or find_judge(arm) == "memory"
            or (origins[arm] and not real & origins[arm].keys())
        )
    ]
    if not runs:
        raise MixingError(f"no run is left of {given}: every arm except none needs an n_aug above 0")
    return [parse_run_name(run.name) for run in dict.fromkeys(runs)]


def arm_shares(arm: str, share: float = 0.5, extra_arms: Arms | None = None) -> dict[str, float]:
    """The share of an arm's generated positives that comes from each pool.

    Any mixture is an arm under the name that says what it mixes: `cut_paste+memseg` in equal parts,
    `cut_paste:0.75+diag:0.25` in others.

    Args:
        share: share of diffusion in the arm "in_and_out", in [0, 1]; the rest is MemSeg.
        extra_arms: further arms, name → (origin → share), such as {"diag_memseg": {"diag": 0.3,
            "memseg": 0.7}}; the shares of one arm add up to 1.

    Returns:
        Origin → share, without origins of share 0; empty for arms that generate nothing.

    Raises:
        MixingError: the arm is unknown, or shares or origins are wrong.
    """
    own, built_in = extra_arms or {}, list_arms()
    arms = {word: built.shares for word, built in built_in.items()} | dict(own)
    if arm == "in_and_out":
        arms[arm] = dict(zip(IN_AND_OUT.shares, (share, 1 - share), strict=True))
    if arm not in arms and MIXING not in arm:
        raise MixingError(f"arm {arm!r} is not one of {', '.join(arms)}, or a mixture such as diag+memseg")
    problems = [f"{name} is built in, choose another name" for name in own if name in built_in]
    problems += [f"{name} names a mixture, choose a name without {MIXING}" for name in own if MIXING in name]
    raise_problems(f"arm {arm}", problems, MixingError)
    shares, problems = parse_mixture(arm) if MIXING in arm else arms[arm], []
    problems += [f"origin {origin!r} is unknown" for origin in shares if origin not in ORIGINS]
    problems += [f"share {part} is not in [0, 1]" for part in (share, *shares.values()) if not 0 <= part <= 1]
    if (shares or arm in own) and abs(sum(shares.values()) - 1) > 1e-6:
        problems.append(f"the shares add up to {sum(shares.values())}, expected 1")
    raise_problems(f"arm {arm}", problems, MixingError)
    return {origin: part for origin, part in shares.items() if part > 0}


def parse_mixture(arm: str) -> dict[str, float]:
    """Origin → share of an arm that names what it mixes, see `arm_shares`, which also checks the shares.

    Raises:
        MixingError: an origin is named twice, a share can't be read, or only some origins have a share.
    """
    parts = [part.partition(SHARE) for part in arm.split(MIXING)]
    names, given = [name for name, _, _ in parts], [text for _, sign, text in parts if sign]
    problems = [f"origin {name!r} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if 0 < len(given) < len(parts):
        problems.append(f"{len(given)} of {len(parts)} origins have a share: give one to all or to none")
    problems += [
        f"share {text!r} is not a number such as 0.25" for text in given if not _NUMBER.fullmatch(text)
    ]
    raise_problems(f"arm {arm}", problems, MixingError)
    return {name: float(text) if sign else 1 / len(parts) for name, sign, text in parts}
