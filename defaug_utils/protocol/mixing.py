"""Training sets: which real and generated positives a classifier gets to see, drawn by seed, and their leaks.

A leak is a result of a run whose generated images knew real defects that its scenario may not know. It is
found in the rows that the run was trained on: each generated row says where its mask came from, and
`masks.is_leak` says which scenarios may not know that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from defaug_utils.core.guards import raise_problems
from defaug_utils.core.manifest import LABELS, SOURCE_COLUMNS, SPLITS, check_sources, read_manifest
from defaug_utils.core.origins import (
    ORIGINS,
    SCENARIOS,
    Arms,
    MixingError,
    Run,
    arm_shares,
    find_judge,
    takes_images,
)
from defaug_utils.core.pools import find_failed
from defaug_utils.data.datasets import choose_positives, data_key, shuffle_rows
from defaug_utils.masks.sources import is_leak
from defaug_utils.protocol.run_folder import RunPools

LEAK_MARK = "†"
LEAK_NOTE = f"{LEAK_MARK} a leak: masks of real training defects that this scenario may not know."
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Mix:
    """How the training sets of a profile are put together; the same for all its runs."""

    few_shot_count: int = 5  #: real positives in few-shot (N)
    share: float = 0.5  #: part of diffusion in the arm "in_and_out", see `arm_shares`
    require_review: bool = False  #: draw accepted images only, instead of all that were not rejected
    use_failed: bool = False  #: draw images that failed their method's checks as any other
    extra_arms: Arms = field(default_factory=dict)  #: see `arm_shares`
    #: seeds that draw none of each other's images, see `take_part`; empty: all draw from whole pools
    fresh_seeds: tuple[int, ...] = ()

    def shares_of(self, run: Run) -> dict[str, float]:
        """Origin → part of the run's generated positives, see `arm_shares`."""
        return arm_shares(run.arm, self.share, self.extra_arms)

    def list_waiting(self, run: Run, pools: Mapping[str, pd.DataFrame]) -> list[str]:
        """Notebooks that have to make a pool before a run can be put together; empty when it can be now."""
        return [ORIGINS[origin].notebook for origin in self.shares_of(run) if origin not in pools]


def count_by_origin(n_aug: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Share out a number of images (by Sainte-Laguë) so that a larger number takes none from an origin.

    What is left over of two halves goes to the origin named first, for In&Out to diffusion.
    """
    counts = dict.fromkeys(shares, 0)
    for _ in range(n_aug if shares else 0):
        owed = max(shares, key=lambda origin: shares[origin] / (2 * counts[origin] + 1))
        counts[owed] += 1
    return counts


def usable_rows(pool: pd.DataFrame, mix: Mix | None = None) -> pd.DataFrame:
    """The rows of a pool that may be drawn: never one that a person rejected.

    Images that failed their method's checks are drawn where a person accepted them, or the mix says so.
    """
    mix = mix or Mix()
    is_accepted = pool["accepted"].fillna(False).astype(bool)
    has_passed = mix.use_failed | ~find_failed(pool)
    return pool[is_accepted | (pool["accepted"].isna() & has_passed & (not mix.require_review))]


def take_part(pool: pd.DataFrame, seed: int, seeds: Sequence[int]) -> pd.DataFrame:
    """The rows of a pool that one of several seeds has for itself, marked by the column `pool_part`.

    Of every so many images in the pool's order each seed has one, drawn by their place. Images that failed
    their checks are dealt out apart. No review plays a part: what one seed loses by it, no other one gains.
    """
    places = pool.groupby(find_failed(pool)).cumcount()
    blocks = [
        np.random.default_rng(block).permutation(len(seeds))
        for block in range(places.max() // len(seeds) + 1)
    ]
    part = seeds.index(seed)
    is_own = [blocks[place // len(seeds)][place % len(seeds)] == part for place in places]
    return pool[is_own].assign(pool_part=f"{part + 1} of {len(seeds)}")


def compose_training_set(
    data_manifest: pd.DataFrame, pools: RunPools, run: Run, mix: Mix | None = None
) -> pd.DataFrame:
    """Put together all rows that one classifier run reads (Capogrosso et al. 2024).

    Training part: all negatives, the real positives of the scenario and `n_aug` generated ones.
    Validation part: all negatives, and its positives only in full-shot, since the other scenarios don't
    know them. Test part: everything. With the same seed a smaller `n_aug` draws a part of a larger one's.

    The data's manifest is from `read_data`, pools are from `read_pools` for this run. In the manifest that is
    returned, generated rows keep origin, seed and recipe, and tell their `pool_part` where seeds share pools.

    Raises:
        MixingError: a pool is missing or too small, a class has no sample, or a number makes no sense; or a
            pool started from, or its generator learned from, real positives that the scenario doesn't know.
        ManifestError: a generated image started from an image that is not in the train split.
    """
    mix = mix or Mix()
    scenario, arm, n_aug, seed = run
    shares = mix.shares_of(run)
    if n_aug < 0 or seed < 0 or (n_aug > 0) != takes_images(arm):
        raise MixingError(
            f"n_aug {n_aug} with arm {arm} and seed {seed}: n_aug must be 0 for the arms none, linear and "
            "patch_memory and at least 1 for every other, the seed not negative"
        )
    if mix.fresh_seeds and seed not in mix.fresh_seeds:
        raise MixingError(f"seed {seed} has no part of the pools, which are for the seeds {mix.fresh_seeds}")
    positives = choose_positives(data_manifest, scenario, seed, mix.few_shot_count)
    counts = {origin: count for origin, count in count_by_origin(n_aug, shares).items() if count}
    parts = _take_parts(pools, run, mix, counts)
    usable = {origin: usable_rows(parts[origin], mix) for origin in parts}
    raise_problems(run.name, _find_problems(parts, usable, counts, mix), MixingError)
    for origin in counts:
        check_sources(pools[origin], data_manifest.assign(image=data_manifest["image"].map(data_key)))
        _check_known(pools, origin, data_manifest, positives)
    drawn = [shuffle_rows(usable[origin], seed).iloc[:count] for origin, count in counts.items()]
    is_negative, split = data_manifest["label"] == "negative", data_manifest["split"]
    negatives = data_manifest[is_negative & (split == "train")]
    validation = data_manifest[(split == "val") & (is_negative | (scenario == "full-shot"))]
    parts = [negatives, positives, *drawn, validation, data_manifest[split == "test"]]
    training_set = pd.concat(parts, ignore_index=True)
    _check_classes(training_set, data_manifest, list_needed(arm))
    return training_set


def _take_parts(pools: RunPools, run: Run, mix: Mix, origins: Iterable[str]) -> RunPools:
    """Of pools that several seeds share, the part of this one; a pool of its own is its own as a whole."""
    parts = {origin: pools[origin] for origin in origins if origin in pools}
    for origin, pool in parts.items():
        is_own = pools.folders.get(origin, "").endswith(f"/{run.scenario}-seed{run.seed}")
        if mix.fresh_seeds and not is_own:
            parts[origin] = take_part(pool, run.seed, mix.fresh_seeds)
    return RunPools(parts)


def _find_problems(pools: RunPools, usable: RunPools, counts: dict[str, int], mix: Mix) -> list[str]:
    problems = []
    for origin, count in counts.items():
        notebook = ORIGINS[origin].notebook
        if origin not in pools:
            problems.append(f"there is no {origin} pool: run notebook {notebook} first")
            continue
        pool = pools[origin]
        is_foreign = (pool[["label", "split", "origin"]] != ["positive", "train", origin]).any(axis=1)
        if is_foreign.any():
            problems.append(
                f"the {origin} pool has {is_foreign.sum()} rows that are no {origin} positives for training "
                f"(the first is {pool.loc[is_foreign, 'image'].iloc[0]}): make it anew by notebook {notebook}"
            )
        if len(usable[origin]) < count:
            told = count_reviews({origin: pool}).loc[origin]
            reasons = f"{told['rejected']} rejected, {told['not reviewed']} not reviewed"
            if told["failed checks"]:
                reasons += f", {told['failed checks']} failed their checks"
            part = ""
            if "pool_part" in pool:
                lost = max(0, int((~find_failed(pool)).sum()) - len(usable[origin]))
                needed = (count + lost) * len(mix.fresh_seeds)
                part = (
                    f" of part {pool['pool_part'].iloc[0]}, its seed's own: {needed} images of all parts are "
                    f"needed, raise {ORIGINS[origin].count_parameter} to that"
                )
            problems.append(
                f"the {origin} pool is too small: {count} images are asked for, {len(usable[origin])} of "
                f"{len(pool)} are usable ({reasons}){part}; make more by notebook "
                f"{notebook}{', review more' * mix.require_review} or ask for fewer"
            )
    return problems


def _check_known(pools: RunPools, origin: str, data_manifest: pd.DataFrame, positives: pd.DataFrame) -> None:
    """Refuse a pool that started, or whose generator learned, from real positives unknown to the scenario."""
    pool, names = pools[origin], data_manifest["image"].map(data_key)
    hidden = set(names[data_manifest["label"] == "positive"]) - set(positives["image"].map(data_key))
    problems = [
        f"{image}: its source {source} is a real positive that this scenario does not know"
        for column in SOURCE_COLUMNS
        if column in pool
        for image, source in zip(pool["image"], pool[column], strict=True)
        if source in hidden
    ]
    raise_problems("generated images", problems, MixingError)
    known = set(names[data_manifest["split"] == "train"]) - hidden
    wrong = {True: "a real positive that this scenario does not know", False: "no training image"}
    learned = map(data_key, pools.learned.get(origin, ()))
    problems = [f"{name} is {wrong[name in hidden]}" for name in learned if name not in known]
    title = f"the {origin} pool's generator learned from images that it must not know (make the pool anew)"
    raise_problems(title, problems, MixingError)


def list_needed(arm: str) -> tuple[str, ...]:
    """The labels that an arm's training part must hold: a memory of good parts needs no positive."""
    return ("negative",) if find_judge(arm) == "memory" else LABELS


def _check_classes(training_set: pd.DataFrame, data_manifest: pd.DataFrame, known: Iterable[str]) -> None:
    present = set(zip(training_set["split"], training_set["label"], strict=True))
    needed = [*product(["train"], known), *product(["test"], LABELS)]
    missing = [part for part in needed if part not in present]
    problems = [f"the {split} part has no {label}" for split, label in missing]
    foreign = data_manifest["image"][data_manifest["origin"] != "real"]
    problems += [f"{image} of the data set is not real" for image in foreign]
    raise_problems("training set", problems, MixingError)


def count_reviews(pools: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a pool: its images, how many have a mask, what the checks and what the review said."""
    counts = {
        origin: {
            "images": len(pool),
            "with mask": (pool["mask"] != "").sum(),
            "failed checks": find_failed(pool).sum(),
            "accepted": pool["accepted"].fillna(False).sum(),
            "rejected": (~pool["accepted"].fillna(True)).sum(),
            "not reviewed": pool["accepted"].isna().sum(),
        }
        for origin, pool in pools.items()
    }
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("pool")


def count_rows(training_sets: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a training set (by run name), one column a split and kind, such as `train memseg`."""
    counts = {}
    for name, rows in training_sets.items():
        kinds = rows["origin"].where(rows["origin"] != "real", rows["label"])
        counts[name] = (rows["split"] + " " + kinds).value_counts(sort=False)
    table = pd.DataFrame(counts).T.fillna(0).astype(int).rename_axis("run")
    order = [f"{split} {kind}" for split in SPLITS for kind in (*LABELS, *ORIGINS)]
    return table[[column for column in order if column in table]]


def find_leaks(rows: pd.DataFrame, scenario: str) -> str:
    """The mask sources of a training set or a pool that a scenario may not know, with commas between."""
    sources = sorted(set(rows["mask_source"]) - {""})
    return ", ".join(source for source in sources if is_leak(source, scenario))


def find_leaking_scenarios(rows: pd.DataFrame, scenarios: Iterable[str] = SCENARIOS) -> list[str]:
    """The scenarios, of those that a pool serves, in which its images are a leak."""
    return [scenario for scenario in scenarios if find_leaks(rows, scenario)]


def find_run_leaks(training_set: Path | str, scenario: str) -> str:
    """What `find_leaks` says of a stored training set, or "unknown" where the file is gone."""
    path = Path(training_set)
    return find_leaks(read_manifest(path), scenario) if path.is_file() else UNKNOWN


def join_leaks(leaks: pd.Series) -> str:
    """The leaks of several runs as one text, each once; runs of which nothing is known add nothing."""
    words = [word for leak in leaks for word in leak.split(", ")]
    return ", ".join(sorted(set(words) - {"", UNKNOWN}))


def mark_label(label: str, leak: object) -> str:
    """A label with the mark behind it where something leaks."""
    return f"{label} {LEAK_MARK}" if is_marked(leak) else label


def is_marked(leak: object) -> bool:
    """Tell whether a cell of the column `leak` stands for a leak."""
    return isinstance(leak, str) and leak not in ("", UNKNOWN)
