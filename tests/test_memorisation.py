"""Copies among generated images: hand-made cases, slow references, false alarms, the figure, bad input."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from defaug_utils.core.origins import list_arms
from defaug_utils.evaluation.pool_quality import copy_threshold, count_copies, find_copies
from defaug_utils.report.curves import plot_memorisation

LINE = np.array([[0.0], [1.0], [3.0], [7.0]])  # nearest others: 1, 1, 2, 4


def draw(count: int, channels: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, channels))


def make_table() -> pd.DataFrame:
    """Two merge weights, two epochs; only the later epoch of the higher weight copies."""
    settings = {
        (0.5, 10): [5.0, 2.0],
        (0.5, 20): [1.9, 2.1],
        (0.9, 10): [3.0, 3.2],
        (0.9, 20): [0.0, 0.4, 9.0],
    }
    tables = [
        find_copies(np.array(distances)[:, None] * -1, LINE, 1.0).assign(share=share, epoch=epoch)
        for (share, epoch), distances in settings.items()
    ]
    return pd.concat(tables, ignore_index=True)


def test_distances_equal_the_slow_ones():
    generated, real = draw(7, seed=1), draw(9)
    table = find_copies(generated, real, 1.0)
    for place, row in table.iterrows():
        pairs = [zip(generated[place], features, strict=True) for features in real]
        slow = [sum((a - b) ** 2 for a, b in pair) ** 0.5 for pair in pairs]
        assert row["nearest_real"] == str(int(np.argmin(slow)))
        assert row["distance"] == pytest.approx(min(slow))
        assert row["is_copy"] == (min(slow) <= 1.0)


def test_the_threshold_is_a_quantile_of_the_reals_own_distances():
    assert copy_threshold(LINE, 0) == 1
    assert copy_threshold(LINE, 1) == 4
    assert copy_threshold(LINE, 0.5) == 1.5


def test_exact_copies_are_found_and_named():
    real = draw(20)
    names = [f"r{number}" for number in range(20)]
    table = find_copies(real[[4, 4, 17]], real, copy_threshold(real), ["a", "b", "c"], names)
    assert table["image"].tolist() == ["a", "b", "c"]
    assert table["nearest_real"].tolist() == ["r4", "r4", "r17"]
    assert (table["distance"] == 0).all() and table["is_copy"].all()


def test_an_exact_copy_is_found_although_a_real_image_is_stored_twice():
    real = np.concatenate([LINE, LINE[:1]])
    assert copy_threshold(real, 0) == 0
    assert find_copies(LINE[2:3], real, 0.0)["is_copy"].tolist() == [True]


@pytest.mark.parametrize("quantile", [0.05, 0.3])
def test_new_images_of_the_real_kind_are_called_copies_as_often_as_the_quantile_says(quantile: float):
    threshold = copy_threshold(draw(800), quantile)
    table = find_copies(draw(2000, seed=1), draw(800), threshold)
    assert table["is_copy"].mean() == pytest.approx(quantile, abs=0.04)


def test_slightly_changed_copies_are_found_and_new_images_are_not():
    real = draw(200)
    changed = real[:50] + 0.01 * draw(50, seed=2)
    threshold = copy_threshold(real)
    assert find_copies(changed, real, threshold)["is_copy"].all()
    assert not find_copies(draw(50, seed=3) + 10, real, threshold)["is_copy"].any()


def test_counts_by_setting():
    counts = count_copies(make_table()).set_index(["share", "epoch"])
    assert counts["images"].tolist() == [2, 2, 2, 3]
    assert counts["copies"].tolist() == [0, 0, 0, 2]
    last = counts.loc[(0.9, 20)]
    assert last["share_of_copies"] == pytest.approx(2 / 3)
    assert (last["copied_reals"], last["median_distance"]) == (1, 0.4)
    assert counts.loc[(0.5, 10), "copied_reals"] == 0


def test_the_figure_shows_every_image_the_thresholds_and_the_shares():
    figure = plot_memorisation(make_table())
    distances, counts = figure.axes
    drawn = [np.sort(part.get_offsets()[:, 1]).tolist() for part in distances.collections]
    assert drawn == [[1.9, 2.0, 2.1, 5.0], [0.0, 0.4, 3.0, 3.2, 9.0]]
    assert any(np.all(np.asarray(line.get_ydata()) == 1.0) for line in distances.lines)
    curves = {line.get_label(): list(line.get_ydata()) for line in counts.lines}
    assert curves == {r"$\alpha$ = 0.5": [0, 0], r"$\alpha$ = 0.9": [0, pytest.approx(2 / 3)]}
    assert [to_hex(line.get_color()) for line in counts.lines] == [
        arm.colour.lower() for arm in list(list_arms().values())[:2]
    ]
    assert [tick.get_text() for tick in counts.get_xticklabels()] == ["10", "20"]
    assert not plt.get_fignums()


def test_settings_that_were_not_run_are_left_out_of_the_figure():
    table = make_table()
    figure = plot_memorisation(table[(table["share"] == 0.5) | (table["epoch"] == 20)])
    assert [len(line.get_xdata()) for line in figure.axes[1].lines] == [2, 1]


def test_one_real_image_gives_no_threshold():
    with pytest.raises(ValueError, match="real: 1 images, expected at least 2"):
        copy_threshold(draw(1))


@pytest.mark.parametrize("quantile", [-0.1, 1.1, float("nan")])
def test_impossible_quantiles_are_refused(quantile: float):
    with pytest.raises(ValueError, match="range"):
        copy_threshold(LINE, quantile)


def test_too_few_names_are_told():
    with pytest.raises(ValueError, match="1 names for 4 images"):
        find_copies(LINE, LINE, 1.0, ["a"])


@pytest.mark.parametrize("make", [count_copies, plot_memorisation])
def test_tables_without_settings_or_images_are_told(make):
    with pytest.raises(ValueError, match="columns missing: share, epoch"):
        make(make_table().drop(columns=["share", "epoch"]))
    with pytest.raises(ValueError, match="0 images"):
        make(make_table().iloc[:0])


def test_more_merge_weights_than_colours_are_told():
    table = pd.concat([make_table().assign(share=share) for share in range(len(list_arms()) + 1)])
    with pytest.raises(ValueError, match=f"only {len(list_arms())} colours"):
        plot_memorisation(table)
