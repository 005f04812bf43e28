"""Shapes of defects by formula: scratches, cracks and blobs, within what an expert expects."""

from dataclasses import dataclass, field

import cv2
import numpy as np

SHIFT = 4  # fractional bits of OpenCV's coordinates
MAX_DRAWS = 50  # a shape that stays empty this often never comes


@dataclass(frozen=True)
class ShapePriors:
    """What the expert expects; defaults suit surfaces of which nothing is known.

    Attributes:
        weights: how often each kind comes, by its word in `SHAPES`.
        length: smallest and largest length, as shares of the image's shorter side.
        width: smallest and largest width of scratches and cracks, pixels.
        orientation: smallest and largest angle of the long axis, degrees; 0 is level, 90 upright.
        roundness: smallest and largest ratio of a blob's short to its long axis.
    """

    weights: dict[str, float] = field(default_factory=lambda: {"scratch": 1.0, "crack": 1.0, "blob": 1.0})
    length: tuple[float, float] = (0.15, 0.8)
    width: tuple[float, float] = (2.0, 6.0)
    orientation: tuple[float, float] = (-90.0, 90.0)
    roundness: tuple[float, float] = (0.3, 1.0)

    def __post_init__(self) -> None:
        """Refuse priors that make no sense, all in one message."""
        demands = {
            f"weights {self.weights} must name some of {', '.join(SHAPES)}, none negative, not all 0": set(
                self.weights
            )
            <= set(SHAPES)
            and min(self.weights.values(), default=-1) >= 0
            and sum(self.weights.values()) > 0,
            f"length {self.length} must rise, above 0": 0 < self.length[0] <= self.length[1],
            f"width {self.width} must rise from 1 pixel or more": 1 <= self.width[0] <= self.width[1],
            f"orientation {self.orientation} must rise within −180 … 180 degrees": -180
            <= self.orientation[0]
            <= self.orientation[1]
            <= 180,
            f"roundness {self.roundness} must rise within 0 … 1, 0 excluded": 0
            < self.roundness[0]
            <= self.roundness[1]
            <= 1,
        }
        broken = [message for message, is_met in demands.items() if not is_met]
        if broken:
            raise ValueError("shape priors: " + "; ".join(broken))


def draw_shape(
    kind: str, size: tuple[int, int], priors: ShapePriors, generator: np.random.Generator
) -> np.ndarray:
    """Draw one shape with its centre somewhere in the image; an empty or full mask is drawn again.

    Args:
        kind: a word of `SHAPES`.
        size: (width, height) in pixels.
        priors: lengths, widths and directions.
        generator: source of randomness.

    Returns:
        Shape (size[1], size[0]), bool, with pixels of either kind.

    Raises:
        ValueError: the image is too small for such shapes.
    """
    for _ in range(MAX_DRAWS):
        canvas = np.zeros((size[1], size[0]), np.uint8)
        centre = generator.uniform(0, 1, 2) * size
        length = generator.uniform(*priors.length) * min(size)
        angle = np.deg2rad(generator.uniform(*priors.orientation))
        axis = np.array([np.cos(angle), -np.sin(angle)])  # rows count downwards
        SHAPES[kind](canvas, centre, length * axis, priors, generator)
        if canvas.any() and not canvas.all():
            return canvas.astype(bool)
    raise ValueError(
        f"{MAX_DRAWS} shapes ({kind}) drawn on {size[0]} × {size[1]} pixels, all empty or "
        f"covering everything: use other lengths than {priors.length}"
    )


def draw_scratch(
    canvas: np.ndarray,
    centre: np.ndarray,
    span: np.ndarray,
    priors: ShapePriors,
    generator: np.random.Generator,
) -> None:
    """A thin arc, bent a little to one side, thinner towards its ends."""
    along = np.linspace(-0.5, 0.5, 32)
    across = np.array([-span[1], span[0]]) * generator.normal(0, 0.08)
    points = centre + along[:, None] * span + (0.25 - along**2)[:, None] * 4 * across
    widths = generator.uniform(*priors.width) * (0.5 + 2 * (0.25 - along**2))
    _draw_line(canvas, points, widths)


def draw_crack(
    canvas: np.ndarray,
    centre: np.ndarray,
    span: np.ndarray,
    priors: ShapePriors,
    generator: np.random.Generator,
) -> None:
    """A jagged line that wanders off its axis, with up to three branches."""
    width = generator.uniform(*priors.width)
    points = _wander(centre - span / 2, span, 14, generator)
    _draw_line(canvas, points, np.full(len(points), width))
    for start in generator.choice(np.arange(3, 12), int(generator.integers(0, 4)), replace=False):
        turn = np.deg2rad(generator.uniform(25, 60) * generator.choice((-1, 1)))
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ span
        branch = _wander(points[start], turned * generator.uniform(0.15, 0.4), 6, generator)
        _draw_line(canvas, branch, np.full(len(branch), max(1.0, 0.7 * width)))


def draw_blob(
    canvas: np.ndarray,
    centre: np.ndarray,
    span: np.ndarray,
    priors: ShapePriors,
    generator: np.random.Generator,
) -> None:
    """An ellipse whose rim swings in and out."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    orders = np.arange(2, 7)
    waves = generator.normal(0, 0.12, orders.size) / np.sqrt(orders - 1)
    phases = generator.uniform(0, 2 * np.pi, orders.size)
    radius = np.clip(1 + (waves * np.cos(angles[:, None] * orders + phases)).sum(axis=1), 0.3, 1.7) / 2
    across = np.array([-span[1], span[0]]) * generator.uniform(*priors.roundness)
    rim = centre + radius[:, None] * (np.cos(angles)[:, None] * span + np.sin(angles)[:, None] * across)
    cv2.fillPoly(canvas, [np.rint(rim * 2**SHIFT).astype(np.int32)], 1, shift=SHIFT)


def _wander(start: np.ndarray, span: np.ndarray, steps: int, generator: np.random.Generator) -> np.ndarray:
    """Points from a start along a span, each pushed off to the side by chance, shape (steps + 1, 2)."""
    aside = np.array([-span[1], span[0]]) * 0.06
    pushes = np.concatenate([[0], np.cumsum(generator.normal(0, 1, steps))])
    return start + np.linspace(0, 1, steps + 1)[:, None] * span + pushes[:, None] * aside


def _draw_line(canvas: np.ndarray, points: np.ndarray, widths: np.ndarray) -> None:
    """A line of changing width through points (x, y)."""
    fixed = np.rint(points * 2**SHIFT).astype(int)
    for start, end, width in zip(fixed[:-1], fixed[1:], widths, strict=False):
        cv2.line(canvas, start.tolist(), end.tolist(), 1, max(1, round(width)), cv2.LINE_8, SHIFT)


SHAPES = {"scratch": draw_scratch, "crack": draw_crack, "blob": draw_blob}
