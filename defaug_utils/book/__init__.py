"""Making a book from notebooks: their start and end, profiles, batches, stored results."""

import sys

import lazy_loader

# papermill imports jsonschema, and that a grammar of web addresses that takes 1.5 seconds to build in each
# notebook's process. No notebook checks such addresses, so we treat it as not installed.
sys.modules.setdefault("rfc3987_syntax", None)

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "session": ["pause", "progress", "start_notebook", "watermark"],
    },
)
