"""The methods that make pools, one class each, and their components."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adabldm": ["AdaBLDM", "blend_batch", "blend_jobs"],
        "blending": ["BlendSettings", "compare_decoders", "tabulate_errors", "watch_images"],
        "cut_paste": ["CutPaste"],
        "ddpm": ["DDPM", "merge_adapter"],
        "diag": ["DIAG", "TunedDIAG"],
        "likeness": ["Likeness", "fit_likeness"],
        "memseg": ["MemSeg", "MemSegSettings", "blend_anomaly", "draw_structure", "draw_texture"],
        "paste_refined": ["PasteRefined"],
        "painting": ["CheckLimits", "find_change"],
        "textures": ["open_textures"],
    },
)
