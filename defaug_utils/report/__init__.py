"""Tables, curves and pictures of results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "claims": ["describe_claims", "judge_claims"],
        "memorisation_plots": ["plot_finetuning", "plot_memorisation", "show_copies"],
        "paper_tables": ["list_tables", "rebuild_table"],
        "pixel_plots": ["show_score_maps"],
        "pixel_results": ["PIXEL_NUMBERS", "choose_shown", "read_pixel_runs"],
        "plots": ["NotebookFigure", "choose_window", "plot_precision_recall", "show_images", "show_pool"],
        "quality_reports": ["format_digits"],
        "reports": ["style_table"],
        "result_plots": ["label_arm", "plot_augmentation_curves"],
    },
)
