"""Adapters to diffusion models; the only room that imports diffusers or peft."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "buckets": ["BucketSettings", "count_buckets"],
        "controlnet": ["TrimapModel", "load_trimap_model", "make_controlnet"],
        "controlnet_training": ["ControlNetSettings", "train_controlnet"],
        "decoder_adaptation": ["AdaptationSettings"],
        "dreambooth": ["train_dreambooth"],
        "dreambooth_images": ["read_training_images"],
        "dreambooth_plan": ["DreamBoothSettings", "plan_steps"],
        "inpaint": ["load_inpainter"],
        "inpaint_batches": ["InpaintJob", "inpaint_batch"],
        "inpaint_settings": ["InpaintSettings"],
        "latents": ["autoencode_images"],
        "lora": ["LoraPlan", "count_planned"],
        "lora_files": ["load_lora", "save_lora"],
        "text2image": ["TextJob", "TextSettings", "generate_images", "load_text2image"],
        "training_samples": ["keep_sample", "list_adapters", "read_samples"],
    },
)
