"""Where a defect goes, and of what shape it is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "defect_patches": ["read_defects"],
        "mask_shapes": ["ShapePriors"],
        "masks": ["MASK_SOURCES", "is_leak", "open_mask_source"],
        "object_foreground": ["fit_object_finder", "make_feature_reader"],
        "perlin": ["draw_perlin_noise", "rotate_noise", "threshold_noise"],
        "trimaps": ["TripleSet", "TripleSettings", "read_good_images", "write_prompt"],
        "turned_masks": ["TurnedMasks"],
    },
)
