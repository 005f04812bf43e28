"""A chapter as a reader sees it in JupyterLab: MyST is rendered, and what the book folds is folded."""

import shutil

import nbformat
from lab import ROOT, Lab
from playwright.sync_api import Page, expect

CHAPTER = "02_memseg.ipynb"


def test_a_chapter_is_rendered_and_folded(lab: Lab, page: Page):
    shutil.copy2(ROOT / "notebooks" / CHAPTER, lab.folder / CHAPTER)
    cells = nbformat.read(lab.folder / CHAPTER, as_version=4).cells
    texts = [cell for cell in cells if cell.cell_type == "markdown"]
    (exercises,) = [place for place, cell in enumerate(texts) if "{exercise}" in cell.source]
    folded = [cell for cell in cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    page.set_viewport_size({"width": 1400, "height": 12_000})
    page.goto(f"{lab.url}/lab/workspaces/reading/tree/{CHAPTER}?reset&token={lab.token}")
    shown = page.locator(".jp-Notebook .jp-MarkdownCell")
    expect(shown).to_have_count(len(texts), timeout=60_000)
    title = shown.first
    expect(title.get_by_role("heading", name="MemSeg")).to_be_visible()
    expect(title.locator("a", has_text="01_data_prep").first).to_be_visible()
    expect(title).not_to_contain_text("(nb-memseg)=", use_inner_text=True)
    expect(shown.nth(exercises)).to_contain_text("Exercise", use_inner_text=True)
    expect(shown.nth(exercises)).not_to_contain_text("{exercise}", use_inner_text=True)
    expect(page.locator(".jp-Notebook .jp-CodeCell .jp-Placeholder")).to_have_count(len(folded))
