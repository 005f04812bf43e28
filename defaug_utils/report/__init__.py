"""Tables, curves and pictures of results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "curves": [
            "plot_augmentation_curves",
            "plot_finetuning",
            "plot_memorisation",
            "plot_precision_recall",
        ],
        "pictures": [
            "NotebookFigure",
            "choose_shown",
            "choose_window",
            "show_copies",
            "show_images",
            "show_pool",
            "show_score_maps",
        ],
        "results": ["PIXEL_NUMBERS", "label_arm", "read_pixel_runs"],
        "tables": ["format_digits", "style_table"],
    },
)
