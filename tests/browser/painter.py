"""The drawing widget in a page, used as a person does."""

import json
import re

from playwright.sync_api import Locator, Page, expect


class Painter:
    """The widget in the page, with pixels of the image for places."""

    def __init__(self, page: Page, cell: Locator) -> None:
        self.page, self.root = page, cell.locator(".mask-canvas")
        self.canvas = self.root.locator("canvas")
        expect(self.canvas).to_have_attribute("data-view", re.compile("scale"), timeout=60_000)

    def place(self, pixel: tuple[int, int]) -> tuple[float, float]:
        view, seen = self.view, self.canvas.evaluate("canvas => canvas.getBoundingClientRect()")
        starts = seen["left"] + view["x"], seen["top"] + view["y"]
        return tuple(start + (at + 0.5) * view["scale"] for start, at in zip(starts, pixel, strict=True))

    def drag(self, *pixels: tuple[int, int], button: str = "left") -> None:
        self.page.mouse.move(*self.place(pixels[0]))
        self.page.mouse.down(button=button)
        for pixel in pixels[1:]:
            self.page.mouse.move(*self.place(pixel))
        self.page.mouse.up(button=button)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.canvas.press(key)

    def click(self, label: str) -> None:
        self.root.get_by_role("button", name=label).click()

    def wait_for(self, pixels: int) -> None:
        """Wait until the kernel has said that it holds so many pixels."""
        expect(self.root.locator(".mask-canvas-status")).to_contain_text(f"{pixels} pixels (")

    @property
    def view(self) -> dict:
        """Scale and offset of the image in the canvas, once what was asked for has been painted."""
        painted = """canvas => new Promise((done) => {
            requestAnimationFrame(() => requestAnimationFrame(() => done(canvas.dataset.view)));
        })"""
        return json.loads(self.canvas.evaluate(painted))

    def set_opacity(self, percent: int) -> None:
        self.root.get_by_label("Opacity").fill(str(percent))

    def draw_with_pen(self, *pixels: tuple[int, int], button: int = 0) -> None:
        """A stroke of a pen; button 5 is its other end."""
        places = [self.place(pixel) for pixel in pixels]
        self.canvas.evaluate(
            """(canvas, [places, button]) => {
                const send = (kind, [clientX, clientY]) => canvas.dispatchEvent(new PointerEvent(kind, {
                    pointerId: 11, pointerType: "pen", bubbles: true, button, clientX, clientY,
                }));
                send("pointerdown", places[0]);
                places.slice(1).forEach((place) => send("pointermove", place));
                send("pointerup", places[places.length - 1]);
            }""",
            [places, button],
        )
