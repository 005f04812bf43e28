"""An adapter as a folder for the Hugging Face hub: its weights and a card."""

import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCardData
from torch import Tensor

from defaug_utils.core.cards import write_card
from defaug_utils.core.files import stage_folder
from defaug_utils.core.licences import read_licence
from defaug_utils.core.texts import escape_markdown
from defaug_utils.diffusion.loading import HUB_ID
from defaug_utils.diffusion.lora import LoraError
from defaug_utils.diffusion.lora_files import ENDINGS, read_lora

WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
CARD_TEXT = """\
# LoRA adapter for surface defects

A LoRA adapter with which a text-to-image model makes images of one kind of surface.

## Base model

{base}. Its licence may set conditions for the adapter, see the model's card.

## Training

{training}

Licence of the real images that the adapter learned from: **{licence}**. The adapter can
reproduce these images, so their licence also applies to the adapter and to what it makes.

## Intended use

Additional images for training a defect detector on the same kind of surface, each reviewed by a person or by
automatic checks. Diffusers loads the adapter:

```python
pipeline.load_lora_weights(folder, weight_name="{weights}")
```

## Limits

- It only knows the surfaces that it was trained on, and may reproduce training images: compare its images
  with them.
- Its images have no masks.
- Never test a detector on its images: they don't show real parts.
"""


def export_adapter(
    adapter: Path | str, target: Path | str, data_folder: Path | str, base_model: str = ""
) -> Path:
    """Copy an adapter into a new folder with a model card, completely or not at all; returns the folder.

    Args:
        adapter: safetensors file, from `train_dreambooth` or elsewhere.
        target: folder to create, or an empty one.
        data_folder: prepared data set that it learned from, for the licence.
        base_model: hub id or path of its model; of a path, only the last part is shown.

    Raises:
        FileNotFoundError: there is no such file.
        LoraError: the file is not an adapter, or its training record can't be read; or the target is not
            empty.
    """
    adapter, target = Path(adapter), Path(target)
    tensors, header = read_lora(adapter)
    _check_adapter(tensors, adapter)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LoraError(f"{target} is not empty: choose another folder or empty it")
    fingerprint, training = _describe_training(header, adapter)
    is_on_hub = bool(HUB_ID.fullmatch(base_model)) and not Path(base_model).exists()
    data = ModelCardData(
        base_model=base_model if is_on_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license="other",
        license_name="that-of-the-data-and-of-the-base-model",
        tags=["lora", "surface-defect-detection"],
    )
    name = base_model if is_on_hub else Path(base_model).name
    text = CARD_TEXT.format(
        base=f"{escape_markdown(name) or 'It was not named'}{fingerprint}",
        training=training,
        licence=escape_markdown(read_licence(data_folder)),
        weights=WEIGHTS,
    )
    with stage_folder(target) as staging:
        shutil.copyfile(adapter, staging / WEIGHTS)
        write_card(staging, data, text)
    return target


def _check_adapter(tensors: dict[str, Tensor], path: Path) -> None:
    endings = tuple(ending for parts in ENDINGS.values() for ending in parts["down"])
    if not any(key.endswith(endings) for key in tensors):
        raise LoraError(f"{path} contains no adapter: choose a file that train_dreambooth or save_lora wrote")


def _describe_training(header: dict[str, str], path: Path) -> tuple[str, str]:
    """The base model's fingerprint and a sentence on the training, as recorded by `train_dreambooth`."""
    try:
        training = json.loads(header.get("training", "{}"))
        if not training:
            return "", "The file doesn't say how it was trained."
        settings, plan, shown = (training[part] for part in ("dreambooth", "lora", "trained_on"))
        instance, of_class = (escape_markdown(settings[f"{kind}_prompt"]) for kind in ("instance", "class"))
        told = (
            f"DreamBooth on {len(shown['instances'])} images with the prompt *{instance}* and on "
            f"{shown['class_images']} regularisation images with *{of_class}*: {settings['epochs']} epochs, "
            f"{settings['repeats']} repeats in each, learning rate {settings['learning_rate']:g}; rank "
            f"{plan['linear_rank']} in linear and 1 × 1 layers, {plan['conv_rank']} in 3 × 3 ones."
        )
        return f", fingerprint `{training['base']}`", told
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise LoraError(f"{path}: what it says of its training can't be read ({error!r})") from error
