"""Where a defect goes, and what shape it has."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "catalogue": ["read_catalogue", "write_catalogue"],
        "objects": ["open_object_finder"],
        "patches": ["read_defects"],
        "shapes": ["ShapePriors", "draw_perlin_noise", "rotate_noise", "threshold_noise"],
        "sources": ["MASK_SOURCES", "is_leak", "open_masks"],
        "trimaps": ["TripleSet", "TripleSettings", "TurnedMasks", "read_good_images", "write_prompt"],
    },
)
