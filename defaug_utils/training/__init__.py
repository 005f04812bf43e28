"""Training networks: a resumable loop, memory, and pretrained backbones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backbones": ["BACKBONES", "hash_weights", "open_features"],
        "loop": ["StepPlan", "run_steps"],
        "memory": ["pick_device"],
    },
)
