"""The review grid: look through generated images page by page, and accept or reject each with a key.

The browser shows one page and reports key presses; `review_store` stores the decisions, including those of
other windows. Only the current page is drawn, so that a pool of any size needs the memory of one page.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets
from scipy.ndimage import binary_dilation

from defaug_utils.core.images import fit_image, fit_mask, read_image, read_mask
from defaug_utils.core.pools import Method, find_failed, remake
from defaug_utils.protocol.review_store import PoolReview
from defaug_utils.widgets.parts import STATIC, encode_image, read_script

OUTLINE_RGBA = (255, 140, 0, 255)  # the orange of the book's other figures
WORD_OF = {None: "open", True: "accepted", False: "rejected"}
LARGE_SIDE = 1200  # pixels of the long side in the large view
FILTERS = ("origin", "prompt", "check", "decision")


def draw_thumbnail(folder: Path, image: str, mask: str, longest: int, line: int = 1) -> dict[str, Any]:
    """An image whose long side has at most `longest` pixels, and its mask's outline as a separate layer.

    The outline, `line` pixels wide, is just outside the mask, so that it doesn't cover the defect. The result
    has `picture` (JPEG), `outline` (PNG, empty without mask) and `problem` (why a file can't be shown).
    """
    drawn = {"picture": b"", "outline": b"", "problem": ""}
    try:
        image_u8 = read_image(folder / image)
        height, width = image_u8.shape[:2]
        scale = min(1.0, longest / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        drawn["picture"] = encode_image(fit_image(image_u8, size), "JPEG", quality=90)
        if mask:
            fitted = fit_mask(read_mask(folder / mask), size)
            edge = binary_dilation(fitted, np.ones((3, 3)), iterations=line) & ~fitted
            layer_u8 = np.where(edge[..., None], np.uint8(OUTLINE_RGBA), np.uint8(0))
            drawn["outline"] = encode_image(layer_u8, "PNG")
    except ValueError as error:
        drawn["problem"] = str(error)
    return drawn


def describe_images(pool: pd.DataFrame) -> pd.DataFrame:
    """The part of the grid's information that no reviewer changes, by image.

    Columns: `mask`, `origin`, `prompt`, `check` ("passed", "failed" or, if the method has no checks, empty)
    and `reason`, which says why it failed.
    """
    told = pool.set_index("image")[["mask", "origin", "prompt"]]
    is_failed = find_failed(pool).to_numpy()
    reasons = pool["check_reason"].fillna("").astype(str) if "check_reason" in pool else ""
    checks = np.where(is_failed, "failed", "passed") if "check_passed" in pool else ""
    return told.assign(check=checks, reason=np.where(is_failed, reasons, ""))


class ReviewGrid(anywidget.AnyWidget):
    """Look through one or more pools; every decision is stored immediately.

    The list of images is fixed when a filter is set: a judged image stays in place until `refresh`, so that
    nothing moves during a review.
    """

    _esm = read_script("review_grid.js")
    _css = STATIC / "review_grid.css"

    origin = traitlets.Unicode().tag(sync=True)  # filter, like the next three; empty for all
    prompt = traitlets.Unicode().tag(sync=True)
    check = traitlets.Enum(("", "passed", "failed"), "").tag(sync=True)
    decision = traitlets.Enum(("", *WORD_OF.values()), "").tag(sync=True)
    page = traitlets.Int(0).tag(sync=True)  # the current one, from 0
    page_size = traitlets.Int(16, min=1, max=200).tag(sync=True)
    picture_height = traitlets.Int(200, min=40).tag(sync=True)  # of a thumbnail, CSS pixels
    title = traitlets.Unicode().tag(sync=True)
    choices = traitlets.Dict().tag(sync=True)
    can_remake = traitlets.Bool().tag(sync=True)  # whether G can remake images
    counts = traitlets.Dict().tag(sync=True)  # images of all pools by decision
    found = traitlets.Int().tag(sync=True)  # images that match the filter
    pages = traitlets.Int(1).tag(sync=True)
    cards = traitlets.List().tag(sync=True)
    thumbnails = traitlets.Dict().tag(sync=True)
    shown = traitlets.Unicode().tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)  # result of the last action
    is_problem = traitlets.Bool().tag(sync=True)

    def __init__(
        self,
        folders: Path | str | Sequence[Path | str],
        reviewer: str = "",
        methods: Mapping[str, Method] | None = None,
        **traits: Any,
    ) -> None:
        """Open pools.

        Args:
            folders: one pool's folder, or several; raises what `PoolReview` raises.
            reviewer: decisions go to this reviewer's file; empty for the pools' manifests.
            methods: origin → its method, to allow remaking images.
            traits: for example `page_size`, or an initial filter.
        """
        given = [folders] if isinstance(folders, Path | str) else list(folders)
        if not given:
            raise ValueError("there is no pool to review: generate one first, or give its folder")
        self.reviews = [PoolReview(folder, reviewer) for folder in given]
        self.methods = dict(methods or {})
        self._order: list[PoolReview] = []  # of the changes, for undo
        self._unstored: dict[str, str] = {}
        self._described: list[pd.DataFrame] = []  # the manifests that the table tells of
        target = f"review-{reviewer}.csv" if reviewer else "the manifest"
        super().__init__(**{"title": f"Decisions go to {target}", **traits})
        self._filter_anew()
        self.on_msg(self._take_message)
        self.observe(lambda change: self._filter_anew(), [*FILTERS, "page_size"])
        self.observe(lambda change: self._show_page(), "page")

    def decide(self, key: str, accepted: bool | None) -> None:
        """Accept, reject or reopen a card by its key ("0:images/000003.png"); `message` reports failures."""
        review, image = self._find(key)
        if self._try(key, lambda: review.decide(image, accepted)):
            self._say(f"{image} is {WORD_OF[accepted]}: stored in {review.path.name}")

    def write_note(self, key: str, note: str) -> None:
        """Store a note on an image; `message` reports failures."""
        review, image = self._find(key)
        if self._try(key, lambda: review.write_note(image, note)):
            self._say(f"the note on {image} was stored in {review.path.name}")

    def undo(self) -> None:
        """Undo the last decision or note made in this grid."""
        if not self._order:
            self._say("there is nothing to undo")
            return
        review = self._order[-1]
        before = review.undoable
        if undone := self._try("", review.undo):
            self._say(f"{undone} was restored")
        if review.undoable < before:
            self._order.pop()

    def remake(self, key: str) -> None:
        """Remake an image with its origin's method; `message` says whether it is the same."""
        review, image = self._find(key)
        method = self.methods.get(self._table.loc[key, "origin"])
        if method is None:
            self._say(f"{image} can't be remade here: open the grid with methods={{origin: its method}}")
            return
        try:
            made_u8 = remake(review.folder, image, method).image_u8
            is_same = np.array_equal(made_u8, read_image(review.folder / image))
        except (ValueError, OSError) as error:
            self._say(str(error), is_problem=True)
            return
        self._say(f"{image}, remade, {'is identical' if is_same else 'differs'}", not is_same)

    def refresh(self) -> None:
        """Read the pools again and reapply the filter, for example to see what is still open."""
        self._fold()
        if self._try("", lambda: [review.reload() for review in self.reviews]):
            self._unstored.clear()
            self._filter_anew()
            self._say("read again")

    def close(self) -> None:
        """Close the widget; decisions are then written to `manifest.csv`."""
        self._fold()
        super().close()

    def _fold(self) -> None:
        for review in getattr(self, "reviews", []):  # none if opening failed
            review.fold()

    def show(self, request: str = "", **state: str | int) -> None:
        """Set filters and page together, for example `decision="open", page=0`.

        `request` is returned in `shown` together with the page, so that the browser can match them.
        """
        with self.hold_sync():
            with self.hold_trait_notifications():
                for name in {*FILTERS, "page"} & state.keys():
                    self.set_trait(name, state[name])
            self.shown = request

    def _find(self, key: str) -> tuple[PoolReview, str]:
        number, _, image = key.partition(":")
        return self.reviews[int(number)], image

    def _try(self, key: str, act: Callable[[], Any]) -> Any:
        """The result of `act`, or None if it failed; its card then says so until a change is stored."""
        before = sum(review.undoable for review in self.reviews)
        try:
            done = act()
        except (ValueError, OSError) as error:
            self._unstored[key] = str(error)
            self._show_cards()
            self._say(str(error), is_problem=True)
            return None
        self._unstored.pop(key, None)
        if sum(review.undoable for review in self.reviews) > before:
            self._order.append(self._find(key)[0])
        self._show_cards()
        return done

    def _say(self, text: str, is_problem: bool = False) -> None:
        with self.hold_sync():
            self.message, self.is_problem = text, is_problem

    def _take_message(self, widget: object, content: dict, buffers: object) -> None:
        """Do what the browser requests, then confirm: it warns if there is no response."""
        key = content.get("key", "")
        kinds: dict[str, Callable[[], object]] = {
            "decide": lambda: self.decide(key, content["accepted"]),
            "note": lambda: self.write_note(key, content["note"]),
            "show": lambda: self.show(content["number"], **content["state"]),
            "undo": self.undo,
            "refresh": self.refresh,
            "look": lambda: self._send_large(key),
            "remake": lambda: self.remake(key),
        }
        kinds[content["kind"]]()
        self.send({"kind": "answer", "number": content["number"]})

    def _send_large(self, key: str) -> None:
        drawn = self._draw(key, LARGE_SIDE)
        told = {"kind": "large", "key": key, "problem": drawn["problem"]}
        self.send(told, [drawn["picture"], drawn["outline"]])

    def _describe(self, key: str) -> dict[str, str]:
        """A card, without its image."""
        review, image = self._find(key)
        accepted, note = review.decisions[image]
        told = {"key": key, "image": image, "unstored": self._unstored.get(key, "")}
        return told | self._table.loc[key].to_dict() | {"decision": WORD_OF[accepted], "note": note}

    def _filter_anew(self) -> None:
        """List the keys of the images that match the filters; pools are described only if they changed."""
        pools = [review.pool for review in self.reviews]
        if list(map(id, pools)) != list(map(id, self._described)):
            tables = [describe_images(pool).add_prefix(f"{n}:", axis=0) for n, pool in enumerate(pools)]
            self._described, self._table = pools, pd.concat(tables)
            known = [name for name in FILTERS if name != "decision"]
            self._choices = {name: sorted({*self._table[name].unique()} - {""}) for name in known}
        decisions = [WORD_OF[said.accepted] for review in self.reviews for said in review.decisions.values()]
        self._table["decision"] = decisions
        is_wanted = np.ones(len(decisions), bool)
        for name in FILTERS:
            if word := getattr(self, name):
                is_wanted &= (self._table[name] == word).to_numpy()
        self._keys = list(self._table.index[is_wanted])
        with self.hold_sync():
            self.choices = self._choices
            self.can_remake = not self.methods.keys().isdisjoint(self.choices["origin"])
            self.found, self.pages = len(self._keys), max(1, -(-len(self._keys) // self.page_size))
            self._show_page()

    def _show_page(self) -> None:
        page = min(max(self.page, 0), self.pages - 1)
        with self.hold_sync():
            self.page = page
            self._show_cards()
            keys = [card["key"] for card in self.cards]
            self.thumbnails = {key: self._draw(key, 2 * self.picture_height, 2) for key in keys}

    def _draw(self, key: str, longest: int, line: int = 1) -> dict[str, Any]:
        review, image = self._find(key)
        return draw_thumbnail(review.folder, image, self._table.loc[key, "mask"], longest, line)

    def _show_cards(self) -> None:
        shown = self._keys[self.page * self.page_size : (self.page + 1) * self.page_size]
        with self.hold_sync():
            self.counts = {word: sum(r.counts[kind] for r in self.reviews) for kind, word in WORD_OF.items()}
            self.cards = [self._describe(key) for key in shown]
