"""The foundation: the manifest, images, files, pools of generated images, and the runs of the protocol."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": ["read_csv", "write_csv", "write_json", "write_png"],
        "images": ["crop_box", "find_foreground", "fit_image", "fit_mask", "read_image", "read_mask"],
        "licences": ["read_licence"],
        "manifest": ["check_sources", "image_seed", "read_manifest", "rebase_manifest", "write_manifest"],
        "origins": [
            *("ORIGINS", "SCENARIOS", "Origin", "arm_shares", "find_judge", "list_arms", "parse_run_name"),
            *("planned_runs", "pool_name", "run_name"),
        ],
        "pools": [
            *("GeneratedImage", "PoolPlan", "find_failed", "find_unrestored", "list_failures"),
            *("make_pool", "make_pools", "read_recipe", "remake"),
        ],
        "prompts": ["choose_prompt", "make_prompts"],
        "sources": ["list_sources", "read_dataset"],
        "texts": ["escape_markdown", "escape_mathtext"],
    },
)
