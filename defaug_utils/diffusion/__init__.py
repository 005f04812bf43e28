"""Adapters to diffusion models; the only room that imports diffusers or peft."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapter_card": ["export_adapter"],
        "autoencoder": ["AdaptationSettings"],
        "controlnet": [
            *("ControlNetSettings", "TrimapModel"),
            *("load_trimap_model", "make_controlnet", "train_controlnet"),
        ],
        "dreambooth": ["keep_sample", "read_samples", "train_dreambooth"],
        "dreambooth_plan": ["DreamBoothSettings"],
        "inpainting": ["InpaintSettings", "inpaint_batch", "load_inpainter"],
        "jobs": ["InpaintJob"],
        "lora": ["LoraPlan", "count_planned"],
        "lora_files": ["load_lora", "save_lora"],
        "text2image": ["TextJob", "TextSettings", "generate_images", "load_text2image"],
        "training_images": ["BucketSettings", "count_buckets", "read_training_images"],
    },
)
