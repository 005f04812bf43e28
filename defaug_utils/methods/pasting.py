"""What cut-and-paste and its refinement share: real defects, rotated and scaled, in good images."""

from defaug_utils.masks.sources import FEW_SHOT
from defaug_utils.masks.trimaps import Triple, TripleSet, make_triple


def describe_pastes(triples: TripleSet) -> dict:
    """The triples' sources and settings, without their own seed and count, which are not used."""
    described = triples.describe()
    del described["seed"], described["triples"]
    return {"triples": described, "learned_from": triples.list_names()["defects"]}


def paste_by_seed(triples: TripleSet, seed: int) -> tuple[Triple, dict]:
    """The triple of a seed, and the manifest columns that describe its sources."""
    triple = make_triple(triples.defects, triples.goods, triples.settings, seed)
    (defect,) = {defect[2:4] for defect in triples.defects if defect.name == triple.defect}
    row = {
        "source_image": triple.good,
        "category": defect[0],
        "defect_type": defect[1],
        "mask_source": FEW_SHOT,
        "defect_source": triple.defect,
    }
    return triple, row
