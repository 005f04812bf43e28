"""The DIAG studio in a real JupyterLab with the embedded model: draw, generate, stop, decide, come back."""

import re
import time

import numpy as np
import pytest
from lab import ROOT, SCREENSHOTS, Lab, OpenNotebook
from painter import Painter
from playwright.sync_api import Locator, Page, expect

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import make_manifest, read_manifest, write_manifest
from defaug_utils.data.surfaces import draw_surface

NAMES = [f"train/{10000 + number}.png" for number in range(3)]
CELL = f"""
from defaug_utils.diffusion.inpainting import load_inpainter
from defaug_utils.diffusion.inpainting import InpaintSettings
from defaug_utils.core.prompts import Prompt
from defaug_utils.widgets.studio import Studio
from defaug_utils.widgets.studio_panel import StudioPanel
inpainter = load_inpainter({str(ROOT / "models/workshop/inpainting")!r})
studio = Studio("RUN/diag_studio", "RUN/data", inpainter, InpaintSettings((128, 384), 20, 2.0))
panel = StudioPanel(studio, "RUN/diag_masks", Prompt("background scratched", "smooth, plain"))
panel
"""


class StudioPage:
    """The studio in the page, used as a person does."""

    def __init__(self, page: Page, cell: Locator) -> None:
        self.page, self.cell, self.painter = page, cell, Painter(page, cell)

    def press(self, label: str, place: Locator | None = None) -> None:
        (place or self.cell).get_by_role("button", name=label, exact=True).click()

    def fill(self, label: str, text: str) -> None:
        box = self.cell.get_by_label(label, exact=True)
        box.fill(text)
        box.press("Tab")

    def expect_text(self, text: str | re.Pattern, seconds: float = 60) -> None:
        expect(self.cell.get_by_text(text).first).to_be_visible(timeout=1000 * seconds)

    def card(self, number: int) -> Locator:
        """A picture, the newest is 0."""
        return self.cell.locator(".studio-card").nth(number)

    def wait_for_cards(self, count: int) -> None:
        expect(self.cell.locator(".studio-card")).to_have_count(count, timeout=120_000)


@pytest.fixture
def notebook(lab: Lab, page: Page, request: pytest.FixtureRequest) -> OpenNotebook:
    run = "runs/workshop" if "generate" in request.node.name else "runs/stopped"
    rows = [{"image": name, "label": "negative", "split": "train", "origin": "real"} for name in NAMES]
    for number, row in enumerate(rows):
        surface_u8 = draw_surface(10000 + number, size=(128, 384)).image_u8
        grey_u8 = surface_u8.mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2)  # a line camera's
        write_png(lab.folder / run / "data" / row["image"], grey_u8)
    write_manifest(make_manifest(rows), lab.folder / run / "data" / "manifest.csv")
    page.set_viewport_size({"width": 1400, "height": 1500})
    return lab.open_notebook(page, f"{request.node.name}.ipynb", [CELL.replace("RUN", run)])


def test_draw_generate_decide_and_find_it_again(notebook: OpenNotebook, page: Page, lab: Lab):
    cell = notebook.run_cell(0)
    studio = StudioPage(page, cell)
    notebook.take_screenshot("studio-1-open")
    studio.painter.drag((30, 150), (60, 190), (95, 260))
    studio.expect_text("not saved yet")
    notebook.take_screenshot("studio-2-drawn")
    started = time.monotonic()
    studio.press("Generate")
    studio.wait_for_cards(1)
    first_image = time.monotonic() - started
    notebook.take_screenshot("studio-3-first")
    studio.wait_for_cards(2)
    studio.expect_text("2 painted")
    notebook.take_screenshot("studio-4-generated")

    studio.card(0).get_by_placeholder("note (why)").fill("right where I drew it")
    studio.press("Accept", studio.card(0))
    studio.expect_text("1 accepted, 0 rejected")
    studio.press("Reject", studio.card(1))
    studio.expect_text("1 accepted, 1 rejected")
    notebook.take_screenshot("studio-5-decided")
    place = cell.locator(".studio").bounding_box()
    told = " ".join(str(round(place[side])) for side in ("x", "y", "width", "height"))
    (SCREENSHOTS / "studio-place.txt").write_text(told)
    (SCREENSHOTS / "studio-seconds.txt").write_text(f"first image after {first_image:.1f} s\n")
    folder = lab.folder / "runs/workshop/diag_studio"
    kept = read_manifest(folder / "manifest.csv", check_files=True)
    assert dict(zip(kept["seed"], kept["accepted"], strict=True)) == {1: True, 0: False}
    assert kept.loc[kept["accepted"].astype(bool), "reviewer_note"].tolist() == ["right where I drew it"]

    notebook.restart_kernel()
    studio = StudioPage(page, notebook.run_cell_again(0))
    studio.wait_for_cards(2)
    studio.expect_text("1 accepted, 1 rejected")
    notebook.take_screenshot("studio-6-after-restart")
    remade = notebook.ask_kernel(
        "import numpy as np; from defaug_utils.core.images import read_image",
        "[bool((studio.remake(row) == read_image(studio.folder / row['image'])).all())"
        " for row in studio.read_kept().to_dict('records')]",
    )
    assert remade == [True, True]
    studio.press("Again", studio.card(0))
    studio.fill("Prompt", "stain")
    studio.press("Other seeds")
    studio.wait_for_cards(4)
    studio.expect_text("2 painted")
    notebook.take_screenshot("studio-7-another-prompt")
    assert read_image(folder / "images/000000.png").shape == (384, 128, 3)


def test_stop_ends_it_and_the_kernel_answers_meanwhile(notebook: OpenNotebook, page: Page):
    studio = StudioPage(page, notebook.run_cell(0))
    studio.press("Generate")
    studio.expect_text("the mask is empty: draw where the defect goes, then generate")
    notebook.take_screenshot("studio-stop-1-empty")
    studio.painter.drag((40, 100), (90, 120))
    studio.expect_text("not saved yet")
    studio.fill("Images", "20")
    studio.press("Generate")
    studio.wait_for_cards(1)
    assert notebook.ask_kernel("", "panel.is_painting") is True
    studio.press("Stop")
    studio.expect_text(re.compile(r"stopped: \d+ of 20 finished and shown"))
    notebook.take_screenshot("studio-stop-2-stopped")
    finished = notebook.ask_kernel("panel.worker.join(10)", "[len(panel.cards), panel.worker.is_alive()]")
    assert 1 <= finished[0] < 20
    assert finished[1] is False
    studio.fill("Prompt", "scratched " * 60)
    studio.press("Generate")
    studio.expect_text("the model's limit is 32")
    notebook.take_screenshot("studio-stop-3-long-prompt")
