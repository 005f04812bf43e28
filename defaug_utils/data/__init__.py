"""Data sets: their layouts, how they are prepared, the workshop's surfaces, downloads and exports."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "datasets": ["DatasetWarning", "draw_validation", "load_dataset", "summarise_dataset"],
        "download": ["download_dataset"],
        "export": ["FORMATS", "export_training_set", "list_tree"],
        "few_shot": ["count_few_shot", "draw_few_shot"],
        "masked_samples": ["load_masked_samples"],
        "preparation": ["prepare_dataset"],
        "samples": ["count_samples", "load_samples"],
        "surfaces": ["write_surfaces"],
    },
)
