"""Widgets for an expert: the DIAG studio (draw, generate, decide), and a form for reviewing prompts."""

from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread

import ipywidgets
import numpy as np
from ipywidgets import FloatSlider
from skimage.segmentation import find_boundaries

from defaug_utils.core.guards import collect_problems
from defaug_utils.core.prompts import Prompt
from defaug_utils.protocol import scenarios
from defaug_utils.widgets.mask_drawing import MaskDrawer
from defaug_utils.widgets.parts import BAD, GOOD, Message, close_whole, colour_text, encode_image, make_button
from defaug_utils.widgets.studio import Studio, StudioImage, StudioRequest

MAX_CARDS = 24  # images shown at once; judged images stay in the pool
CARD_SIZE = (330, 300)  # maximum size of each of a card's two images, CSS pixels
FEW_CELLS = 10  # of the latent grid; a smaller mask leaves the model no room to paint
OUTLINE = (255, 0, 200)
LOOKS = {  # of a card by its decision: text, its colour, border
    None: ("not decided: not stored yet", "inherit", "1px solid #bbb"),
    True: ("accepted", GOOD, f"3px solid {GOOD}"),
    False: ("rejected", BAD, f"3px solid {BAD}"),
}
WRAPPED = {"flex_flow": "row wrap"}  # a layout


class Stopped(Exception):
    """The stop button was pressed."""


class StudioCard(ipywidgets.VBox):
    """One image before and after, with buttons; `image` is its current state, stored or not."""

    def __init__(self, image: StudioImage, panel: "StudioPanel") -> None:
        """Show an image; the buttons call the panel's `decide` and `reuse`."""
        before = image.before_u8.copy()
        before[find_boundaries(image.request.mask, mode="outer")] = OUTLINE
        self.caption = ipywidgets.HTML()
        self.note = ipywidgets.Text(placeholder="note (why)", layout={"width": "auto"})
        self.accept_button = make_button("Accept", "Keep it for training", lambda: panel.decide(self, True))
        self.reject_button = make_button("Reject", "Keep it as rejected", lambda: panel.decide(self, False))
        hint = "Restore image, mask, prompt and settings"
        self.reuse_button = make_button("Again", hint, lambda: panel.reuse(self.image))
        buttons = [self.accept_button, self.reject_button, self.reuse_button]
        pictures = [show_pixels(before), show_pixels(image.after_u8)]
        pair = ipywidgets.HBox(pictures, layout=WRAPPED)  # wide images are stacked
        layout = {"width": "max-content", "max_width": "360px", "padding": "6px", "margin": "4px"}
        super().__init__([pair, self.caption, self.note, ipywidgets.HBox(buttons)], layout=layout)
        self.add_class("studio-card")
        self.show_image(image)

    def show_image(self, image: StudioImage) -> None:
        """Show the image's current state."""
        self.image = image
        accepted = image.row.get("accepted")
        words, colour, self.layout.border = LOOKS.get(accepted, LOOKS[None])
        told = f"seed {image.request.seed}"
        if not image.row["check_passed"]:
            told += f" · check: {image.row['check_reason']}"
        if image.row["latent_cells"] < FEW_CELLS:
            told += f" · only {image.row['latent_cells']} cells: draw larger"
        lines = [colour_text(image.request.prompt), colour_text(told), colour_text(words, colour)]
        self.caption.value = "".join(lines)
        self.note.value = str(image.row.get("reviewer_note") or "")


class StudioPanel(ipywidgets.VBox):
    """Choose an image, draw a mask, write a prompt, generate, and decide on every result.

    Painting runs in a separate thread, so that the kernel stays responsive; the stop button ends it at the
    next denoising step. Finished images stay.
    """

    def __init__(
        self, studio: Studio, masks_folder: Path | str, prompt: Prompt | None = None, seed: int = 0
    ) -> None:
        """Show the form, with an initial prompt and seed, and the most recently stored images.

        Drawn masks are stored in `masks_folder`, see `save_drawn`. Raises what `MaskDrawer` raises.
        """
        self.studio, self.worker, self._stop = studio, None, Event()
        self.drawer = MaskDrawer(studio.data_folder, masks_folder)
        self.drawer.canvas.canvas_height = 420
        self._make_form(prompt or Prompt("scratched"), seed)
        self.cards_box = ipywidgets.HBox(layout=WRAPPED)
        self.summary = Message()
        top = ipywidgets.HBox([self.drawer, self.form], layout=WRAPPED)
        self.drawer.layout = ipywidgets.Layout(flex="3 1 480px", min_width="300px")
        self.form.layout = ipywidgets.Layout(flex="1 1 300px", min_width="280px", padding="0 0 0 8px")
        super().__init__([top, self.summary, self.cards_box])
        self.add_class("studio")
        self._show_kept()

    def _make_form(self, prompt: Prompt, seed: int) -> None:
        asked = self.studio.settings
        self.prompt = ipywidgets.Textarea(prompt.text, description="Prompt", rows=2)
        self.negative_prompt = ipywidgets.Text(prompt.negative, description="Not")
        most = max(10, 2 * asked.guidance)
        self.guidance = FloatSlider(asked.guidance, min=1, max=most, step=0.5, description="Guidance")
        self.strength = FloatSlider(asked.strength, min=0.05, max=1, step=0.01, description="Strength")
        most = max(50, 2 * asked.steps)
        self.steps = ipywidgets.IntSlider(asked.steps, min=2, max=most, description="Steps")
        self.seed = ipywidgets.BoundedIntText(seed, min=0, max=2**31, description="Seed")
        self.count = ipywidgets.BoundedIntText(2, min=1, max=MAX_CARDS, description="Images")
        numbers = [self.guidance, self.strength, self.steps, self.seed, self.count]
        fields = [self.prompt, self.negative_prompt, *numbers]
        for field in fields:
            field.layout.width, field.style.description_width = "auto", "70px"
        hint = "Paint with this mask, prompt and seed"
        self.generate_button = make_button("Generate", hint, self.generate, "primary")
        hint = "The same request with the next seeds"
        self.other_button = make_button("Other seeds", hint, self.generate_others)
        self.stop_button = make_button("Stop", "Stop at the next step", self.stop, "warning")
        self._set_painting(False)
        buttons = ipywidgets.HBox([self.generate_button, self.other_button, self.stop_button])
        self.progress = ipywidgets.IntProgress(layout={"width": "auto"})
        self.message = Message(colour_text("Draw on the image, then press Generate."))
        self.form = ipywidgets.VBox([*fields, buttons, self.progress, self.message])

    def read_form(self) -> StudioRequest:
        """The request in the form and on the canvas."""
        image, mask = self.drawer.names[self.drawer.index], self.drawer.canvas.mask
        texts = [field.value.strip() for field in (self.prompt, self.negative_prompt)]
        numbers = [field.value for field in (self.guidance, self.strength, self.steps, self.seed)]
        return StudioRequest(image, mask, *texts, *numbers)

    def generate(self) -> None:
        """Start painting the form's request; the mask is saved first."""
        if self.is_painting:
            return
        with self.message.tell_errors():
            request = self.read_form()
            self.studio.check_request(request)
            if self.drawer.has_unsaved_strokes and not self.drawer.save():
                raise ValueError("the mask could not be saved, see below the canvas")
            self._stop.clear()
            self._set_painting(True)
            self.progress.value = 0
            self.worker = Thread(target=self._paint, args=(request, self.count.value), daemon=True)
            self.worker.start()

    def generate_others(self) -> None:
        """Generate with the next seeds and everything else unchanged."""
        if not self.is_painting:
            self.seed.value += self.count.value
            self.generate()

    def stop(self) -> None:
        """Stop painting at the next step."""
        self._stop.set()
        self.message.say("stopping …")

    @property
    def is_painting(self) -> bool:
        """Whether an image is being painted."""
        return self.generate_button.disabled

    def _set_painting(self, is_painting: bool) -> None:
        for button in (self.generate_button, self.other_button):
            button.disabled = is_painting
        self.stop_button.disabled = not is_painting

    def _paint(self, request: StudioRequest, count: int) -> None:
        """The thread's work; errors are shown in the panel."""
        finished = 0
        self.message.say(f"painting 1 of {count} …")
        try:
            self.progress.max = count * self.studio.count_steps(request)
            for finished, image in enumerate(self.studio.paint(request, count, self._on_step), start=1):
                self._add_card(image)
                if finished < count:
                    self.message.say(f"painting {finished + 1} of {count} …")
            told = "accept or reject below; undecided images are not stored"
            self.message.say(f"{finished} painted: {told}", GOOD)
        except Stopped:
            told = f"{finished} of {count} finished and shown, the current one is dropped"
            self.message.say(f"stopped: {told}", BAD)
        except Exception as error:  # nobody would see an error in a thread
            self.message.say(f"{error} ({finished} of {count} finished)", BAD)
        finally:
            self._set_painting(False)

    def _on_step(self) -> None:
        self.progress.value += 1
        if self._stop.is_set():
            raise Stopped

    def _add_card(self, image: StudioImage) -> None:
        cards = (StudioCard(image, self), *self.cards)
        self.cards_box.children = cards[:MAX_CARDS]
        for card in cards[MAX_CARDS:]:
            close_whole(card)

    @property
    def cards(self) -> tuple[StudioCard, ...]:
        """The cards shown."""
        return self.cards_box.children

    def decide(self, card: StudioCard, accepted: bool) -> None:
        """Store an image with its note; an error is shown and changes nothing."""
        with self.message.tell_errors():
            card.show_image(self.studio.decide(card.image, accepted, card.note.value.strip()))
            self._show_counts()

    def reuse(self, image: StudioImage) -> None:
        """Restore an image's negative, mask, prompts and settings in the form."""
        request = image.request
        self.drawer.show_image(self.drawer.names.index(request.source_image))
        if self.drawer.names[self.drawer.index] != request.source_image:
            return
        self.drawer.canvas.value = request.mask
        for name in ("prompt", "negative_prompt", "guidance", "strength", "steps", "seed"):
            getattr(self, name).value = getattr(request, name)
        self.message.say("restored: change what you like, then press Generate or Other seeds", GOOD)

    def _show_kept(self) -> None:
        """Show cards of the most recently stored images, and report those that can't be shown."""
        problems: list[str] = []
        with self.message.tell_errors():
            for row in self.studio.read_kept().to_dict("records")[-MAX_CARDS // 2 :]:
                with collect_problems(problems):
                    self._add_card(self.studio.load(row))
            if problems:
                self.message.say(f"{len(problems)} stored images can't be shown: {'; '.join(problems)}", BAD)
            self._show_counts()

    def _show_counts(self) -> None:
        accepted, others = self.studio.kept.count()
        self.summary.say(f"Kept in {self.studio.folder}: {accepted} accepted, {others} rejected.")


def show_pixels(image_u8: np.ndarray) -> ipywidgets.Image:
    """An image, shape (height, width, 3), uint8, scaled down to fit into a card."""
    height, width = image_u8.shape[:2]
    scale = min(CARD_SIZE[0] / width, CARD_SIZE[1] / height)
    size = {"width": f"{round(width * scale)}px", "height": f"{round(height * scale)}px", "margin": "2px"}
    return ipywidgets.Image(value=encode_image(image_u8), format="png", layout=size)


def make_review_form(prompts: Sequence[Prompt], path: Path | str) -> ipywidgets.VBox:
    """A form with one line per prompt (decision, new text, reason), and a button that stores them all.

    Decisions in the review file are shown; those on images are kept.
    """
    path = Path(path)
    review = scenarios.read_review(path) if path.is_file() else scenarios.Review([], [])
    entries = {prompt.text: scenarios.PromptDecision(prompt.text, "accept") for prompt in prompts}
    entries |= {entry.prompt: entry for entry in review.prompts}
    lines = [_make_line(entries[prompt.text]) for prompt in prompts]
    button, told = ipywidgets.Button(description="Store"), Message(colour_text("Not stored yet."))

    def store(_: object) -> None:
        decided = [
            scenarios.PromptDecision(prompt.text, *(field.value for field in line.children[1:]))
            for prompt, line in zip(prompts, lines, strict=True)
        ]
        try:
            scenarios.write_review(scenarios.Review(decided, review.images), path)
            told.say(f"Stored in {path}: run the cells below.")
        except scenarios.ReviewError as error:
            told.say(f"Not stored: {error}", BAD)

    button.on_click(store)
    return ipywidgets.VBox([*lines, button, told])


def _make_line(entry: scenarios.PromptDecision) -> ipywidgets.HBox:
    text = Message(colour_text(entry.prompt), layout={"width": "16em"})  # a Label would render formulas
    decision = ipywidgets.Dropdown(options=scenarios.DECISIONS, value=entry.decision, layout={"width": "7em"})
    reworded = ipywidgets.Text(entry.reworded, placeholder="new text")
    return ipywidgets.HBox([text, decision, reworded, ipywidgets.Text(entry.note, placeholder="why")])
