"""Tables, curves and figures of results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "curves": [
            "plot_adaptation",
            "plot_augmentation_curves",
            "plot_finetuning",
            "plot_loss",
            "plot_memorisation",
            "plot_precision_recall",
        ],
        "decision_plots": ["plot_gains", "plot_shares", "tabulate_shares"],
        "papers": ["judge_claims", "list_missing_arms", "list_tables", "published_results", "rebuild_table"],
        "pictures": [
            "NotebookFigure",
            "choose_shown",
            "choose_window",
            "show_copies",
            "show_images",
            "show_pool",
            "show_score_maps",
        ],
        "results": [
            "PIXEL_NUMBERS",
            "compare_spreads",
            "gather_results",
            "label_arm",
            "list_unfinished",
            "measure_optimism",
            "paired_differences",
            "read_pixel_runs",
            "summarise_results",
        ],
        "sentences": [
            "describe_claims",
            "describe_differences",
            "describe_chance",
            "describe_findings",
            "describe_leaks",
            "describe_optimism",
            "describe_quality",
            "describe_runs",
            "describe_spreads",
            "describe_unfinished",
        ],
        "tables": [
            "PAPER_PROTOCOL",
            "compare_protocols",
            "layout_differences",
            "layout_quality",
            "layout_results",
            "layout_spreads",
            "list_runs",
            "name_layer",
            "name_setup",
            "name_weights",
            "style_table",
        ],
    },
)
