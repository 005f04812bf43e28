"""The protocol for comparing methods: training sets, leaks and reviews."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "mixing": [
            *("LEAK_NOTE", "Mix", "compose_training_set"),
            *("count_by_origin", "count_reviews", "count_rows", "find_leaks"),
        ],
        "review_agreement": ["merge_reviews", "tabulate_agreement"],
        "run_folder": ["STUDIO_FOLDER", "RunPools", "read_data", "read_pools"],
        "scenarios": ["choose_instances", "read_review", "read_scenarios", "record_review", "settle_prompts"],
    },
)
