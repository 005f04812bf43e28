"""The protocol that compares them: training sets, leaks and reviews."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "leaks": ["LEAK_NOTE", "find_leaks"],
        "review_agreement": ["tabulate_agreement"],
        "reviews": ["Review", "read_review", "record_review", "settle_prompts"],
        "run_folder": ["STUDIO_FOLDER"],
        "scenario_plans": ["choose_instances", "read_scenarios"],
    },
)
