"""The path of chapter 10 in a real JupyterLab: draw a defect, add it, train, and ask whether it helped."""

import re
import time
from pathlib import Path

import nbformat
import pytest
from lab import EXECUTED, ROOT, RUN_MS, SCREENSHOTS, Lab
from painter import Painter
from playwright.sync_api import Locator, Page, expect

from defaug_utils.core.manifest import read_manifest
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.data.datasets import draw_validation, load_dataset
from defaug_utils.data.preparation import prepare_dataset
from defaug_utils.data.surfaces import write_surfaces
from defaug_utils.methods.memseg import MemSeg, MemSegSettings
from defaug_utils.methods.textures import open_textures

CHAPTER = "notebooks/10_own_defect.ipynb"
PARTS = ("_toc.yml", "defaug_utils", "models", "profiles")  # of the project, which the chapter reads
SIZE = (64, 192)
FEW = {"n_aug": 4, "few_shot_count": 2, "epochs": 2, "steps": 4, "input_width": 0, "input_height": 0}
FEW |= {"working_width": SIZE[0], "working_height": SIZE[1]}


@pytest.fixture
def project(lab: Lab) -> Path:
    """A project in the lab's folder, with the results of chapters 1 and 2, and chapter 10 for few images."""
    project = lab.folder / "project"
    run = project / "runs" / "workshop"
    (project / "notebooks").mkdir(parents=True)
    for name in PARTS:
        (project / name).symlink_to(ROOT / name)
    notebook = nbformat.read(ROOT / CHAPTER, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in FEW.items():
        parameters.source, count = re.subn(rf"(?m)^({name}: \w+ = )\S+", rf"\g<1>{value}", parameters.source)
        assert count == 1, name
    nbformat.write(notebook, project / CHAPTER)
    write_surfaces(run / "surfaces", 60, 40, seed=0, size=SIZE)
    dataset = draw_validation(load_dataset(run / "surfaces"), 0.25, seed=0)
    prepare_dataset(dataset, run / "surfaces", run / "data", SIZE)
    method = MemSeg(run / "data", open_textures(""), MemSegSettings(), None)
    make_pool(run / "memseg", method, PoolPlan(8))
    return project


class Chapter:
    """The open notebook, used as a reader does."""

    def __init__(self, page: Page) -> None:
        self.page, self.cells = page, page.locator(".jp-Notebook .jp-CodeCell")

    def find(self, code: str) -> Locator:
        """The code cell that contains some code."""
        return self.cells.filter(has_text=code).first

    def choose(self, entry: str) -> None:
        """An entry of the menu Run."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).click()

    def take_screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"own-{name}.png")


def test_draw_add_train_and_see_whether_it_helped(lab: Lab, page: Page, project: Path, capsys):
    started = time.monotonic()
    page.set_viewport_size({"width": 1400, "height": 9000})  # so that every cell is in the page
    page.goto(f"{lab.url}/lab/workspaces/own/tree/project/{CHAPTER}?reset&token={lab.token}")
    chapter = Chapter(page)
    expect(chapter.cells.first).to_be_visible(timeout=60_000)
    expect(page.locator("#jp-main-statusbar")).to_contain_text("Python 3 (ipykernel) | Idle", timeout=60_000)
    chapter.find("interactive: bool").locator(".cm-content").click()
    page.keyboard.press("Control+End")
    page.keyboard.type("\ninteractive = True")
    chapter.choose("Run All Cells")

    studio = chapter.find("widgets.StudioPanel")
    expect(studio.locator(".studio")).to_be_visible(timeout=RUN_MS)
    painter = Painter(page, studio)
    expect(studio).to_contain_text("Run → Run Selected Cell and All Below")
    opened = time.monotonic() - started
    below = chapter.find("studio.read_kept()")
    expect(below.locator(".jp-InputPrompt").first).not_to_have_text(EXECUTED)
    chapter.take_screenshot("1-studio")

    painter.drag((15, 75), (30, 95), (48, 130))
    expect(studio.get_by_text("not saved yet").first).to_be_visible()
    studio.get_by_role("button", name="Generate", exact=True).click()
    cards = studio.locator(".studio-card")
    expect(cards).to_have_count(2, timeout=RUN_MS)
    for number in range(2):
        cards.nth(number).get_by_role("button", name="Accept", exact=True).click()
    expect(studio.get_by_text("2 accepted, 0 rejected").first).to_be_visible()
    drawn = time.monotonic() - started
    chapter.take_screenshot("2-accepted")

    def run_below() -> None:
        below.locator(".cm-content").click()
        chapter.choose("Run Selected Cell and All Below")

    run_below()
    answer = page.locator(".jp-Notebook").get_by_text(re.compile("Your pictures in training"))
    expect(answer).to_contain_text("Your pictures in training: 2.", timeout=RUN_MS)
    expect(chapter.find("watermark()")).to_contain_text("run_dir", timeout=RUN_MS)  # its table, the last one
    answered = time.monotonic() - started
    chapter.take_screenshot("3-answer")
    own = project / "runs" / "workshop" / "own_defect"
    kept = read_manifest(own / "drawn" / "studio" / "manifest.csv", check_files=True)
    assert list(kept["accepted"]) == [True, True] and set(kept["mask_source"]) == {"drawn"}
    assert len(list(own.glob("trained/*/classifier/*/metrics.json"))) == 2

    cards.nth(0).get_by_role("button", name="Reject", exact=True).click()  # another round, with other images
    expect(studio.get_by_text("1 accepted, 1 rejected").first).to_be_visible()
    run_below()
    expect(answer).to_contain_text("Your pictures in training: 1.", timeout=RUN_MS)
    assert len(list(own.glob("trained/*/classifier/*/metrics.json"))) == 3
    told = f"studio after {opened / 60:.1f} minutes, accepted after {drawn / 60:.1f}, answer after "
    told += f"{answered / 60:.1f}, another round after {(time.monotonic() - started) / 60:.1f}\n"
    (SCREENSHOTS / "own-minutes.txt").write_text(told)
    with capsys.disabled():
        print(told)
