"""Training any network: one loop, checkpoints, memory, and the backbones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classifier": ["BACKBONES", "overlay_saliency", "saliency_map"],
        "features": ["average_features", "open_features"],
        "loop": ["StepPlan", "run_steps"],
        "memory": ["pick_device"],
        "recipes": ["RECIPES", "choose_recipe", "fit_epochs", "plan_epochs"],
    },
)
