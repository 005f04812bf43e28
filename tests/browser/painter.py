"""The drawing widget in a page, used as a person does."""

import re

from playwright.sync_api import Locator, Page, expect


class Painter:
    """The widget in the page, with pixels of the image for places."""

    def __init__(self, page: Page, cell: Locator) -> None:
        self.page, self.root = page, cell.locator(".mask-canvas")
        self.canvas = self.root.locator("canvas")
        expect(self.canvas).to_have_attribute("data-view", re.compile("scale"), timeout=60_000)

    def place(self, pixel: tuple[int, int]) -> tuple[float, float]:
        return tuple(
            self.canvas.evaluate(
                """(canvas, [x, y]) => {
                    const view = JSON.parse(canvas.dataset.view), seen = canvas.getBoundingClientRect();
                    const along = (start, at) => start + (at + 0.5) * view.scale;
                    return [along(seen.left + view.x, x), along(seen.top + view.y, y)];
                }""",
                list(pixel),
            )
        )

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
        expect(self.root.locator(".mask-canvas-status")).to_contain_text(f"{pixels} pixels (", timeout=30_000)
