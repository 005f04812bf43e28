"""Data sets: layouts, loading, preparation, few-shot draws, the workshop's surfaces, downloads, exports."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "contact_sheet": ["write_contact_sheet"],
        "datasets": [
            "choose_positives",
            "draw_few_shot",
            "draw_validation",
            "list_untested",
            "load_dataset",
            "summarise_dataset",
        ],
        "download": ["download_dataset"],
        "export": ["FORMATS", "export_training_set", "list_tree"],
        "flaws": ["read_changes"],
        "preparation": ["prepare_dataset", "summarise_crops"],
        "samples": [
            *("count_samples", "hash_samples", "load_masked_samples", "load_samples", "select_samples"),
        ],
        "surfaces": ["draw_surface", "write_surfaces"],
    },
)
