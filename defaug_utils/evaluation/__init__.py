"""Classifiers, detectors, and how they and the pools are measured."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classifier": ["ClassifierPlan", "count_training", "explain_images", "finish_classifier"],
        "detector": [
            "DETECTORS",
            "DetectorPlan",
            "build_detector",
            "compose_detector_set",
            "finish_detector",
            "read_score_maps",
        ],
        "linear_classifier": ["classify_linearly"],
        "metrics": ["measure_gain", "measure_scores", "tabulate_scores"],
        "patch_memory": [
            *("MemoryPlan", "compare_with_memory", "fit_memory", "read_memory", "score_by_memory"),
            *("spread_patches", "write_memory"),
        ],
        "pixel_metrics": ["measure_pixels"],
        "pool_quality": ["check_pool", "count_copies", "measure_pools", "open_copy_search"],
        "recipes": ["RECIPES", "fit_epochs", "plan_epochs"],
    },
)
