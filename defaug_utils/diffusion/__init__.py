"""Adapters to diffusion models; the only room that imports diffusers or peft."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapter_card": ["export_adapter"],
        "autoencoder": ["AdaptationSettings", "decode_latents", "encode_images", "to_floats", "to_u8"],
        "controlnet": [
            *("ControlNetSettings", "TrimapModel"),
            *("load_trimap_model", "make_controlnet", "train_controlnet"),
        ],
        "dreambooth": ["keep_sample", "read_samples", "train_dreambooth"],
        "dreambooth_plan": ["DreamBoothSettings", "weigh_noise_levels"],
        "inpainting": ["InpaintSettings", "inpaint_batch", "load_inpainter"],
        "inpainting_lora": [
            "InpaintingLoraSettings",
            "merge_inpainting_lora",
            "read_masked_defects",
            "train_inpainting_lora",
        ],
        "jobs": ["InpaintJob"],
        "lora": ["LoraPlan", "attach_lora", "count_planned"],
        "lora_files": ["load_lora", "save_lora"],
        "text2image": [
            *("TextJob", "TextSettings"),
            *("embed_prompts", "generate_images", "load_text2image", "make_ddim"),
        ],
        "trimap_models": ["load_trimap_models"],
        "training_images": ["BucketSettings", "count_buckets", "read_training_images"],
    },
)
