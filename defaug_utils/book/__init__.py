"""What makes a book of notebooks: their start and end, profiles, batches, stored results."""

import sys

import lazy_loader

# papermill imports jsonschema, and that a grammar of web addresses which takes 1.5 seconds to build. Every
# notebook has a process that would wait for it, and none checks such an address: it counts as not installed.
sys.modules.setdefault("rfc3987_syntax", None)

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "session": ["progress", "start_notebook", "watermark"],
    },
)
