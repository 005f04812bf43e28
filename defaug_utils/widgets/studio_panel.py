"""What an expert decides in the notebook: in the DIAG studio (draw, ask, look), and in a form on prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread

import ipywidgets
import numpy as np
from skimage.segmentation import find_boundaries

from defaug_utils.core.prompts import Prompt
from defaug_utils.protocol.scenarios import (
    DECISIONS,
    PromptDecision,
    Review,
    ReviewError,
    read_review,
    write_review,
)
from defaug_utils.widgets.mask_drawing import MaskDrawer
from defaug_utils.widgets.parts import BAD, GOOD, colour_text, encode_image, make_button
from defaug_utils.widgets.studio import Studio, StudioImage, StudioRequest

MAX_CARDS = 24  # pictures shown at once; what is decided stays in the pool
CARD_SIZE = (330, 300)  # most that each of a card's two pictures takes, CSS pixels
FEW_CELLS = 10  # of the latent grid; a smaller mask gives the model no room to paint in
OUTLINE = (255, 0, 200)
BORDERS = {None: "1px solid #bbb", True: f"3px solid {GOOD}", False: f"3px solid {BAD}"}


class Stopped(Exception):
    """The stop button was pressed."""


class StudioCard(ipywidgets.VBox):
    """One picture before and after, with its buttons.

    Attributes:
        image: as it is kept now, or not yet.
    """

    def __init__(
        self,
        image: StudioImage,
        decide: Callable[["StudioCard", bool], None],
        reuse: Callable[[StudioImage], None],
    ) -> None:
        """Show a picture; buttons call `decide` with this card and the decision, `reuse` with the picture."""
        before = image.before_u8.copy()
        before[find_boundaries(image.request.mask, mode="outer")] = OUTLINE
        self.caption, self.note = ipywidgets.HTML(), ipywidgets.Text(placeholder="note (why)")
        self.note.layout.width = "auto"
        self.accept_button = make_button("Accept", "Keep it for training", lambda: decide(self, True))
        self.reject_button = make_button("Reject", "Keep it as rejected", lambda: decide(self, False))
        self.reuse_button = make_button(
            "Again", "Bring back image, mask, prompt and settings", lambda: reuse(self.image)
        )
        buttons = [self.accept_button, self.reject_button, self.reuse_button]
        pair = ipywidgets.HBox([show_pixels(before), show_pixels(image.after_u8)])
        pair.layout.flex_flow = "row wrap"  # wide pictures stand one above the other
        super().__init__([pair, self.caption, self.note, ipywidgets.HBox(buttons)])
        self.add_class("studio-card")
        self.layout = ipywidgets.Layout(width="max-content", max_width="360px", padding="6px", margin="4px")
        self.show_image(image)

    def show_image(self, image: StudioImage) -> None:
        """Show how the picture stands now."""
        self.image = image
        accepted = image.row.get("accepted")
        accepted = None if accepted not in (True, False) else bool(accepted)
        words = {None: "not decided: not kept yet", True: "accepted", False: "rejected"}[accepted]
        colour = {None: "inherit", True: GOOD, False: BAD}[accepted]
        told = f"seed {image.request.seed}"
        if not image.row["check_passed"]:
            told += f" · check: {image.row['check_reason']}"
        if image.row["latent_cells"] < FEW_CELLS:
            told += f" · only {image.row['latent_cells']} cells: draw larger"
        self.caption.value = (
            f"{colour_text(image.request.prompt)}{colour_text(told)}{colour_text(words, colour)}"
        )
        self.note.value = str(image.row.get("reviewer_note") or "")
        self.layout.border = BORDERS[accepted]


class StudioPanel(ipywidgets.VBox):
    """Choose an image, draw a mask, write a prompt, generate, and decide on every picture.

    Painting runs in a thread of its own, so that the kernel goes on answering; the stop button ends it at
    the next denoising step. What is finished by then stays.

    Attributes:
        studio: what paints and keeps.
        drawer: image chooser and canvas.
        cards: one a picture, the newest first.
        worker: the thread that paints, None before the first.
    """

    def __init__(
        self, studio: Studio, masks_folder: Path | str, prompt: Prompt | None = None, seed: int = 0
    ) -> None:
        """Show the form with prompt and seed to begin with, and the pictures kept last.

        Drawn masks are stored in `masks_folder`, see `save_drawn`. Raises what `MaskDrawer` raises.
        """
        self.studio, self.worker = studio, None
        self._stop = Event()
        self.drawer = MaskDrawer(studio.data_folder, masks_folder)
        self.drawer.canvas.canvas_height = 420
        self._make_form(prompt or Prompt("scratched"), seed)
        self.cards_box = ipywidgets.HBox(layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.summary = ipywidgets.HTML()
        top = ipywidgets.HBox([self.drawer, self.form], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.drawer.layout = ipywidgets.Layout(flex="3 1 480px", min_width="300px")
        self.form.layout = ipywidgets.Layout(flex="1 1 300px", min_width="280px", padding="0 0 0 8px")
        super().__init__([top, self.summary, self.cards_box])
        self.add_class("studio")
        self._show_kept()

    def _make_form(self, prompt: Prompt, seed: int) -> None:
        settings = self.studio.settings
        wide = {"layout": ipywidgets.Layout(width="auto"), "style": {"description_width": "70px"}}
        self.prompt = ipywidgets.Textarea(prompt.text, description="Prompt", rows=2, **wide)
        self.negative_prompt = ipywidgets.Text(prompt.negative, description="Not", **wide)
        self.guidance = ipywidgets.FloatSlider(
            settings.guidance,
            min=1,
            max=max(10, 2 * settings.guidance),
            step=0.5,
            description="Guidance",
            **wide,
        )
        self.strength = ipywidgets.FloatSlider(
            settings.strength, min=0.05, max=1, step=0.01, description="Strength", **wide
        )
        most = max(50, 2 * settings.steps)
        self.steps = ipywidgets.IntSlider(settings.steps, min=2, max=most, description="Steps", **wide)
        self.seed = ipywidgets.BoundedIntText(seed, min=0, max=2**31, description="Seed", **wide)
        self.count = ipywidgets.BoundedIntText(2, min=1, max=MAX_CARDS, description="Images", **wide)
        self.generate_button = make_button(
            "Generate", "Paint with this mask, prompt and seed", self.generate, "primary"
        )
        self.other_button = make_button(
            "Other seeds", "The same once more with the next seeds", self.generate_others
        )
        self.stop_button = make_button("Stop", "End at the next step", self.stop, "warning")
        self.stop_button.disabled = True
        self.progress = ipywidgets.IntProgress(layout=ipywidgets.Layout(width="auto"))
        self.message = ipywidgets.HTML(colour_text("Draw on the image, then press Generate."))
        buttons = [self.generate_button, self.other_button, self.stop_button]
        texts = [self.prompt, self.negative_prompt]
        numbers = [self.guidance, self.strength, self.steps, self.seed, self.count]
        self.form = ipywidgets.VBox([*texts, *numbers, ipywidgets.HBox(buttons), self.progress, self.message])

    def read_form(self) -> StudioRequest:
        """What the form and the canvas ask for."""
        return StudioRequest(
            self.drawer.names[self.drawer.index],
            self.drawer.canvas.mask,
            self.prompt.value.strip(),
            self.negative_prompt.value.strip(),
            self.guidance.value,
            self.strength.value,
            self.steps.value,
            self.seed.value,
        )

    def generate(self) -> None:
        """Start painting what the form asks for; the mask is saved first."""
        if self.is_painting:
            return
        try:
            request = self.read_form()
            self.studio.check_request(request)
        except (ValueError, OSError) as error:
            self._say(str(error), BAD)
            return
        if self.drawer.has_unsaved_strokes and not self.drawer.save():
            self._say("the mask could not be saved, see below the canvas", BAD)
            return
        self._stop.clear()
        self._set_painting(True)
        self.progress.value = 0
        self.worker = Thread(target=self._paint, args=(request, self.count.value), daemon=True)
        self.worker.start()

    def generate_others(self) -> None:
        """Generate with the next seeds, all else the same."""
        if not self.is_painting:
            self.seed.value += self.count.value
            self.generate()

    def stop(self) -> None:
        """End the painting at its next step."""
        self._stop.set()
        self._say("stopping …")

    @property
    def is_painting(self) -> bool:
        """Whether a picture is being painted."""
        return self.generate_button.disabled

    def _set_painting(self, is_painting: bool) -> None:
        for button in (self.generate_button, self.other_button):
            button.disabled = is_painting
        self.stop_button.disabled = not is_painting

    def _paint(self, request: StudioRequest, count: int) -> None:
        """What the thread does; whatever goes wrong is told in the panel."""
        finished = 0
        self._say(f"painting 1 of {count} …")
        try:
            self.progress.max = count * self.studio.count_steps(request)
            for image in self.studio.paint(request, count, self._on_step):
                finished += 1
                self._add_card(image)
                if finished < count:
                    self._say(f"painting {finished + 1} of {count} …")
            self._say(f"{finished} painted: accept or reject below; what is not decided is not kept", GOOD)
        except Stopped:
            self._say(f"stopped: {finished} of {count} finished and shown, the one at work is dropped", BAD)
        except Exception as error:  # a thread's error would be seen by nobody
            self._say(f"{error} ({finished} of {count} finished)", BAD)
        finally:
            self._set_painting(False)

    def _on_step(self) -> None:
        self.progress.value += 1
        if self._stop.is_set():
            raise Stopped

    def _add_card(self, image: StudioImage) -> None:
        card = StudioCard(image, self.decide, self.reuse)
        self.cards_box.children = (card, *self.cards_box.children)[:MAX_CARDS]

    @property
    def cards(self) -> tuple[StudioCard, ...]:
        """The pictures shown."""
        return self.cards_box.children

    def decide(self, card: StudioCard, accepted: bool) -> None:
        """Store a picture with its note; an error is told and nothing changes."""
        try:
            card.show_image(self.studio.decide(card.image, accepted, card.note.value.strip()))
        except (ValueError, OSError) as error:
            self._say(str(error), BAD)
            return
        self._show_counts()

    def reuse(self, image: StudioImage) -> None:
        """Bring a picture's image, mask, texts and settings back into the form."""
        request = image.request
        self.drawer.show_image(self.drawer.names.index(request.source_image))
        if self.drawer.names[self.drawer.index] != request.source_image:
            return
        self.drawer.canvas.value = request.mask
        for name in ("prompt", "negative_prompt", "guidance", "strength", "steps", "seed"):
            getattr(self, name).value = getattr(request, name)
        self._say("as this picture was made: change what you like, then Generate or Other seeds", GOOD)

    def _show_kept(self) -> None:
        """The cards of the pictures kept last; what can't be shown is told."""
        problems = []
        try:
            rows = self.studio.read_kept().to_dict("records")
        except (ValueError, OSError) as error:
            self._say(str(error), BAD)
            return
        for row in rows[-MAX_CARDS // 2 :]:
            try:
                self._add_card(self.studio.load(row))
            except (ValueError, OSError) as error:
                problems.append(str(error))
        if problems:
            self._say(f"{len(problems)} kept pictures can't be shown: {'; '.join(problems)}", BAD)
        self._show_counts()

    def _show_counts(self) -> None:
        accepted = self.studio.read_kept()["accepted"]
        count = int(accepted.fillna(False).sum())
        text = f"Kept in {self.studio.folder}: {count} accepted, {len(accepted) - count} rejected."
        self.summary.value = colour_text(text)

    def _say(self, text: str, colour: str = "inherit") -> None:
        self.message.value = colour_text(text, colour)


def show_pixels(image_u8: np.ndarray) -> ipywidgets.Image:
    """A picture, shape (height, width, 3), uint8, no larger than a card has room for."""
    height, width = image_u8.shape[:2]
    scale = min(CARD_SIZE[0] / width, CARD_SIZE[1] / height)
    shown = ipywidgets.Image(value=encode_image(image_u8), format="png")
    shown.layout = ipywidgets.Layout(
        width=f"{round(width * scale)}px", height=f"{round(height * scale)}px", margin="2px"
    )
    return shown


def make_review_form(prompts: Sequence[Prompt], path: Path | str) -> ipywidgets.VBox:
    """One line a prompt with decision, other words and a reason, and a button that stores them all.

    Args:
        prompts: the board that was looked at.
        path: file of the review. Decisions in it are shown, and decisions on pictures are kept.

    Returns:
        The form; its last line tells what happened.
    """
    path = Path(path)
    review = read_review(path) if path.is_file() else Review([], [])
    former = {entry.prompt: entry for entry in review.prompts}
    lines = [_make_line(former.get(prompt.text, PromptDecision(prompt.text, "accept"))) for prompt in prompts]
    button, told = ipywidgets.Button(description="Store"), ipywidgets.Label("Not stored yet.")

    def store(_: object) -> None:
        decided = [
            PromptDecision(prompt.text, *(field.value for field in line.children[1:]))
            for prompt, line in zip(prompts, lines, strict=True)
        ]
        try:
            write_review(Review(decided, review.images), path)
            told.value = f"Stored in {path}: run the cells below."
        except ReviewError as error:
            told.value = f"Not stored: {error}"

    button.on_click(store)
    return ipywidgets.VBox([*lines, button, told])


def _make_line(entry: PromptDecision) -> ipywidgets.HBox:
    return ipywidgets.HBox(
        [
            ipywidgets.Label(entry.prompt, layout={"width": "16em"}),
            ipywidgets.Dropdown(options=DECISIONS, value=entry.decision, layout={"width": "7em"}),
            ipywidgets.Text(entry.reworded, placeholder="in other words"),
            ipywidgets.Text(entry.note, placeholder="why"),
        ]
    )
