"""The embedded model as anyone would load it: plain diffusers and transformers calls, no download, no GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image
from transformers import ResNetForImageClassification
from worlds import WorldSample, draw_sample

MODEL = Path(__file__).parents[1] / "models" / "workshop"
IMAGENET_MEAN, IMAGENET_DEVIATION = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
UNSEEN_SEED = 2_000_000_000


@pytest.fixture(scope="module")
def inpainting():
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(MODEL / "inpainting")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def samples():
    return [draw_sample(UNSEEN_SEED + index) for index in range(24)]


def paint(
    pipeline: StableDiffusionInpaintPipeline, sample: WorldSample, prompt: str, steps: int = 3
) -> np.ndarray:
    return np.asarray(
        pipeline(
            prompt,
            image=Image.fromarray(sample.clean_u8),
            mask_image=Image.fromarray(sample.mask),
            width=128,
            height=384,
            num_inference_steps=steps,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    )


def test_folder_is_small_and_holds_no_pickle():
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".txt"}


def test_inpainting_answers_to_prompt_and_seed(inpainting, samples):
    first = paint(inpainting, samples[0], "a deep black hole")
    assert first.shape == (384, 128, 3)
    assert np.array_equal(first, paint(inpainting, samples[0], "a deep black hole"))
    assert not np.array_equal(first, paint(inpainting, samples[0], "white marks on the wall"))
    assert inpainting.unet.config.in_channels == 9


def test_words_matter(inpainting, samples):
    """In the same place and by the same seed, a white mark is brighter than a deep black hole."""
    place = np.s_[160:220, 40:90]
    mask = np.zeros((384, 128), bool)
    mask[place] = True
    brightness = [
        [paint(inpainting, s._replace(mask=mask), text, steps=8)[place].mean() for s in samples[:2]]
        for text in ("white mark", "a deep black hole")
    ]
    assert np.mean(brightness[0]) - np.mean(brightness[1]) > 15, "the model hardly hears its prompt"


def test_text_to_image_draws_the_workshop_size_by_default():
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL / "text2image")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("background", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[
        0
    ]
    assert image.size == (128, 384)
    assert np.asarray(image).std() > 0


@pytest.mark.parametrize(
    "text",
    ["skt background scratched", "white marks on the wall", "copper metal scratches", "xylophon", "größe"],
)
def test_tokenizer_gives_text_back(inpainting, text):
    tokenizer = inpainting.tokenizer
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == tokenizer.model_max_length
    assert tokenizer.unk_token_id not in ids[1 : ids.index(tokenizer.eos_token_id)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_caption_words_are_single_tokens(inpainting):
    assert len(inpainting.tokenizer.tokenize("background cracked scratched white marks on the wall")) == 8


def test_text_encoder_ends_at_the_tokenizers_end(inpainting):
    assert inpainting.text_encoder.config.eos_token_id == inpainting.tokenizer.eos_token_id


@torch.no_grad()
def test_autoencoder_gives_unseen_parts_back(inpainting, samples):
    images = np.stack([sample.image_u8 for sample in samples[:6]])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    decoded = inpainting.vae.decode(inpainting.vae.encode(pixels).latent_dist.mode()).sample
    error = (decoded.clamp(-1, 1) - pixels).square().mean() / 4
    assert -10 * torch.log10(error) > 24


@torch.no_grad()
def test_backbone_names_unseen_materials(samples):
    backbone = ResNetForImageClassification.from_pretrained(MODEL / "backbone").eval()
    images = np.stack([sample.clean_u8 for sample in samples])
    pixels = (images.astype(np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION
    logits = backbone(torch.from_numpy(pixels).permute(0, 3, 1, 2)).logits
    materials = [
        label for label in backbone.config.label2id if label in {s.words["material"] for s in samples}
    ]
    columns = [backbone.config.label2id[label] for label in materials]
    named = [materials[int(index)] for index in logits[:, columns].argmax(1)]
    right = [name == sample.words["material"] for name, sample in zip(named, samples, strict=True)]
    assert np.mean(right) > 0.5
