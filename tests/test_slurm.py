"""The smoke book by Snakemake's SLURM executor, on one node: a killed job is told and made again."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from defaug_utils.book.plan import plan_book
from defaug_utils.book.profiles import read_profile

PROJECT = Path(__file__).parents[1]
START = PROJECT / "tests" / "slurm" / "start_slurm.sh"
PATIENCE_SECONDS = 3600
ON_SLURM = (
    *("--executor", "slurm", "--jobs", "4", "--quiet", "host", "--slurm-no-account"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5"),
)
POOLS = ("memseg", "ddpm", "diag", "adabldm", "adabldm_plain", "cut_paste", "paste_refined", "regularisation")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "scancel")
MISSING = [name for name in PROGRAMS if not shutil.which(name)]
if not find_spec("snakemake_executor_plugin_slurm"):
    MISSING.append("the Python package snakemake-executor-plugin-slurm")
if os.geteuid():
    MISSING.append("root")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"a SLURM of one node needs {', '.join(MISSING)}"),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a running SLURM."""
    starting = [START, tmp_path / "slurm"]
    with subprocess.Popen(starting, stdout=subprocess.PIPE, text=True) as daemons:
        assert daemons.stdout.readline().startswith("ready"), "SLURM did not start"
        path = f"{tmp_path / 'slurm' / 'bin'}:{os.environ['PATH']}"
        yield os.environ | {"SLURM_CONF": str(tmp_path / "slurm" / "slurm.conf"), "PATH": path}
        daemons.terminate()


@pytest.fixture
def start_engine() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts Snakemake on the smoke book, with its output in `<run>.log`; what is left is ended."""
    engines = []

    def start(
        run: Path, options: Sequence[str], config: Sequence[str], **further: object
    ) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "snakemake",
            *options,
            "--config",
            "profile=smoke",
            f"run={run}",
            *config,
        ]
        with run.with_suffix(".log").open("w") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            engines.append(subprocess.Popen(command, cwd=PROJECT, **streams, **further))
        return engines[-1]

    yield start
    for engine in engines:
        if engine.poll() is None:
            engine.terminate()
            engine.wait()


def read_pools(run: Path) -> dict[str, bytes]:
    """Every file of every pool, without locks."""
    files = [path for name in POOLS for path in sorted((run / name).rglob("*"))]
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in files
        if path.is_file() and not path.name.startswith(".")
    }


def wait_for_job(comment: str, environment: dict[str, str], engine: subprocess.Popen) -> str:
    """The number of the first running job whose comment begins so: its rule and its wildcards."""
    command = ["squeue", "--noheader", "--states=R", "--format=%A|%k"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and engine.poll() is None:
        listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            number, _, told = line.partition("|")
            if told.startswith(comment):
                return number
        time.sleep(0.5)
    raise AssertionError(f"no job {comment} was running")


def test_a_job_killed_on_a_cluster_is_told_and_the_run_goes_on(
    tmp_path: Path, cluster: dict[str, str], start_engine: Callable[..., subprocess.Popen]
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    pools = plan_book(read_profile(PROJECT / "profiles" / "smoke.yaml")).pools
    made = [f"{whole}/notebooks/{name}.ipynb" for name in pools]
    undisturbed = start_engine(whole, ["--cores", "2"], ["--", *made])
    assert undisturbed.wait(PATIENCE_SECONDS) == 0, whole.with_suffix(".log").read_text()

    on_slurm = [*ON_SLURM, "--slurm-logdir", str(tmp_path / "logs")]
    engine = start_engine(run, on_slurm, ["shards=2"], env=cluster)
    killed = wait_for_job("rule_shard", cluster, engine)
    time.sleep(5)  # it is at work
    subprocess.run(["scancel", killed], env=cluster, check=True)
    assert engine.wait(PATIENCE_SECONDS) == 1
    told = run.with_suffix(".log").read_text()
    assert f"SLURM-job '{killed}' failed, SLURM status is: 'CANCELLED'" in told, told
    assert "The run stopped. What is finished is kept" in told
    assert not (run / "book" / "built").exists()
    first = run / "notebooks" / "01_data_prep.ipynb"
    finished_at = first.stat().st_mtime_ns

    engine = start_engine(run, on_slurm, ["shards=2"], env=cluster)
    assert engine.wait(PATIENCE_SECONDS) == 0, run.with_suffix(".log").read_text()
    assert (run / "book" / "built").is_file()
    assert first.stat().st_mtime_ns == finished_at, "a finished notebook was run again"
    assert read_pools(run) == read_pools(whole)
