"""Classifiers, detectors, and the numbers that they and the pools get."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "memorisation": ["copy_threshold", "count_copies", "find_copies"],
        "pool_quality": ["REAL", "UNTOUCHED", "measure_pools"],
        "segmentation": [
            "SEGMENTER_RECIPE",
            "measure_score_maps",
            "read_score_maps",
            "train_segmenter",
            "write_score_maps",
        ],
        "segmenter": ["build_segmenter"],
        "training": ["score_samples", "train_classifier"],
    },
)
