# The batch engine: one rule per notebook; results appear because targets are missing.
#
#   snakemake --cores 2 --config profile=workshop data=path/to/data threads=1
#
# An executed notebook proves that its stage is done: it exists only if every cell has run. One job per scenario and
# seed trains classifiers and detectors, whose results notebooks 07 to 09 read. A killed run can be resumed, because
# pools and trainings resume, too.
import os
import sys
from pathlib import Path

from defaug_utils.book.batch import ERRORS, claim_run, list_gpus
from defaug_utils.book.profiles import read_defaults, read_profile
from defaug_utils.core.origins import (ORIGINS, Run, arm_shares, list_notebooks, planned_runs, pool_name, run_name)
from defaug_utils.data.layouts import find_layout

# glibc hands large blocks back to the system and fetches them again page by page: a third of a training's time.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**40))

PROFILE = config.get("profile") or "workshop"
DATA = str(config.get("data") or "")
THREADS = int(config.get("threads") or 1)
RUN = config.get("run") or f"runs/{PROFILE}" + (f"-{Path(DATA).resolve().name}" if DATA else "")
EXECUTED = f"{RUN}/notebooks"
try:  # reported before anything runs, without Snakemake's own output
    PARAMETERS = read_profile(f"profiles/{PROFILE}.yaml")
    if DATA and not Path(f"{EXECUTED}/01_data_prep.ipynb").is_file():
        find_layout(DATA)
except (ValueError, OSError) as error:
    sys.exit(f"\n{error}\n")

# Each GPU runs one job that needs one; without GPUs, these jobs share the cores. A cluster allocates its own.
if workflow.is_main_process and workflow.local_exec and "gpu" not in workflow.global_resources and (gpus := list_gpus()):
    workflow.register_resource("gpu", len(gpus))


# An arm waits until all its origins have a notebook that makes their pools.
def plan(notebook):
    """The runs of a notebook's lists, each with the origins of its pools."""
    given = {"baselines": [], "share": 0.5, "extra_arms": {}, "left_out": {}} | read_defaults(notebook) | PARAMETERS[notebook]
    arms = [*given["baselines"], *given["arms"]]
    runs = planned_runs(given["scenarios"], arms, *(given[name] for name in ("n_aug", "seeds", "extra_arms", "left_out")))
    origins = {run: arm_shares(run.arm, given["share"], given["extra_arms"]) for run in runs}
    return {run: used for run, used in origins.items() if all(ORIGINS[name].notebook in PARAMETERS for name in used)}


MIXED, MARKED = plan("06_in_and_out"), plan("09_pixel_level")
RUNS = {run_name(*run): run for run in MIXED}
SHOWN_RUN = list(RUNS)[-1]  # the run whose notebook 07 is in the book


def draws(runs):
    """Runs by scenario and seed, which share their real positives: name of the draw → the runs."""
    names = dict.fromkeys(f"{run.scenario}-seed{run.seed}" for run in runs)
    return {name: [run for run in runs if f"{run.scenario}-seed{run.seed}" == name] for name in names}


TRAINED = {"classifier": draws(MIXED), "segmenter": draws(MARKED)}


def pool_notebook(origin, run):
    """The executed notebook that makes the pool of a run: one for all, or one a scenario and seed."""
    name = ORIGINS[origin].notebook
    return f"{name}/{pool_name(run.scenario, run.seed)}" if ORIGINS[origin].learns else name


def pools(*plans):
    """Every pool that runs draw from: its notebook and one of these runs."""
    return {pool_notebook(origin, run): run for runs in plans for run in runs for origin in runs[run]}


# Of several pools from one notebook, one is in the book, and one is made even if no run needs any.
POOLS = pools(MIXED, MARKED)
for origin, row in ORIGINS.items():
    if row.notebook in PARAMETERS and not any(pool.startswith(row.notebook) for pool in POOLS):
        shown = Run("full-shot", origin, 0, 0)
        POOLS[pool_notebook(origin, shown)] = shown
SHOWN_POOLS = {Path(pool).parts[0]: pool for pool in sorted(POOLS, reverse=True)}  # few-shot before the others
CHAPTERS = {
    **{name: f"{EXECUTED}/{SHOWN_POOLS.get(name, name)}.ipynb" for name in PARAMETERS},
    "07_classifier": f"{EXECUTED}/07_classifier/{SHOWN_RUN}.ipynb",
}


def values(notebook, **further):
    """The profile's parameters of a notebook, those of this run on top."""
    return PARAMETERS[notebook] | {"run_dir": RUN} | further


def pool_values(pool):
    """Likewise, where pools learn with the scenario that this one is for, and the seed whose positives it may know."""
    notebook, *name = pool.split("/")
    run = POOLS[pool]
    return values(notebook, **(dict(scenario=run.scenario, pool_of_seed=run.seed) if name else {}))


rule book:
    input:
        chapters=list(CHAPTERS.values()),
        prose=[path for path in Path("book").rglob("*") if path.is_file()],
        settings=["_config.yml", "_toc.yml"],
    output:
        touch(f"{RUN}/book/built"),  # Sphinx writes its pages before it has finished
    params:
        executed=CHAPTERS,
        folder=f"{RUN}/book",
    script:
        "scripts/build_book.py"


rule data_prep:
    input:
        notebook="notebooks/01_data_prep.ipynb",
    output:
        f"{EXECUTED}/01_data_prep.ipynb",
    params:
        values=values("01_data_prep", **({"data_root": DATA} if DATA else {})),
    threads: THREADS
    script:
        "scripts/run_notebook.py"


rule pool:
    input:
        rules.data_prep.output,
        notebook=lambda wildcards: f"notebooks/{wildcards.notebook}.ipynb",
    output:
        f"{EXECUTED}/{{notebook}}{{name}}.ipynb",
    wildcard_constraints:
        notebook="|".join(list_notebooks()),
        name=r"(/[\w-]+)?",
    params:
        values=lambda wildcards: pool_values(wildcards.notebook + wildcards.name),
    threads: THREADS
    resources:
        gpu=lambda wildcards: int(any(row.wants_gpu for row in ORIGINS.values() if row.notebook == wildcards.notebook)),
    script:
        "scripts/run_notebook.py"


rule in_and_out:
    input:
        [f"{EXECUTED}/{pool}.ipynb" for pool in pools(MIXED)],
        notebook="notebooks/06_in_and_out.ipynb",
    output:
        f"{EXECUTED}/06_in_and_out.ipynb",
    params:
        values=values("06_in_and_out"),
    threads: THREADS
    script:
        "scripts/run_notebook.py"


rule classifiers:
    input:
        rules.in_and_out.output,
    output:
        touch(f"{RUN}/classifier/{{draw}}.trained"),
    params:
        values=read_defaults("07_classifier") | values("07_classifier"),
        names=lambda wildcards: [run.name for run in TRAINED["classifier"][wildcards.draw]],
    threads: THREADS
    resources:
        gpu=1,
    script:
        "scripts/train_classifiers.py"


rule classifier:
    input:
        lambda wildcards: "{0}/classifier/{1.scenario}-seed{1.seed}.trained".format(RUN, RUNS[wildcards.run_name]),
        notebook="notebooks/07_classifier.ipynb",
    output:
        f"{EXECUTED}/07_classifier/{{run_name}}.ipynb",
    params:
        values=lambda wildcards: values(
            "07_classifier",
            scenario=RUNS[wildcards.run_name].scenario,
            arm=RUNS[wildcards.run_name].arm,
            n_aug=RUNS[wildcards.run_name].n_aug,
            training_seed=RUNS[wildcards.run_name].seed,
        ),
    threads: THREADS
    script:
        "scripts/run_notebook.py"


rule results:
    input:
        [f"{RUN}/classifier/{draw}.trained" for draw in TRAINED["classifier"]],
        notebook="notebooks/08_results.ipynb",
    output:
        f"{EXECUTED}/08_results.ipynb",
    params:
        values=values("08_results", **({"data_name": Path(DATA).resolve().name} if DATA else {})),
    threads: THREADS
    script:
        "scripts/run_notebook.py"


rule detectors:
    input:
        rules.data_prep.output,
        lambda wildcards: [
            f"{EXECUTED}/{pool_notebook(origin, run)}.ipynb"
            for run in TRAINED["segmenter"][wildcards.draw]
            for origin in MARKED[run]
        ],
    output:
        touch(f"{RUN}/segmenter/{{draw}}.trained"),
    params:
        values=read_defaults("09_pixel_level") | values("09_pixel_level"),
        names=lambda wildcards: [run.name for run in TRAINED["segmenter"][wildcards.draw]],
    threads: THREADS
    resources:
        gpu=1,
    script:
        "scripts/train_detectors.py"


rule pixel_level:
    input:
        [f"{RUN}/segmenter/{draw}.trained" for draw in TRAINED["segmenter"]],
        notebook="notebooks/09_pixel_level.ipynb",
    output:
        f"{EXECUTED}/09_pixel_level.ipynb",
    params:
        values=values("09_pixel_level"),
    threads: THREADS
    script:
        "scripts/run_notebook.py"


HELD = []  # the run's lock: a local name of the block below would be dropped at its end, releasing the lock


onstart:
    try:
        HELD.append(claim_run(RUN))
    except RuntimeError as error:
        sys.exit(f"\n{error}\n")


onsuccess:
    if Path(f"{RUN}/book/built").is_file():
        print(f"\nThe book is ready: open {RUN}/book/_build/html/index.html in a browser.\n")


onerror:
    print(f"\nThe run stopped. What is finished is kept in {RUN}: mend what is told here and run again.\n")
    for note in sorted(Path(RUN, ERRORS).glob("*.txt")):
        print(note.read_text(encoding="utf-8"))
