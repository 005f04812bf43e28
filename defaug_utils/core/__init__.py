"""What everything rests on: the manifest, images, files, generated pools, and the runs of the protocol."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "foreground": ["find_foreground"],
        "images": ["read_image", "read_mask"],
        "manifest": ["read_manifest"],
        "pools": ["GeneratedImage", "PoolPlan", "find_failed", "list_failures", "make_pool", "remake"],
        "prompts": ["make_prompts"],
        "runs": ["pool_name"],
        "sources": ["choose_positives", "list_sources", "read_dataset"],
    },
)
