"""Montages with exact outlines, precision-recall curves, and results over N_aug."""

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure

from defaug_utils.core.origins import list_arms
from defaug_utils.report.curves import (
    plot_adaptation,
    plot_augmentation_curves,
    plot_loss,
    plot_precision_recall,
    style_arms,
)
from defaug_utils.report.pictures import choose_window, outline_mask, show_images

MASKS = arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6)))


def surfaces(count: int, shape: tuple[int, int] = (30, 10)) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *shape, 3), dtype=np.uint8))


def as_edges(segments: np.ndarray) -> Counter:
    return Counter(frozenset(map(tuple, segment)) for segment in segments.tolist())


def slow_edges(mask: np.ndarray) -> Counter:
    """Every side of every pixel; a side that two positive pixels share is no edge."""
    sides = Counter()
    for row, column in zip(*np.nonzero(mask), strict=True):
        x, y = float(column), float(row)
        corners = [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)]
        sides.update(frozenset({corners[k], corners[(k + 1) % 4]}) for k in range(4))
    return Counter({side: 1 for side, count in sides.items() if count == 1})


def test_outline_of_one_pixel_is_its_four_sides():
    mask = np.zeros((3, 4), bool)
    mask[2, 1] = True
    expected = {
        frozenset({(0.5, 1.5), (1.5, 1.5)}),
        frozenset({(0.5, 2.5), (1.5, 2.5)}),
        frozenset({(0.5, 1.5), (0.5, 2.5)}),
        frozenset({(1.5, 1.5), (1.5, 2.5)}),
    }
    assert set(as_edges(outline_mask(mask))) == expected


@given(MASKS)
def test_outline_equals_the_slow_one_and_is_closed(mask):
    edges = as_edges(outline_mask(mask))
    assert edges == slow_edges(mask)
    ends = Counter(corner for edge in edges for corner in edge)
    assert all(count % 2 == 0 for count in ends.values())


def test_outline_is_drawn_where_the_mask_is():
    image, mask = np.zeros((30, 10, 3), np.uint8), np.zeros((30, 10), bool)
    mask[12:18, 4:6] = True
    (axes,) = show_images([image], masks=[mask]).axes
    (lines,) = axes.collections
    corners = np.concatenate(lines.get_segments())
    assert corners.min(axis=0).tolist() == [3.5, 11.5]
    assert corners.max(axis=0).tolist() == [5.5, 17.5]
    assert axes.get_xlim() == (-0.5, 9.5)
    assert axes.get_ylim() == (29.5, -0.5)


def test_montage_keeps_cells_and_shapes():
    figure = show_images([*surfaces(2), *surfaces(1, (10, 10))], columns=2, width=4.0)
    assert figure.get_figwidth() == 4.0
    width, height = figure.get_size_inches()
    sizes = [(a.get_position().width * width, a.get_position().height * height) for a in figure.axes]
    cell = 2.0 - 0.06
    assert np.array(sizes) == pytest.approx(np.array([(cell, 3 * cell), (cell, 3 * cell), (cell, cell)]))
    assert show_images(surfaces(1), columns=4, width=4.0).get_figwidth() == 1.0


@pytest.mark.parametrize("columns", [4, 8])
def test_titles_do_not_overlap(columns):
    titles = ["few-shot-memseg-40-seed0, score 0.913", "negative", "white mark"] * 4
    figure = show_images(surfaces(12), titles, columns=columns)
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    pictures = [axes.get_window_extent() for axes in figure.axes]
    for number, box in enumerate(boxes):
        others = boxes[:number] + pictures
        assert not any(box.overlaps(other) for other in others), titles[number]
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height


def test_titles_break_at_hyphens_and_keep_their_own_lines():
    (axes,) = show_images(surfaces(1), ["few-shot-memseg-40-seed0\nAP 0.9"], columns=8).axes
    assert axes.get_title() == "few-shot-\nmemseg-40-seed0\nAP 0.9"


def test_grey_images_keep_their_range():
    u8, mask, smooth = (
        np.full((4, 4), 7, np.uint8),
        np.eye(4, dtype=bool),
        np.linspace(-1, 3, 16).reshape(4, 4),
    )
    limits = [axes.images[0].get_clim() for axes in show_images([u8, mask, smooth]).axes]
    assert limits == [(0, 255), (0, 1), (-1, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "0 images"),
        ((surfaces(2), ["one"]), "1 titles for 2 images"),
        ((surfaces(2), None, [None]), "1 masks for 2 images"),
        ((surfaces(1), None, [np.ones((10, 30), bool)]), r"mask of shape \(10, 30\)"),
        ((surfaces(1), None, None, 0), "0 columns"),
    ],
)
def test_montage_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        show_images(*arguments)


def test_figures_show_themselves_and_leave_nothing_open():
    figure = show_images(surfaces(1))
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_a_loss_stands_at_its_step():
    (axes,) = plot_loss(pd.DataFrame({"step": [10, 20, 50], "loss": [0.5, 0.25, 0.3]})).axes
    assert axes.lines[0].get_xydata().tolist() == [[10, 0.5], [20, 0.25], [50, 0.3]]
    with pytest.raises(ValueError, match="0 steps, columns missing: loss"):
        plot_loss(pd.DataFrame({"step": []}))


def test_every_image_has_its_adaptation_and_its_errors_before_and_after():
    rows = [(0, "out", 4.0, 2.0), (0, "border", 6.0, 5.0), (1, "out", 3.0, 1.0), (1, "border", 9.0, 8.0)]
    errors = pd.DataFrame(rows, columns=["image", "place", "before", "after"])
    losses, drawn = plot_adaptation([[0.5, 0.25, 0.125], [0.75]], errors).axes  # the second stopped at once
    curves = [line.get_ydata().astype(float) for line in losses.lines]
    assert [values[np.isfinite(values)].tolist() for values in curves] == [[0.5, 0.25, 0.125], [0.75]]
    pairs = sorted(line.get_ydata().tolist() for line in drawn.lines if len(line.get_ydata()))
    assert pairs == [[3, 1], [4, 2], [6, 5], [9, 8]]
    with pytest.raises(ValueError, match="0 errors, columns missing: none"):
        plot_adaptation([], errors[:0])


def test_precision_recall_by_hand():
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    figure = plot_precision_recall({"run": (labels, scores)}, {"run": 0.75})
    (axes,) = figure.axes
    curve, chance, point = axes.lines
    assert curve.get_label() == "run (AP 0.833)"  # ½ · 1 + ½ · ⅔
    recall, precision = curve.get_data()
    assert recall.tolist() == pytest.approx([1, 1, 0.5, 0.5, 0])
    assert precision.tolist() == pytest.approx([1 / 2, 2 / 3, 1 / 2, 1, 1])
    assert set(chance.get_ydata()) == {0.5}
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.5, 0.5)


def test_precision_recall_needs_a_positive():
    with pytest.raises(ValueError, match="run: none of 3 labels is positive"):
        plot_precision_recall({"run": (np.zeros(3), np.zeros(3))})
    with pytest.raises(ValueError, match="at least one run"):
        plot_precision_recall({})


@pytest.fixture
def runs() -> pd.DataFrame:
    rows = [("few-shot", "none", 0, 0.4), ("few-shot", "none", 0, 0.6), ("few-shot", "memseg", 80, 0.7)]
    rows += [("few-shot", "own", 80, 0.3), ("few-shot", "own", 80, 0.5), ("zero-shot", "memseg", 80, 0.2)]
    return pd.DataFrame(rows, columns=["scenario", "arm", "n_aug", "ap"]).assign(seed=0)


def bars(container: object) -> list[float]:
    """Lower and upper end of every error bar that is drawn, one after the other."""
    _, _, (lines,) = container
    ends = [segment[:, 1] for segment in lines.get_segments() if len(segment)]
    return [float(end) for pair in ends if np.isfinite(pair).all() for end in pair]


def test_bars_are_one_standard_deviation_and_runs_stay_visible(runs):
    few_shot, _ = plot_augmentation_curves(runs, ["ap"]).axes
    none, memseg, own = few_shot.containers
    assert [c.get_label() for c in few_shot.containers] == ["no augmentation", "MemSeg", "own"]
    spread = np.sqrt(0.02)
    assert bars(none) == pytest.approx([0.5 - spread, 0.5 + spread])
    assert bars(own) == pytest.approx([0.4 - spread, 0.4 + spread])
    assert bars(memseg) == []
    dots = np.concatenate(
        [points.get_offsets()[:, 1] for points in few_shot.collections if len(points.get_offsets())]
    )
    assert set(np.round(dots, 6)) >= {0.4, 0.6, 0.7, 0.3, 0.5}
    assert [label.get_text() for label in few_shot.get_xticklabels()] == ["0", "80"]


def test_panels_are_metrics_by_scenarios(runs):
    figure = plot_augmentation_curves(
        runs.assign(auroc=0.99, paper_recall=np.nan), ["ap", "auroc", "paper_recall"]
    )
    assert [axes.get_title() for axes in figure.axes] == ["few-shot", "zero-shot", "", "", "", ""]
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low >= -0.021 and high <= 1.021
        assert high - low >= 0.3 - 1e-9


def test_panels_without_a_validation_part_say_so(runs):
    bare = runs.assign(validation_recall=np.nan, paper_recall=np.nan)
    figure = plot_augmentation_curves(bare, ["ap", "paper_recall", "validation_recall"])
    told = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert told == [[]] * 4 + [["no validation part"]] * 2


def test_curves_name_what_is_missing(runs):
    with pytest.raises(ValueError, match="auroc"):
        plot_augmentation_curves(runs, ["auroc"])
    with pytest.raises(ValueError, match="0 runs"):
        plot_augmentation_curves(runs[:0], ["ap"])


def test_every_arm_has_a_name_and_a_style_of_its_own():
    styles = style_arms([*list_arms(), "own_b", "own_a"])
    assert list(styles) == [*list_arms(), "own_a", "own_b"]
    assert len(set(styles.values())) == len(styles)
    assert style_arms(["memseg"])["memseg"] == styles["memseg"]


@pytest.mark.parametrize(
    ("shape", "pixel", "rows", "columns"),
    [
        ((30, 10), (15, 2), slice(10, 20), slice(0, 10)),
        ((30, 10), (1, 9), slice(0, 10), slice(0, 10)),
        ((30, 10), (29, 0), slice(20, 30), slice(0, 10)),
        ((10, 30), (4, 25), slice(0, 10), slice(20, 30)),
    ],
)
def test_the_window_around_a_mask_stays_inside_the_picture(shape, pixel, rows, columns):
    mask = np.zeros(shape, bool)
    mask[pixel] = True
    assert choose_window(mask) == (rows, columns)


@given(MASKS.filter(np.any))
def test_a_window_is_square_and_sees_the_masks_middle(mask: np.ndarray):
    window = choose_window(mask)
    assert mask[window].shape == (min(mask.shape),) * 2
    middle = [int(np.flatnonzero(mask.any(axis=1 - axis))[[0, -1]].mean()) for axis in (0, 1)]
    assert all(part.start <= at < part.stop for part, at in zip(window, middle, strict=True))
