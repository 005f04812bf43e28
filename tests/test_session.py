"""The start and the end of a notebook."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from defaug_utils import __version__
from defaug_utils.book import session
from defaug_utils.book.session import (
    WATERMARK_TYPE,
    Watermark,
    find_project_root,
    pause,
    progress,
    start_notebook,
    watermark,
)
from defaug_utils.core.pools import PoolUnfinished
from defaug_utils.training.loop import StepDone
from defaug_utils.training.memory import pick_device

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the project's root; the working directory is put back afterwards."""
    (tmp_path / "defaug_utils").mkdir()
    (tmp_path / "notebooks" / "drafts").mkdir(parents=True)
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


@pytest.mark.parametrize("start", [".", "notebooks", "notebooks/drafts"])
def test_the_root_is_found_from_anywhere_inside(project: Path, start: str):
    assert find_project_root(project / start) == project


def test_outside_the_project_the_error_says_so(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="open the notebook from inside the repository"):
        find_project_root(tmp_path)


def test_a_notebook_starts_at_the_root_with_its_run_folder(project: Path):
    run = start_notebook("runs/some run", seed=0)
    assert Path.cwd() == project
    assert run == Path("runs/some run")
    assert (project / "runs" / "some run").is_dir()
    (run / "kept").touch()
    start_notebook("runs/some run", seed=0)
    assert (run / "kept").exists()


@pytest.mark.parametrize("seed", [0, 3])
def test_every_generator_starts_from_the_seed(project: Path, seed: int):
    def draw() -> tuple[float, float, float]:
        start_notebook("runs/seeds", seed)
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    first = draw()
    assert draw() == first
    torch.manual_seed(seed)
    assert torch.rand(1).item() == first[2]
    start_notebook("runs/seeds", seed + 1)
    assert random.random() != first[0]


def test_the_device_can_compute():
    assert torch.ones(2, device=pick_device()).sum().item() == 2


@pytest.fixture
def shell(project: Path, monkeypatch: pytest.MonkeyPatch) -> InteractiveShell:
    """IPython in the project's folder, as a kernel has it; `__main__` is put back afterwards."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    shell = InteractiveShell()
    sys.modules["__main__"] = shell.user_module
    shell.run_cell("from defaug_utils.book.session import start_notebook, watermark")
    return shell


def run_cells(shell: InteractiveShell, *cells: str) -> Watermark:
    """What the last of some cells returns; none may fail."""
    return [shell.run_cell(cell).raise_error() or shell.last_execution_result for cell in cells][-1].result


def test_the_watermark_tells_versions_device_commit_and_parameters(shell: InteractiveShell):
    mark = run_cells(shell, "seed: int = 3  # why", "start_notebook('runs/a', seed)", "watermark()")
    table = mark.to_table()
    assert list(table.columns) == ["what", "value"]
    told = dict(table.itertuples(index=False))
    assert told["defaug_utils"] == __version__
    assert told["torch"] == torch.__version__
    assert told["seed"] == "3"
    assert told["device"]
    assert str(Path.home()) not in table.to_string()


def test_the_watermark_has_injected_values_and_no_later_ones(shell: InteractiveShell):
    parameters = "run_dir: str = 'runs/a'\nseed: int = 0\nshares: dict = {'few-shot': [0.6]}"
    injected = "# Parameters\nseed = 7\nshares = {'few-shot': [0.5]}"
    later = "seed = 9\nshares['few-shot'].append(1.0)\nshares = [0.0, 1.0]"
    mark = run_cells(shell, parameters, injected, "start_notebook(run_dir, seed)", later, "watermark()")
    assert mark.parameters == {"run_dir": "runs/a", "seed": 7, "shares": {"few-shot": [0.5]}}


def test_a_notebook_keeps_the_watermarks_values_beside_its_table(shell: InteractiveShell):
    mark = run_cells(shell, "seed: int = 0", "start_notebook('runs/a', seed)", "watermark()")
    bundle = shell.display_formatter.format(mark)[0]
    assert "<td>seed</td>" in bundle["text/html"]
    assert Watermark(**json.loads(json.dumps(bundle[WATERMARK_TYPE]))) == mark


def test_without_a_start_there_is_no_watermark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "_remembered", None)
    with pytest.raises(RuntimeError, match="start_notebook"):
        watermark()


def test_a_bar_counts_what_its_callback_is_told():
    with progress(5) as bar:
        bar.update(2)
        bar.update(3)
    assert (bar.n, bar.total) == (5, 5)


def test_a_bar_that_follows_a_training_tells_the_time_left_by_the_steps_it_saw():
    with progress() as bar:
        bar.follow(StepDone(51, 100, {"loss": 0.5}, is_saved=False))  # 50 steps are an earlier run's
        bar.start_t -= 10  # as if ten seconds had gone by
        bar.follow(StepDone(56, 100, {"loss": 0.25}, is_saved=True))
        state = bar.format_dict
    assert (bar.n, bar.total, bar.initial) == (56, 100, 51)
    told = bar.format_meter(**state | {"rate": None, "elapsed": 10.0})
    assert "56/100 [00:10<01:28" in told, "44 steps at 2 s each"
    assert "loss=0.250" in told


def test_the_watermark_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "_remembered", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_of_watermark() == "not in a git checkout"
    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "HEAD")
    assert commit.startswith(commit_of_watermark())
    (tmp_path / "file").write_text("two")
    assert commit_of_watermark().endswith("-dirty")


def test_the_watermark_does_without_git(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "_remembered", {})
    monkeypatch.setenv("PATH", os.devnull)
    assert commit_of_watermark() == "not in a git checkout"


def commit_of_watermark() -> str:
    return watermark().commit


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    found = subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_a_shard_that_waits_for_others_ends_the_notebook_as_a_success():
    with pytest.raises(SystemExit) as ended, progress(4) as bar:
        bar.update(2)
        raise PoolUnfinished("shard 0 of 2 is made")
    assert ended.value.code == 0  # papermill takes SystemExit(0) for a success


def test_a_pools_folder_is_text_in_what_a_shard_tells(monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr(session, "display", shown.append)
    with pytest.raises(SystemExit), progress(4):
        raise PoolUnfinished("images of <b>runs</b> wait\nimages of `x` wait")
    assert [text.data for text in shown] == [
        "images of &#60;b&#62;runs&#60;/b&#62; wait\nimages of &#96;x&#96; wait"
    ]


def test_a_pause_stops_the_cells_below_and_shows_what_to_do(shell: InteractiveShell, capsys):
    with pytest.raises(session.Pause, match="draw above"):
        pause("draw above")
    ran = shell.run_cell("from defaug_utils.book.session import pause; pause('draw above'); after = 1")
    assert not ran.success, "a notebook goes on after a cell that succeeded"
    assert "after" not in shell.user_ns
    assert capsys.readouterr().out.strip() == "draw above", "no traceback"
