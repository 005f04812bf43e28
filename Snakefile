# The batch engine: one rule per notebook; results appear because targets are missing.
#
#   snakemake --cores 2 --config profile=workshop data=path/to/data threads=1 shards=1 processes=1
#
# An executed notebook proves that its stage is done: it exists only if every cell has run. One job per scenario and
# seed trains classifiers and detectors, whose results notebooks 07 to 09 read. A killed run can be resumed, because
# pools and trainings resume, too.
import os
import re
import sys
from pathlib import Path

from defaug_utils.book.batch import ERRORS, advise, check_options, check_run, claim_run, list_gpus
from defaug_utils.book.categories import adapt_parameters, find_categories, find_category
from defaug_utils.book.plan import check_processes, list_pools, plan_book, pool_notebook
from defaug_utils.book.profiles import read_defaults, read_profile
from defaug_utils.core.origins import ORIGINS, list_notebooks

# The C library (glibc) returns large arrays to the system, whose pages are zeroed again for the next step: up to
# a third of a training's time. Jobs keep arrays below 32 MiB, and 256 MiB of free memory.
os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}

# The process that starts jobs on this machine: a cluster has no `--cores`, and allocates its own GPUs.
IS_HERE = workflow.is_main_process and workflow.resource_settings.cores is not None
GPUS = list_gpus() if IS_HERE else []
try:
    check_options(config, len(GPUS))
except ValueError as error:
    sys.exit(f"\n{error}\n")
PROFILE = config.get("profile") or "workshop"
DATA = str(config.get("data") or "")
SEVERAL = str(config.get("several") or "")  # the folder of categories that `data` is one of, see `rule category`
THREADS, SHARDS, PROCESSES = (int(config.get(name) or 1) for name in ("threads", "shards", "processes"))
RUN = config.get("run") or f"runs/{PROFILE}" + (f"-{Path(DATA).resolve().name}" if DATA else "")
EXECUTED = f"{RUN}/notebooks"
try:  # reported before anything runs, without Snakemake's own output
    PARAMETERS = read_profile(f"profiles/{PROFILE}.yaml")
    check_processes(PARAMETERS, PROCESSES)
    if SEVERAL:
        PARAMETERS = adapt_parameters(PARAMETERS, find_category(SEVERAL, DATA))
    CATEGORIES = {category.name: category for category in (find_categories(DATA) if DATA else [])}
    BOOK = plan_book(PARAMETERS)  # an arm waits until all its origins have a notebook that makes their pools
    if DATA and not Path(f"{EXECUTED}/01_data_prep.ipynb").is_file():
        from defaug_utils.data.layouts import find_layout

        find_layout(DATA)
    if workflow.is_main_process:  # every job reads this file again, on a disk that the run fills
        check_run(RUN)
except (ValueError, OSError, RuntimeError) as error:
    sys.exit(f"\n{error}\n")
if IS_HERE:
    for sentence in advise(workflow.cores):
        print(f"note: {sentence}", file=sys.stderr)

# Each GPU runs one job that needs one; without GPUs, these jobs share the cores.
if GPUS and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", len(GPUS))

CHAPTERS = {name: f"{EXECUTED}/{executed}.ipynb" for name, executed in BOOK.chapters.items()}
RUNS = {run.name: run for run in BOOK.mixed}
JOBS = [job for job in BOOK.list_jobs("pixel_level") if job.rule != "detectors"]


def values(notebook, **further):
    """The profile's parameters of a notebook, those of this run on top."""
    return PARAMETERS[notebook] | {"run_dir": RUN} | further


def pool_values(pool):
    """Likewise, with what a pool that learns may know."""
    return values(pool.split("/")[0], **BOOK.pool_values(pool))


wildcard_constraints:
    notebook="|".join(list_notebooks()),
    name=r"(/[\w-]+)?",
    shard=r"\d+",
    total=r"\d+",
    category="|".join(map(re.escape, CATEGORIES)) or "none",


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


rule diffusion:
    input:
        notebook="notebooks/00_diffusion.ipynb",
    output:
        f"{EXECUTED}/00_diffusion.ipynb",
    params:
        values=values("00_diffusion"),
    threads: THREADS
    script:
        "scripts/run_notebook.py"


rule data_prep:
    input:
        notebook="notebooks/01_data_prep.ipynb",
    output:
        f"{EXECUTED}/01_data_prep.ipynb",
    params:
        values=values("01_data_prep", **({"data_root": DATA} if DATA else {})),
    priority: 1  # most jobs wait for it
    threads: THREADS
    script:
        "scripts/run_notebook.py"


# With shards or processes, what takes long in a pool's notebook is made by jobs of their own, and found by it.
PART = f"{RUN}/parts/{{notebook}}{{name}}"


def list_trained(wildcards):
    """The training that a pool learns by, see `rule training`."""
    return [PART.format(**wildcards) + ".trained"] if wildcards.name and max(SHARDS, PROCESSES) > 1 else []


def list_shards(wildcards):
    """The shards that a pool is made in, see `rule shard`."""
    count = SHARDS if SHARDS > 1 and "shard" in read_defaults(wildcards.notebook) else 0
    return [f"{PART.format(**wildcards)}.{shard}-of-{count}.ipynb" for shard in range(count)]


def wants_gpu(wildcards):
    return int(any(row.wants_gpu for row in ORIGINS.values() if row.notebook == wildcards.notebook))


rule training:
    input:
        rules.data_prep.output,
        notebook="notebooks/{notebook}.ipynb",
    output:
        touch(f"{PART}.trained"),
    params:
        values=lambda wildcards: pool_values(wildcards.notebook + wildcards.name),
        processes=PROCESSES,
    priority: 1  # shards wait for it
    threads: THREADS * PROCESSES
    resources:
        gpu=PROCESSES,
    script:
        "scripts/launch_training.py"


rule shard:
    input:
        rules.data_prep.output,
        list_trained,
        notebook="notebooks/{notebook}.ipynb",
    output:
        f"{PART}.{{shard}}-of-{{total}}.ipynb",
    params:
        values=lambda wildcards: pool_values(wildcards.notebook + wildcards.name)
        | dict(shard=int(wildcards.shard), shard_count=int(wildcards.total)),
    threads: THREADS
    resources:
        gpu=wants_gpu,
    script:
        "scripts/run_shard.py"


rule pool:
    input:
        rules.data_prep.output,
        list_trained,
        list_shards,
        notebook="notebooks/{notebook}.ipynb",
    output:
        f"{EXECUTED}/{{notebook}}{{name}}.ipynb",
    params:
        values=lambda wildcards: pool_values(wildcards.notebook + wildcards.name),
    threads: THREADS
    resources:
        gpu=wants_gpu,
    script:
        "scripts/run_notebook.py"


rule in_and_out:
    input:
        [f"{EXECUTED}/{pool}.ipynb" for pool in list_pools(BOOK.mixed)],
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
        names=lambda wildcards: [run.name for run in BOOK.trained["classifier"][wildcards.draw]],
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
        [f"{RUN}/classifier/{draw}.trained" for draw in BOOK.trained["classifier"]],
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
            for run in BOOK.trained["segmenter"][wildcards.draw]
            for origin in BOOK.marked[run]
        ],
    output:
        touch(f"{RUN}/segmenter/{{draw}}.trained"),
    params:
        values=read_defaults("09_pixel_level") | values("09_pixel_level"),
        names=lambda wildcards: [run.name for run in BOOK.trained["segmenter"][wildcards.draw]],
    threads: THREADS
    resources:
        gpu=1,
    script:
        "scripts/train_detectors.py"


rule pixel_level:
    input:
        [f"{RUN}/segmenter/{draw}.trained" for draw in BOOK.trained["segmenter"]],
        notebook="notebooks/09_pixel_level.ipynb",
    output:
        f"{EXECUTED}/09_pixel_level.ipynb",
    params:
        values=values("09_pixel_level"),
    threads: THREADS
    script:
        "scripts/run_notebook.py"


# A folder of several categories: for each of them a job that runs all of its jobs, in a folder of its own.
rule category:
    input:
        sorted({f"notebooks/{job.name.partition('/')[0]}.ipynb" for job in JOBS}),
    output:
        touch(f"{RUN}/{{category}}/made"),
    params:
        run=RUN,
        config=lambda wildcards: dict(
            profile=PROFILE,
            several=DATA,
            data=f"{DATA}/{wildcards.category}",
            run=f"{RUN}/{wildcards.category}",
            threads=THREADS,
        ),
        parameters=lambda wildcards: adapt_parameters(PARAMETERS, CATEGORIES[wildcards.category]),
    threads: THREADS
    resources:
        gpu=1,
    script:
        "scripts/run_category.py"


rule categories:
    input:
        [f"{RUN}/{name}/made" for name in CATEGORIES],
    output:
        table=f"{RUN}/categories.csv",
        page=f"{RUN}/categories.html",
    params:
        run=RUN,
        names=list(CATEGORIES),
        values=read_defaults("09_pixel_level") | values("09_pixel_level"),
        paste_back=(read_defaults("05_adabldm") | values("05_adabldm"))["paste_back"],
    script:
        "scripts/write_categories.py"


rule pixels:
    input:
        rules.categories.output if CATEGORIES else rules.pixel_level.output,


rule own_defect:
    input:
        rules.data_prep.output,
        [f"{EXECUTED}/{pool}.ipynb" for pool in list_pools(BOOK.own)],
        notebook="notebooks/10_own_defect.ipynb",
    output:
        f"{EXECUTED}/10_own_defect.ipynb",
    params:
        values=values("10_own_defect"),
    threads: THREADS
    resources:
        gpu=1,
    script:
        "scripts/run_notebook.py"


HELD = []  # the run's lock: a local name of the block below would be dropped at its end, releasing the lock


onstart:
    try:
        HELD.append(claim_run(RUN))
    except RuntimeError as error:
        sys.exit(f"\n{error}\n")
    print(f"`make plan PROFILE={PROFILE}` tells how long such a run takes, and how much disk and memory.", flush=True)


onsuccess:
    if Path(f"{RUN}/book/built").is_file():
        print(f"\nThe book is ready: open {RUN}/book/_build/html/index.html in a browser.\n")


onerror:
    print(f"\nThe run stopped. What is finished is kept in {RUN}: mend what is told here and run again.\n")
    for note in sorted(Path(RUN, ERRORS).glob("*.txt")):
        print(note.read_text(encoding="utf-8"))
