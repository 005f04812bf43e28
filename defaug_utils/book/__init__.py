"""What makes a book of notebooks: their start and end, profiles, batches, stored results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "session": ["progress", "start_notebook", "watermark"],
    },
)
