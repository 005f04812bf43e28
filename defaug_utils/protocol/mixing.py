"""Training sets: which real and generated positives a classifier sees, drawn by seed, and their leaks.

A run has a leak if its generated images used real defects that its scenario must not know. Leaks are found in
the rows that the run was trained on: each generated row says where its mask came from, and `masks.is_leak`
says which scenarios must not know that source.
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
LEAK_NOTE = f"{LEAK_MARK} a leak: masks of real training defects that this scenario must not know."
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Mix:
    """How the training sets of a profile are composed; the same for all its runs."""

    few_shot_count: int = 5  #: real positives in few-shot (N)
    share: float = 0.5  #: share of diffusion in the arm "in_and_out", see `arm_shares`
    require_review: bool = False  #: draw only accepted images, instead of all that were not rejected
    use_failed: bool = False  #: also draw images that failed their method's checks
    extra_arms: Arms = field(default_factory=dict)  #: see `arm_shares`
    #: seeds that draw none of each other's images, see `take_part`; empty: all draw from whole pools
    fresh_seeds: tuple[int, ...] = ()

    def shares_of(self, run: Run) -> dict[str, float]:
        """Origin → share of the run's generated positives, see `arm_shares`."""
        return arm_shares(run.arm, self.share, self.extra_arms)

    def list_waiting(self, run: Run, pools: Mapping[str, pd.DataFrame]) -> list[str]:
        """Notebooks that must make a pool before a run can be composed; empty if it can be now."""
        return [ORIGINS[origin].notebook for origin in self.shares_of(run) if origin not in pools]


def count_by_origin(n_aug: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Distribute a number of images (Sainte-Laguë), so that a larger number takes none from an origin.

    With two halves, an odd image goes to the origin named first: for In&Out, diffusion.
    """
    counts = dict.fromkeys(shares, 0)
    for _ in range(n_aug if shares else 0):
        owed = max(shares, key=lambda origin: shares[origin] / (2 * counts[origin] + 1))
        counts[owed] += 1
    return counts


def usable_rows(pool: pd.DataFrame, mix: Mix | None = None) -> pd.DataFrame:
    """The rows of a pool that may be drawn: never one that a reviewer rejected.

    Images that failed their method's checks are drawn only if a reviewer accepted them or the mix allows it.
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
    """Compose all rows for one classifier run (Capogrosso et al. 2024).

    Training part: all negatives, the real positives of the scenario and `n_aug` generated ones.
    Validation part: all negatives, and positives only in full-shot, because the other scenarios don't know
    them. Test part: everything. With the same seed, a smaller `n_aug` draws a subset of a larger one's
    images.

    The data's manifest comes from `read_data`, the pools from `read_pools` for this run. In the returned
    manifest, generated rows keep origin, seed and recipe, and have their `pool_part` if seeds share pools.

    Raises:
        MixingError: a pool is missing or too small, a class has no samples, or a number is invalid; or a
            pool, or its generator, used real positives that the scenario doesn't know.
        ManifestError: the source of a generated image is not in the train split.
    """
    mix = mix or Mix()
    scenario, arm, n_aug, seed = run
    shares = mix.shares_of(run)
    if n_aug < 0 or seed < 0 or (n_aug > 0) != takes_images(arm):
        raise MixingError(
            f"n_aug {n_aug} with arm {arm} and seed {seed}: n_aug must be 0 for the arms none, linear and "
            "patch_memory and at least 1 for all others, and the seed must not be negative"
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
                f"the {origin} pool has {is_foreign.sum()} rows that are not {origin} training positives "
                f"(the first is {pool.loc[is_foreign, 'image'].iloc[0]}): remake it with notebook {notebook}"
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
                f"the {origin} pool is too small: {count} images are requested, {len(usable[origin])} of "
                f"{len(pool)} are usable ({reasons}){part}; make more with notebook "
                f"{notebook}{', review more' * mix.require_review} or request fewer"
            )
    return problems


def _check_known(pools: RunPools, origin: str, data_manifest: pd.DataFrame, positives: pd.DataFrame) -> None:
    """Refuse a pool whose sources or generator used real positives that the scenario doesn't know."""
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
    wrong = {True: "a real positive that this scenario does not know", False: "not a training image"}
    learned = map(data_key, pools.learned.get(origin, ()))
    problems = [f"{name} is {wrong[name in hidden]}" for name in learned if name not in known]
    title = f"the {origin} pool's generator learned from images that it must not know (remake the pool)"
    raise_problems(title, problems, MixingError)


def list_needed(arm: str) -> tuple[str, ...]:
    """The labels that an arm's training part must contain: a memory of good parts needs no positives."""
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
    """One row per pool: numbers of images, of masks, and of results of checks and review."""
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
    """One row per training set (by run name), one column per split and kind, such as `train memseg`."""
    counts = {}
    for name, rows in training_sets.items():
        kinds = rows["origin"].where(rows["origin"] != "real", rows["label"])
        counts[name] = (rows["split"] + " " + kinds).value_counts(sort=False)
    table = pd.DataFrame(counts).T.fillna(0).astype(int).rename_axis("run")
    order = [f"{split} {kind}" for split in SPLITS for kind in (*LABELS, *ORIGINS)]
    return table[[column for column in order if column in table]]


def find_leaks(rows: pd.DataFrame, scenario: str) -> str:
    """The mask sources of a training set or pool that a scenario must not know, separated by commas."""
    sources = sorted(set(rows["mask_source"]) - {""})
    return ", ".join(source for source in sources if is_leak(source, scenario))


def find_leaking_scenarios(rows: pd.DataFrame, scenarios: Iterable[str] = SCENARIOS) -> list[str]:
    """Those of the given scenarios in which a pool's images are a leak."""
    return [scenario for scenario in scenarios if find_leaks(rows, scenario)]


def find_run_leaks(training_set: Path | str, scenario: str) -> str:
    """The result of `find_leaks` for a stored training set, or "unknown" if the file is missing."""
    path = Path(training_set)
    return find_leaks(read_manifest(path), scenario) if path.is_file() else UNKNOWN


def join_leaks(leaks: pd.Series) -> str:
    """The leaks of several runs as one text, each once; unknown ones are omitted."""
    words = [word for leak in leaks for word in leak.split(", ")]
    return ", ".join(sorted(set(words) - {"", UNKNOWN}))


def mark_label(label: str, leak: object) -> str:
    """A label, followed by the mark if there is a leak."""
    return f"{label} {LEAK_MARK}" if is_marked(leak) else label


def is_marked(leak: object) -> bool:
    """Whether a cell of the column `leak` means a leak."""
    return isinstance(leak, str) and leak not in ("", UNKNOWN)
