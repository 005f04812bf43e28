"""The batch engine: a failing cell is told, a killed run goes on, and the book comes out whole."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from defaug_utils.book import batch
from defaug_utils.book.batch import (
    ERRORS,
    NotebookError,
    StepTeller,
    advise,
    check_options,
    claim_run,
    execute_notebook,
    hold_gpu,
    list_gpus,
    measure_memory,
    stage_book,
    tell_job,
)
from defaug_utils.training.loop import StepDone

PROJECT = Path(__file__).parent.parent


@pytest.fixture
def notebook(tmp_path):
    """A notebook with a parameters cell that divides 1 by a parameter."""
    cells = [
        nbformat.v4.new_code_cell("divisor: int = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(1 / divisor)"),
    ]
    path = tmp_path / "divide.ipynb"
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": python}), path)
    return path


def test_parameters_reach_the_notebook(notebook, tmp_path):
    environment = dict(os.environ)
    execute_notebook(notebook, tmp_path / "out" / "divide.ipynb", {"divisor": 4})
    executed = nbformat.read(tmp_path / "out" / "divide.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "0.25\n"
    assert not list((tmp_path / "out").glob("*.failed.ipynb"))
    assert dict(os.environ) == environment, "the kernel's number of threads is not this process's"


def test_a_failing_cell_names_notebook_and_error_and_leaves_no_target(notebook, tmp_path):
    target = tmp_path / "out" / "divide.ipynb"
    with pytest.raises(
        NotebookError, match=r"divide\.ipynb failed in cell \[3\]: ZeroDivisionError"
    ) as caught:
        execute_notebook(notebook, target, {"divisor": 0})
    assert not target.exists()
    kept = target.with_suffix(".failed.ipynb")
    assert kept.is_file()
    assert str(kept) in str(caught.value)


def test_a_notebook_that_ends_itself_as_a_finished_shard_does_is_a_success(notebook, tmp_path):
    ending = nbformat.read(notebook, as_version=4)
    ending.cells.insert(1, nbformat.v4.new_code_cell("raise SystemExit(0)"))
    nbformat.write(ending, notebook)
    execute_notebook(notebook, tmp_path / "out.ipynb", {"divisor": 0})
    assert (tmp_path / "out.ipynb").is_file()


def test_staging_refuses_an_unexecuted_chapter(tmp_path):
    with pytest.raises(FileNotFoundError, match="02_memseg"):
        stage_book(PROJECT, {"02_memseg": tmp_path / "02_memseg.ipynb"}, tmp_path / "book")


def test_staging_folds_the_values_that_papermill_put_in(notebook, tmp_path):
    execute_notebook(notebook, tmp_path / "out.ipynb", {"divisor": 4})
    stage_book(PROJECT, {"divide": tmp_path / "out.ipynb"}, tmp_path / "book")
    staged = nbformat.read(tmp_path / "book" / "notebooks" / "divide.ipynb", as_version=4)
    (injected,) = [cell for cell in staged.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "divisor = 4" in injected.source
    assert "hide-input" in injected.metadata.tags
    assert injected.metadata.mystnb["code_prompt_show"] == "Show the values of this run"
    others = [cell for cell in staged.cells if cell is not injected]
    assert not any("hide-input" in cell.metadata.get("tags", []) for cell in others)


def test_what_stops_a_job_is_kept_and_told_without_a_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit, match="classifier/x: other settings"), tell_job(tmp_path, "classifier/x"):
        raise ValueError("other settings")
    kept = tmp_path / ERRORS / "classifier-x.txt"
    assert kept.read_text() == "classifier/x: other settings\n"
    with pytest.raises(SystemExit, match="new thread: memory ran out, close"), tell_job(tmp_path, "pool"):
        raise RuntimeError("can't start new thread")
    with pytest.raises(SystemExit, match="pool: MemoryError: memory ran out"), tell_job(tmp_path, "pool"):
        raise MemoryError
    with pytest.raises(AttributeError), tell_job(tmp_path, "book"):  # a mistake of ours keeps its traceback
        raise AttributeError("no such thing")
    with tell_job(tmp_path, "pool"):
        pass
    assert "pool: done in 0 s" in capsys.readouterr().err
    lock = claim_run(tmp_path)
    assert not kept.parent.exists(), "what stopped an earlier run is told again"
    lock.release()


def test_a_long_training_tells_how_far_it_is_now_and_then(monkeypatch, capsys):
    moments = iter([100.0, 130.0, 160.0, 170.0, 230.0, 290.0])
    monkeypatch.setattr("time.monotonic", lambda: next(moments))
    teller = StepTeller("classifier/x")
    for step in (41, 46, 51, 53, 63, 100):  # the first 40 are an earlier run's
        teller(StepDone(step, 100, {"loss": 1.0}, is_saved=False))
    lines = [line.partition("  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "classifier/x: step 51 of 100, about 5 minutes left",  # 10 steps in 60 s, 49 to go
        "classifier/x: step 63 of 100, about 4 minutes left",  # 22 steps in 130 s, 37 to go
    ]


def test_a_run_is_held_by_one_engine_and_free_again_when_that_is_killed(tmp_path):
    code = "import sys; from defaug_utils.book.batch import claim_run; lock = claim_run(sys.argv[1])"
    holding = [sys.executable, "-c", f"{code}; print('held', flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="another `make` is running"):
            claim_run(tmp_path)
        first.kill()
    claim_run(tmp_path).release()


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"file/run can't be written"):
        claim_run(tmp_path / "file" / "run")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: FullDisk)
    with pytest.raises(RuntimeError, match="is full: 5 MB free"):
        claim_run(tmp_path / "run")


class FullDisk:
    """What `shutil.disk_usage` says of a disk with little room."""

    free = 5 * 2**20


def run_engine(*config: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", *config]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("data=no/such/parts", "no data set at no/such/parts: check the path"),
        ("profile=smoek", "there is no profile profiles/smoek.yaml: profiles has long, "),
        ("dat=parts", "  - unknown option 'dat' (did you mean 'data'?)"),
        ("processes=3", "  - 11_diag_tuned's training_batch 4 can't be shared equally"),
    ],
)
def test_a_mistyped_option_is_told_before_anything_runs(tmp_path, given: str, told: str):
    finished = run_engine(given, f"run={tmp_path / 'run'}")
    assert finished.returncode
    lines = [line for line in (finished.stdout + finished.stderr).splitlines() if line]
    assert lines[-1].startswith(told), lines
    assert not (tmp_path / "run").exists(), "a job was begun"


def test_all_wrong_options_are_listed():
    check_options({"profile": "smoke", "data": 2024, "threads": 2, "run": ""})
    with pytest.raises(ValueError, match=r"unknown option 'thread'.*\n.*threads is '-1', expected a whole"):
        check_options({"thread": 1, "threads": -1})
    with pytest.raises(ValueError, match=r"shards is '0\.5', expected.*\n.*processes is 'all', expected"):
        check_options({"shards": 0.5, "processes": "all"})
    check_options({"shards": 8, "processes": 2}, gpus=2)
    with pytest.raises(ValueError, match="processes is '3', but there are 2 GPUs"):
        check_options({"processes": 3}, gpus=2)


def test_make_refuses_a_variable_that_it_does_not_know():
    told = subprocess.run(
        ["make", "--dry-run", "book", "PROFIL=smoke", "DATA=my parts=1"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode and "unknown: PROFIL; known are PROFILE DATA" in told.stderr


def test_the_engine_starts_without_heavy_libraries():
    """Snakemake reads the Snakefile for every job, and a mistyped option is to be told at once."""
    lines = (PROJECT / "Snakefile").read_text().splitlines()
    imports = [line for line in lines if line.startswith("from defaug_utils")]
    assert len(imports) > 2
    heavy = "{'numpy', 'pandas', 'papermill', 'torch', 'diffusers'}"
    code = "\n".join(["import sys", *imports, f"sys.exit(str({heavy} & sys.modules.keys() or '') or None)"])
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_machine_with_too_little_memory_or_an_unused_gpu_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(batch, "measure_memory", lambda: 3 * 2**30)
    assert advise(3) == []
    (told,) = advise(4)
    assert told.startswith("4 jobs at the same time need about 4 GB of memory, this machine has 3.0 GB")
    assert "CORES=3" in told
    monkeypatch.setattr(batch, "version", lambda name: {"torch": "2.9.1+cpu"}[name])
    assert advise(1) == []
    put_nvidia_smi(tmp_path, monkeypatch, 1)
    (told,) = advise(1)
    assert told.startswith("PyTorch was installed without CUDA")


def test_memory_is_the_containers_if_that_is_less(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "CONTAINER_MEMORY", tmp_path / "memory.max")
    whole = measure_memory()
    for text, expected in (("max\n", whole), ("1048576\n", 2**20), (f"{2 * whole}\n", whole)):
        (tmp_path / "memory.max").write_text(text)
        assert measure_memory() == expected


@pytest.mark.slow
def test_the_last_words_of_a_failed_run_are_the_errors_own(tmp_path):
    (tmp_path / "parts" / "negative").mkdir(parents=True)
    (tmp_path / "parts" / "positive").mkdir()
    (tmp_path / "parts" / "negative" / "1.png").write_bytes(b"no image")
    finished = run_engine("profile=smoke", f"data={tmp_path / 'parts'}", f"run={tmp_path / 'run'}")
    assert finished.returncode
    last = finished.stdout[finished.stdout.index("The run stopped.") :]
    assert "1.png" in last and "01_data_prep.failed.ipynb" in last
    for word in ("RuleException", "CalledProcessError", "WorkflowError", "Traceback"):
        assert word not in finished.stdout + finished.stderr


@pytest.mark.slow
def test_a_killed_run_goes_on_and_the_book_comes_out_whole(small_book):
    assert (small_book / "index.html").is_file()
    assert (small_book.parents[1] / "built").is_file()
    pages = {page.stem for page in (small_book / "notebooks").glob("*.html")}
    assert pages == {path.stem for path in (PROJECT / "notebooks").glob("*.ipynb")}
    for page in small_book.rglob("*.html"):
        assert "Traceback (most recent call last)" not in page.read_text(encoding="utf-8"), page


@pytest.mark.slow
def test_a_second_engine_in_the_same_run_is_refused(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "profile=smoke", f"run={run}"]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, start_new_session=True) as first:
        assert b"01_data_prep" in first.stderr.readline() + first.stderr.readline(), "no job began"
        second = run_engine("profile=smoke", f"run={run}")
        os.killpg(first.pid, signal.SIGKILL)
    assert second.returncode
    assert f"another `make` is running in {run}" in second.stderr
    assert "01_data_prep" not in second.stderr, "a job was begun"


@pytest.mark.slow
def test_the_pixel_level_alone_needs_pools_and_no_classifier(tmp_path):
    (tmp_path / "grid" / "train" / "good").mkdir(parents=True)
    options = ["--dry-run", "--quiet", "host", "--cores", "1"]
    command = [sys.executable, "-m", "snakemake", "pixel_level", *options]
    command += ["--config", "profile=mvtec", f"data={tmp_path / 'grid'}", f"run={tmp_path}"]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    rules = set(re.findall(r"(?m)^(?:local)?rule (\w+):$", finished.stdout + finished.stderr))
    assert rules >= {"data_prep", "pool", "detectors", "pixel_level"}
    assert not rules & {"in_and_out", "classifiers", "classifier", "results", "book"}


def put_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A stand-in that lists so many GPUs, one of them cut into parts."""
    lines = [f"GPU {number}: NVIDIA A100 (UUID: GPU-{number})" for number in range(count)]
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\ncat <<END\n" + "\n".join([*lines, "  MIG 1g.5gb Device 0:"]) + "\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is restored to what it was before
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_gpus_are_those_made_visible_else_all(tmp_path, monkeypatch):
    put_nvidia_smi(tmp_path, monkeypatch, 3)
    assert list_gpus() == ["0", "1", "2"]
    for visible, found in {"2,GPU-8f": ["2", "GPU-8f"], "": [], "-1": [], "1": ["1"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert list_gpus() == found
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert list_gpus() == []


def test_jobs_at_the_same_time_hold_different_gpus(tmp_path, monkeypatch):
    put_nvidia_smi(tmp_path, monkeypatch, 2)
    with hold_gpu(tmp_path, 0):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ, "a job that wants none sees what there is"
    for _ in range(2):  # released at its end
        with hold_gpu(tmp_path, 1):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # as the next process sees it
            with hold_gpu(tmp_path, 1):
                assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_a_training_in_several_processes_holds_as_many_gpus(tmp_path, monkeypatch):
    put_nvidia_smi(tmp_path, monkeypatch, 4)
    with hold_gpu(tmp_path, 1):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        with hold_gpu(tmp_path, 2):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
            with hold_gpu(tmp_path, 1):
                assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
            # on a cluster, another job's GPUs may have the same names
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
            with hold_gpu(tmp_path, 2):
                assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,3"


@pytest.mark.slow
def test_shards_and_processes_are_jobs_before_the_pools(tmp_path):
    options = ["--dry-run", "--quiet", "host", "--cores", "8", "--config", "profile=smoke", f"run={tmp_path}"]
    command = [sys.executable, "-m", "snakemake", *options]

    def count_jobs(*given: str) -> dict[str, int]:
        finished = subprocess.run([*command, *given], cwd=PROJECT, capture_output=True, text=True, check=True)
        rules = re.findall(r"(?m)^rule (\w+):$", finished.stdout + finished.stderr)
        return {rule: rules.count(rule) for rule in ("pool", "shard", "training")}

    assert count_jobs() == {"pool": 6, "shard": 0, "training": 0}
    assert count_jobs("shards=3") == {"pool": 6, "shard": 15, "training": 4}  # MemSeg's pool is made at once
    assert count_jobs("processes=2") == {"pool": 6, "shard": 0, "training": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "options", "limit"), [(0, [], "none"), (2, [], "2"), (2, ["--resources", "gpu=5"], "5")]
)
def test_the_gpus_there_are_limit_the_jobs_that_want_one(tmp_path, monkeypatch, count, options, limit):
    put_nvidia_smi(tmp_path, monkeypatch, count)
    before, comment, _ = (PROJECT / "Snakefile").read_text().partition("\nCHAPTERS = ")
    assert comment, "the Snakefile begins with its settings"
    tell = (
        "given = workflow.global_resources\nprint('limit:', given['gpu'].value if 'gpu' in given else 'none')"
    )
    (tmp_path / "Snakefile").write_text(f"{before}\n{tell}\n\nrule all:\n    resources:\n        gpu=1,\n")
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "8", *options]
    command += ["--snakefile", str(tmp_path / "Snakefile")]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert f"limit: {limit}\n" in finished.stdout
