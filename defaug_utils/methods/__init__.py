"""The methods that make defects, one module each."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adabldm": ["BlendSettings", "watch_images"],
        "adabldm_batches": ["LatentStore", "blend_batch", "blend_jobs", "find_everything"],
        "adabldm_pool": ["make_adabldm_pool"],
        "changes": ["CheckLimits", "find_change"],
        "cut_paste_pool": ["make_cut_paste_pool"],
        "ddpm": ["make_ddpm_pool", "make_regularisation_pool", "merge_adapter"],
        "decoder_comparison": ["compare_decoders", "hash_weights", "tabulate_errors"],
        "diag": ["make_diag_pool"],
        "diag_recipes": ["remake_image"],
        "memseg": ["MemSegSettings", "blend_anomaly", "draw_structure", "draw_texture"],
        "memseg_pool": ["make_memseg_image", "make_memseg_pool"],
        "painted_pools": ["list_failures"],
        "painted_recipes": ["read_recipe"],
        "textures": ["open_textures"],
    },
)
