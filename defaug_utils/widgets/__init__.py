"""Notebook widgets for drawing masks, generating images and reviewing them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "catalogue_form": ["CatalogueForm"],
        "mask_drawing": ["MaskCanvas", "MaskDrawer"],
        "review_grid": ["ReviewGrid"],
        "studio": ["Studio", "StudioRequest"],
        "studio_panel": ["StudioPanel", "make_review_form"],
    },
)
