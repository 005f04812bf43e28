"""The linear classifier on a frozen backbone: its features, its weighing of classes, what it refuses."""

import numpy as np
import pytest

from defaug_utils.data.samples import Samples
from defaug_utils.evaluation.linear_classifier import LAYERS, classify_linearly, fit_line, pool_features
from defaug_utils.evaluation.metrics import measure_scores


def relabel(samples: Samples, split: str, value: float) -> Samples:
    labels = samples.labels.clone()
    labels[samples.indices(split)] = value
    return samples._replace(labels=labels)


def test_features_are_means_and_maxima_layer_by_layer(samples, network):
    images_u8 = samples.images_u8[:20].numpy()
    found = pool_features(network, images_u8, LAYERS)
    assert found.shape == (20, 2 * (32 + 64 + 128))
    maps = network.read_maps(images_u8[:2], LAYERS)
    first = maps["eighth"].numpy().reshape(2, 32, -1)
    np.testing.assert_allclose(found[:2, :32], first.mean(axis=2), rtol=1e-4)
    np.testing.assert_allclose(found[:2, 32:64], first.max(axis=2), rtol=1e-4)
    last = maps["thirty_second"].numpy().reshape(2, 128, -1)
    np.testing.assert_allclose(found[:2, -128:], last.max(axis=2), rtol=1e-4, atol=1e-6)


def test_defects_are_found_and_the_table_is_one_of_scores(samples, network):
    table = classify_linearly(samples, network)
    assert table.columns.tolist() == ["image", "split", "label", "score"]
    assert table["split"].tolist() == ["val"] * 4 + ["test"] * 10
    assert table["score"].dtype == np.float64
    summary = measure_scores(table, resamples=10)
    assert (summary["ap"], summary["auroc"]) == (1, 1)


def test_it_repeats_and_learns_from_the_train_split_alone(samples, network):
    expected = classify_linearly(samples, network)["score"]
    for other in (samples, relabel(samples, "test", 1.0), relabel(samples, "val", 1.0)):
        np.testing.assert_array_equal(classify_linearly(other, network)["score"], expected)


def test_one_positive_weighs_as_much_as_all_negatives():
    """By symmetry the middle between two values is undecided, however many negatives there are."""
    features, is_positive = np.array([[-1.0]] * 30 + [[1.0]]), np.array([False] * 30 + [True])
    found = fit_line(features, is_positive).decision_function([[-1.0], [0.0], [1.0]])
    assert found[1] == pytest.approx(0, abs=0.05)
    assert found[2] == pytest.approx(-found[0], abs=0.05) and found[2] > 1


@pytest.mark.parametrize(("value", "missing"), [(0.0, "no positive"), (1.0, "no negative")])
def test_a_class_without_sample_is_refused(samples, network, value, missing):
    with pytest.raises(ValueError, match=f"the train split has {missing}"):
        classify_linearly(relabel(samples, "train", value), network)


def test_unknown_layers(samples, network):
    with pytest.raises(ValueError, match="resnet10_quarter has no layer fifth"):
        classify_linearly(samples, network, ("fifth",))
