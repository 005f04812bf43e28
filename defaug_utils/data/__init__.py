<<<<<<< HEAD
"""Data sets: layouts, loading, preparation, few-shot draws, the workshop's surfaces, downloads, exports."""
=======
"""Data sets: their layouts, how they are prepared, the workshop's surfaces, downloads and exports."""
>>>>>>> main

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
<<<<<<< HEAD
        "datasets": [
            "DatasetWarning",
            "count_few_shot",
            "draw_few_shot",
            "draw_validation",
            "load_dataset",
            "summarise_dataset",
        ],
        "download": ["download_dataset"],
        "export": ["FORMATS", "export_training_set", "list_tree"],
        "layouts": ["DatasetError"],
        "preparation": ["prepare_dataset"],
        "samples": ["count_samples", "load_masked_samples", "load_samples"],
        "surfaces": ["draw_surface", "write_surfaces"],
=======
        "datasets": ["DatasetWarning", "draw_validation", "load_dataset", "summarise_dataset"],
        "download": ["download_dataset"],
        "export": ["FORMATS", "export_training_set", "list_tree"],
        "few_shot": ["count_few_shot", "draw_few_shot"],
        "masked_samples": ["load_masked_samples"],
        "preparation": ["prepare_dataset"],
        "samples": ["count_samples", "load_samples"],
        "surfaces": ["write_surfaces"],
>>>>>>> main
    },
)
