"""Images through the autoencoder and back."""

import numpy as np
import torch
from tiny_models import make_parts

from defaug_utils.diffusion.autoencoder import autoencode_images, decode_latents, encode_images, to_floats


def test_images_come_back_one_by_one_as_in_batches():
    vae = make_parts(4)["vae"].eval()
    images = list(np.random.default_rng(0).integers(0, 256, (5, 32, 16, 3), dtype=np.uint8))
    returned = autoencode_images(vae, images, (16, 32), batch_size=2)
    assert [image.shape for image in returned] == [(32, 16, 3)] * 5
    assert all(image.dtype == np.uint8 for image in returned)
    for image, back in zip(images, returned, strict=True):
        with torch.no_grad():
            (decoded,) = decode_latents(vae, encode_images(vae, to_floats([image])))
        expected = ((decoded.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
        assert np.abs(back - expected).max() <= 1.01


def test_no_images_are_no_images():
    assert autoencode_images(make_parts(4)["vae"], [], (16, 32)) == []
