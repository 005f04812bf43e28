"""Images reviewed in a real JupyterLab: by keys and clicks, in two tabs, across a restart of the kernel."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import Drawing
from lab import Lab, OpenNotebook
from playwright.sync_api import Locator, Page, expect

from defaug_utils.core.manifest import read_manifest
from defaug_utils.core.pools import GeneratedImage, PoolPlan, make_pool
from defaug_utils.data.surfaces import DEFECT_TYPES, draw_surface

COUNT = 30
PAGE = 16
NAMES = [f"images/{index:06d}.png" for index in range(COUNT)]
CELL = """
from defaug_utils.widgets.review_grid import ReviewGrid
grid = ReviewGrid("{pool}", methods=dict.fromkeys({origins}))
grid
"""


def make_batch(indices: list[int], seeds: list[int]) -> list[GeneratedImage]:
    made = []
    for index in indices:
        drawn = draw_surface(index, DEFECT_TYPES[index % len(DEFECT_TYPES)], size=(128, 384))
        row = {"prompt": ["background cracked", "stain"][index % 2], "check_passed": index % 5 > 0}
        row |= {"check_reason": "" if index % 5 else "no contrast"}
        made.append(GeneratedImage(drawn.image_u8, drawn.mask, row))
    return made


@pytest.fixture
def pool(lab: Lab, request: pytest.FixtureRequest) -> Path:
    folder = lab.folder / request.node.name
    make_pool(folder, Drawing(make_batch), PoolPlan(COUNT))
    return folder


class Reviewer:
    """The grid in the page."""

    def __init__(self, page: Page, cell: Locator) -> None:
        self.page, self.root = page, cell.locator(".review-grid")
        expect(self.root.locator(".review-grid-card").first).to_be_visible(timeout=60_000)
        self.wait_for_pictures()

    def wait_for_pictures(self) -> None:
        self.root.evaluate(
            "root => Promise.all([...root.querySelectorAll('img')].map((img) => img.decode()))"
        )

    def card(self, name: str) -> Locator:
        return self.root.locator(f'.review-grid-card[data-image="{name}"]')

    def press(self, *keys: str) -> None:
        for key in keys:
            self.root.press(key)

    def expect_decision(self, name: str, decision: str) -> None:
        expect(self.card(name)).to_have_attribute("data-decision", decision)

    def expect_selected(self, name: str) -> None:
        expect(self.card(name)).to_have_attribute("aria-selected", "true")

    def expect_names(self, names: list[str]) -> None:
        expect(self.root.locator(".review-grid-card")).to_have_count(len(names))
        for place, name in zip(self.root.locator(".review-grid-card").all(), names, strict=True):
            expect(place).to_have_attribute("data-image", name)


def accepted(pool: Path) -> dict[str, bool]:
    table = read_manifest(pool / "manifest.csv")
    return {
        image: bool(word)
        for image, word in zip(table["image"], table["accepted"], strict=True)
        if not pd.isna(word)
    }


def open_grid(
    lab: Lab, page: Page, pool: Path, name: str, origins: tuple[str, ...] = ()
) -> tuple[OpenNotebook, Reviewer]:
    notebook = lab.open_notebook(page, f"{name}.ipynb", [CELL.format(pool=pool.name, origins=origins)])
    return notebook, Reviewer(page, notebook.run_cell(0))


def test_keys_decide_filters_find_and_a_restart_keeps_it(lab: Lab, page: Page, pool: Path):
    notebook, reviewer = open_grid(lab, page, pool, "review")
    reviewer.expect_names(NAMES[:PAGE])
    expect(reviewer.root.get_by_text("remake")).to_have_count(0)  # no method was given
    notebook.take_screenshot("review-1-opened")
    reviewer.press("a", "r")
    reviewer.expect_decision(NAMES[0], "accepted")
    reviewer.expect_decision(NAMES[1], "rejected")
    reviewer.expect_selected(NAMES[2])
    assert accepted(pool) == {NAMES[0]: True, NAMES[1]: False}
    reviewer.press("n")
    page.keyboard.type("a crack, not a rim")  # its letters are text, no commands
    page.keyboard.press("Enter")
    expect(reviewer.card(NAMES[2]).locator(".review-grid-note")).to_have_text("a crack, not a rim")
    reviewer.press("ArrowRight", "r", "z")
    reviewer.expect_decision(NAMES[3], "open")
    reviewer.card(NAMES[6]).get_by_role("button", name="Accept").click()
    reviewer.expect_decision(NAMES[6], "accepted")
    assert accepted(pool) == {NAMES[0]: True, NAMES[1]: False, NAMES[6]: True}
    notebook.take_screenshot("review-2-decided")
    reviewer.press("Space")
    expect(reviewer.root.locator(".review-grid-closer-frame img").first).to_be_visible()
    reviewer.wait_for_pictures()
    notebook.take_screenshot("review-3-closer")
    reviewer.press("Space", "m")
    notebook.take_screenshot("review-4-no-outlines")
    reviewer.press("m", "g")
    expect(reviewer.root.locator(".review-grid-status")).to_contain_text("can't be remade here")
    reviewer.press("]")
    reviewer.expect_names(NAMES[PAGE:])
    reviewer.press("a")
    reviewer.expect_decision(NAMES[PAGE], "accepted")

    reviewer.root.get_by_label("Decision", exact=True).select_option("accepted")
    reviewer.expect_names([NAMES[0], NAMES[6], NAMES[PAGE]])
    notebook.take_screenshot("review-5-filtered")
    reviewer.root.get_by_label("Decision", exact=True).select_option("")
    reviewer.root.get_by_label("Check", exact=True).select_option("failed")
    reviewer.expect_names(NAMES[::5])
    reviewer.root.get_by_label("Prompt", exact=True).select_option("stain")
    reviewer.expect_names(NAMES[5::10])

    notebook.restart_kernel()
    reviewer = Reviewer(page, notebook.run_cell_again(0))
    reviewer.expect_names(NAMES[:PAGE])
    for name, decision in zip(NAMES[:3], ("accepted", "rejected", "open"), strict=True):
        reviewer.expect_decision(name, decision)
    expect(reviewer.root.locator(".review-grid-counts")).to_have_text("3 accepted1 rejected26 open")
    assert read_manifest(pool / "manifest.csv")["reviewer_note"][2] == "a crack, not a rim"


def test_two_tabs_with_kernels_of_their_own_lose_nothing(lab: Lab, page: Page, pool: Path):
    _, first = open_grid(lab, page, pool, "tab-one")
    other = page.context.new_page()
    _, second = open_grid(lab, other, pool, "tab-two", ("diag",))
    expect(second.root.get_by_text("remake")).to_be_visible()
    first.press("a")
    first.expect_decision(NAMES[0], "accepted")
    second.press("End", "ArrowLeft", "r")  # a decision on the last card would turn the page
    second.expect_decision(NAMES[PAGE - 2], "rejected")
    second.press("Home")
    second.expect_decision(NAMES[0], "accepted")  # the first tab's, seen when the second wrote
    first.press("a")
    first.expect_decision(NAMES[1], "accepted")
    assert accepted(pool) == {NAMES[0]: True, NAMES[1]: True, NAMES[PAGE - 2]: False}
    first.expect_decision(NAMES[PAGE - 2], "rejected")
    other.close()


def test_what_goes_wrong_is_told_and_a_dead_kernel_too(lab: Lab, page: Page, pool: Path):
    notebook, reviewer = open_grid(lab, page, pool, "wrong")
    (pool / NAMES[1]).unlink()
    reviewer.press("a", "a")
    expect(reviewer.root.locator(".is-problem")).to_contain_text("is missing")
    expect(reviewer.card(NAMES[1]).locator(".review-grid-note")).to_have_text("not stored")
    assert accepted(pool) == {NAMES[0]: True}
    notebook.take_screenshot("review-6-vanished")
    kernel = notebook.freeze_kernel()
    reviewer.press("r")
    expect(reviewer.root.locator(".is-problem")).to_contain_text("kernel does not answer")
    expect(reviewer.root.locator(".is-problem")).to_contain_text(f"Not stored: {NAMES[2]}")
    assert accepted(pool) == {NAMES[0]: True}
    notebook.take_screenshot("review-7-dead")
    notebook.kill_kernel(kernel)


def test_it_is_usable_in_a_narrow_window_and_by_clicks_alone(lab: Lab, page: Page, pool: Path):
    page.set_viewport_size({"width": 620, "height": 900})
    notebook, reviewer = open_grid(lab, page, pool, "narrow")
    box = reviewer.root.bounding_box()
    rights = reviewer.root.locator("*:visible").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().right)"
    )
    assert max(rights) <= box["x"] + box["width"] + 1
    reviewer.card(NAMES[0]).get_by_role("button", name="Reject").click()
    reviewer.expect_decision(NAMES[0], "rejected")
    reviewer.root.get_by_role("button", name="Undo").click()
    reviewer.expect_decision(NAMES[0], "open")
    assert accepted(pool) == {}
    notebook.take_screenshot("review-8-narrow")
    assert (
        np.ptp([place.bounding_box()["y"] for place in reviewer.root.locator(".review-grid-card").all()]) > 0
    )
