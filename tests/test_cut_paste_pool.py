"""Cut-and-paste pools: real defects in good images, exact outside the mask, remade from the row."""

import numpy as np
import pytest
from layouts import prepare_grid

from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import check_sources
from defaug_utils.core.origins import SCENARIOS, MixingError, Run
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.masks.patches import read_defects
from defaug_utils.masks.trimaps import TripleSet, read_good_images
from defaug_utils.methods.cut_paste import CutPaste
from defaug_utils.protocol.mixing import compose_training_set, find_leaks
from defaug_utils.protocol.run_folder import RunPools

SIZE = (32, 48)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data set's folder and manifest, and the triples made from its training part."""
    folder = tmp_path_factory.mktemp("grid")
    data = read_dataset(prepare_grid(folder, SIZE))
    goods = read_good_images(list_sources(data), folder / "data", SIZE)
    return folder, data, TripleSet(read_defects(data, folder / "data", SIZE), goods)


@pytest.fixture(scope="module")
def pool(prepared):
    folder, _, triples = prepared
    return make_pool(folder / "pool", CutPaste(folder / "data", triples), PoolPlan(8, seed=5))


def test_images_are_the_good_ones_outside_the_mask(prepared, pool):
    folder, _, _ = prepared
    assert len(pool) == 8
    assert set(pool["defect_type"]) == {"bent", "glue"}
    for row in pool.itertuples():
        image_u8, mask = read_image(folder / "pool" / row.image), read_mask(folder / "pool" / row.mask)
        good_u8 = read_image(folder / "data" / row.source_image)
        assert mask.any()
        np.testing.assert_array_equal(image_u8[~mask], good_u8[~mask])
        assert (image_u8[mask] != good_u8[mask]).any()


def test_sources_are_training_images(prepared, pool):
    _, data, _ = prepared
    check_sources(pool, data)
    known = data[(data["split"] == "train") & (data["label"] == "positive")]
    type_of = dict(zip(known["image"], known["defect_type"], strict=True))
    assert [type_of[source] for source in pool["defect_source"]] == pool["defect_type"].tolist()
    assert [find_leaks(pool, scenario) for scenario in SCENARIOS] == ["few_shot", "", ""]


def test_training_sets_know_where_defects_come_from(prepared, pool):
    _, data, _ = prepared
    rows = compose_training_set(data, RunPools({"cut_paste": pool}), Run("full-shot", "cut_paste", 6, 0))
    assert (rows["origin"] == "cut_paste").sum() == 6
    assert ((rows["split"] == "train") & (rows["label"] == "positive")).sum() == 6 + 4
    with pytest.raises(
        MixingError, match=r"8 problem.*\n.*is a real positive that this scenario does not know"
    ):
        compose_training_set(data, RunPools({"cut_paste": pool}), Run("zero-shot", "cut_paste", 6, 0))
