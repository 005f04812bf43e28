"""The runs, pools, trainings and jobs of a profile, for the Snakefile's rules and for the forecast."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from defaug_utils.book.profiles import read_defaults
from defaug_utils.core.guards import raise_problems
from defaug_utils.core.origins import ORIGINS, Run, Shares, arm_shares, planned_runs, pool_name

BATCHES = {  # images of a training's step
    "03_lora_finetune": "batch_size",
    "05_adabldm": "training_batch",
    "11_diag_tuned": "training_batch",
}
Runs = dict[Run, Shares]  # the runs of a notebook's lists, each with the origins of its pools


class Job(NamedTuple):
    """One job of the batch engine."""

    rule: str  #: its rule in the Snakefile
    name: str  #: of its notebook (`02_memseg`, `03_lora_finetune/zero-shot`), or of what it trains
    shard: int = 0  #: of the pool, from 0, if the rule is "shard"


@dataclass(frozen=True)
class BookPlan:
    """The runs of a profile, and what they need."""

    parameters: Mapping[str, dict]  #: of `read_profile`
    mixed: Runs  #: of chapter 6, whose classifiers chapters 7 and 8 show
    marked: Runs  #: of chapter 9
    own: Runs  #: of chapter 10, which trains it with and without a person's images
    sharded: frozenset[str] = frozenset()  #: notebooks whose pools can be made in shards

    @cached_property
    def trained(self) -> dict[str, dict[str, list[Run]]]:
        """The runs that one job trains: "classifier" or "segmenter" → name of the draw → runs."""
        return {"classifier": list_draws(self.mixed), "segmenter": list_draws(self.marked)}

    @cached_property
    def pools(self) -> dict[str, Run]:
        """Every pool by its notebook: those of the runs, and one of each notebook that no run needs."""
        pools = list_pools(self.mixed, self.marked, self.own)
        for origin, row in ORIGINS.items():
            if row.notebook in self.parameters and not any(pool.startswith(row.notebook) for pool in pools):
                shown = Run("full-shot", origin, 0, 0)
                pools[pool_notebook(origin, shown)] = shown
        return pools

    def pool_values(self, pool: str) -> dict:
        """Parameters of a pool that learns: its scenario, and the seed whose positives it may know."""
        run = self.pools[pool]
        return {"scenario": run.scenario, "pool_of_seed": run.seed} if "/" in pool else {}

    @property
    def shown_run(self) -> Run:
        """The run whose notebook 07 is in the book."""
        return list(self.mixed)[-1]

    @property
    def chapters(self) -> dict[str, str]:
        """For each chapter, the executed notebook that is in the book; few-shot pools before others."""
        shown = {Path(pool).parts[0]: pool for pool in sorted(self.pools, reverse=True)}
        names = {name: shown.get(name, name) for name in self.parameters}
        return names | {"07_classifier": f"07_classifier/{self.shown_run.name}"}

    def list_jobs(self, target: str = "book", shards: int = 1, processes: int = 1) -> list[Job]:
        """All jobs of the target "book" or "pixel_level", in a possible order."""
        is_book = target == "book"
        pools = self.pools if is_book else list_pools(self.marked)
        jobs = [Job("data_prep", "01_data_prep")]
        if max(shards, processes) > 1:
            jobs += [Job("training", pool) for pool in pools if "/" in pool]
        if shards > 1:
            cut = [pool for pool in pools if pool.partition("/")[0] in self.sharded]
            jobs += [Job("shard", pool, shard) for pool in cut for shard in range(shards)]
        jobs += [Job("pool", pool) for pool in pools]
        if is_book:
            jobs.append(Job("in_and_out", "06_in_and_out"))
            jobs += [Job("classifiers", draw) for draw in self.trained["classifier"]]
        jobs += [Job("detectors", draw) for draw in self.trained["segmenter"]]
        if is_book:
            jobs += [Job("classifier", self.chapters["07_classifier"]), Job("results", "08_results")]
            jobs.append(Job("diffusion", "00_diffusion"))
        jobs.append(Job("pixel_level", "09_pixel_level"))
        return [*jobs, Job("own_defect", "10_own_defect"), Job("book", "book")] if is_book else jobs


def plan_book(parameters: Mapping[str, dict], notebook_folder: Path | str = "notebooks") -> BookPlan:
    """Plan what a profile's `parameters` (of `read_profile`) ask for; a MixingError lists invalid values."""
    chapters = ("06_in_and_out", "09_pixel_level")
    runs = [plan_runs(name, parameters, notebook_folder) for name in chapters]
    given = read_defaults("10_own_defect", notebook_folder) | parameters["10_own_defect"]
    own = Run(given["scenario"], given["beside"], given["n_aug"], given["training_seed"])
    sharded = frozenset(name for name in parameters if "shard" in read_defaults(name, notebook_folder))
    return BookPlan(parameters, *runs, {own: arm_shares(own.arm)}, sharded)


def check_processes(parameters: Mapping[str, dict], processes: int) -> None:
    """Refuse a number of processes that can't share the images of every training's step; lists these."""
    batches = {
        f"{notebook}'s {name}": (read_defaults(notebook) | parameters[notebook])[name]
        for notebook, name in BATCHES.items()
    }
    wrong = [
        f"{name} {batch} can't be shared equally" for name, batch in batches.items() if batch % processes
    ]
    raise_problems(f"{processes} processes: choose a number that divides every batch", wrong)


def plan_runs(
    notebook: str, parameters: Mapping[str, dict], notebook_folder: Path | str = "notebooks"
) -> Runs:
    """The runs of a notebook's lists.

    An arm waits until all its origins have a notebook that makes their pools.
    """
    given = {"baselines": [], "share": 0.5, "extra_arms": {}, "left_out": {}}
    given |= read_defaults(notebook, notebook_folder) | parameters[notebook]
    arms = [*given["baselines"], *given["arms"]]
    lists = (given[name] for name in ("n_aug", "seeds", "extra_arms", "left_out"))
    runs = planned_runs(given["scenarios"], arms, *lists)
    origins = {run: arm_shares(run.arm, given["share"], given["extra_arms"]) for run in runs}
    return {
        run: used
        for run, used in origins.items()
        if all(ORIGINS[name].notebook in parameters for name in used)
    }


def list_draws(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by scenario and seed, which share their real positives: name of the draw → the runs."""
    draws: dict[str, list[Run]] = {}
    for run in runs:
        draws.setdefault(f"{run.scenario}-seed{run.seed}", []).append(run)
    return draws


def pool_notebook(origin: str, run: Run) -> str:
    """The executed notebook that makes the pool of a run: one for all, or one per scenario and seed."""
    name = ORIGINS[origin].notebook
    return f"{name}/{pool_name(run.scenario, run.seed)}" if ORIGINS[origin].learns else name


def list_pools(*plans: Runs) -> dict[str, Run]:
    """Every pool that runs draw from: its notebook and one of these runs."""
    return {pool_notebook(origin, run): run for runs in plans for run in runs for origin in runs[run]}
