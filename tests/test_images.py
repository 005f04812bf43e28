"""Images and masks of every PNG flavour come in the same form; no defect is lost by shrinking."""

import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from defaug_utils.core.images import crop_box, fit_image, fit_mask, read_image, read_mask

GREY_U8 = np.array([[0, 10], [128, 255]], np.uint8)
GREY_RGB = np.repeat(GREY_U8[..., None], 3, axis=2)


def write_deep_png(path, values_u16: np.ndarray) -> None:
    """A 16-bit RGB PNG, which Pillow reads but can't write."""
    height, width, _ = values_u16.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values_u16)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = b""
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def grey_flavours() -> dict[str, Image.Image]:
    grey = Image.fromarray(GREY_U8)
    palette = Image.fromarray(np.array([[3, 1], [0, 2]], np.uint8), "P")
    palette.putpalette([128] * 3 + [10] * 3 + [255] * 3 + [0] * 3)
    return {
        "grey": grey,
        "rgb": grey.convert("RGB"),
        "grey and alpha": Image.merge("LA", (grey, Image.new("L", (2, 2), 7))),
        "rgba": Image.merge("RGBA", (grey, grey, grey, Image.new("L", (2, 2), 7))),
        "16-bit grey": Image.fromarray(GREY_U8.astype(np.uint16) * 257),
        "palette": palette,
    }


@pytest.mark.parametrize("flavour", list(grey_flavours()))
def test_every_flavour_is_read_as_the_same_rgb_image_and_mask(tmp_path, flavour):
    grey_flavours()[flavour].save(tmp_path / "part.png")
    image_u8, mask = read_image(tmp_path / "part.png"), read_mask(tmp_path / "part.png")
    assert image_u8.dtype == np.uint8 and mask.dtype == bool
    np.testing.assert_array_equal(image_u8, GREY_RGB)
    np.testing.assert_array_equal(mask, [[False, True], [True, True]])


def test_palette_with_transparency_is_resolved_without_a_warning(tmp_path, recwarn):
    grey_flavours()["palette"].save(tmp_path / "part.png", transparency=bytes([0, 128, 255, 255]))
    np.testing.assert_array_equal(read_image(tmp_path / "part.png"), GREY_RGB)
    assert not recwarn.list


def test_one_bit_mask(tmp_path):
    Image.fromarray(GREY_U8 > 100).convert("1").save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), GREY_U8 > 100)


def test_faint_16_bit_masks_keep_their_defects(tmp_path):
    values_u16 = np.array([[0, 1], [255, 65535]], np.uint16)
    Image.fromarray(values_u16).save(tmp_path / "grey.png")
    write_deep_png(tmp_path / "rgb.png", np.stack([values_u16, 0 * values_u16, 0 * values_u16], axis=2))
    for name in ("grey.png", "rgb.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), values_u16 > 0)


def test_16_bit_colours_are_scaled_to_8_bits(tmp_path):
    write_deep_png(tmp_path / "part.png", GREY_RGB.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "part.png"), GREY_RGB)


def test_alpha_alone_makes_no_mask(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 255)).save(tmp_path / "mask.png")
    assert not read_mask(tmp_path / "mask.png").any()


def test_orientation_tag_is_obeyed_by_image_and_mask(tmp_path):
    upright = np.array([[[250, 0, 0], [0, 0, 0]]], np.uint8)  # one row; the camera was turned by 90°
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(upright).save(tmp_path / "part.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "part.png"), np.rot90(upright, -1))
    np.testing.assert_array_equal(read_mask(tmp_path / "part.png"), [[True], [False]])


LOSSY = {
    "photo.jpg": {},
    "disguised.png": {"format": "JPEG"},
    "scan.tif": {"compression": "jpeg"},
    "web.webp": {},
}


def test_masks_compressed_with_loss_are_refused_by_their_content(tmp_path):
    stored = Image.fromarray(np.kron(GREY_U8, np.ones((9, 9), np.uint8)))
    for name, options in LOSSY.items():
        stored.save(tmp_path / name, **options)
        assert read_image(tmp_path / name).shape == (18, 18, 3)
        with pytest.raises(ValueError, match=rf"{name}: is a .* file, whose compression noise .* PNG"):
            read_mask(tmp_path / name)
    for name, options in {"a.jpg": {"format": "PNG"}, "b.webp": {"lossless": True}, "c.tif": {}}.items():
        stored.save(tmp_path / name, **options)
        np.testing.assert_array_equal(read_mask(tmp_path / name), np.asarray(stored) > 0)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_unreadable_files_are_named(tmp_path, read):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "flipped.png").write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    for name in ("truncated.png", "text.png", "empty.png", "flipped.png", "missing.png"):
        with pytest.raises(ValueError, match=f"{name}: not a readable image"):
            read(tmp_path / name)


def test_images_larger_than_any_camera_are_refused(tmp_path, monkeypatch):
    Image.new("L", (50, 50)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png: not a readable image"):
        read_image(tmp_path / "bomb.png")


def test_fractions_are_refused(tmp_path):
    Image.fromarray(np.array([[0.2, 0.7]], np.float32)).save(tmp_path / "height map.tif")
    with pytest.raises(ValueError, match=r"height map\.tif: has floating-point pixels"):
        read_image(tmp_path / "height map.tif")


def slow_fit_mask(mask: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Pixel by pixel, from the definition: source pixel x covers [x, x + 1) of the source's width."""
    left, top, right, bottom = crop_box(mask.shape, size, fit)
    part = mask[top:bottom, left:right]
    (height, width), fitted = part.shape, np.zeros(size[::-1], bool)
    for row, column in np.ndindex(fitted.shape):
        for y, x in np.argwhere(part):
            overlaps_y = y * size[1] < (row + 1) * height and (y + 1) * size[1] > row * height
            overlaps_x = x * size[0] < (column + 1) * width and (x + 1) * size[0] > column * width
            fitted[row, column] |= overlaps_y and overlaps_x
    return fitted


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=40)
@given(arrays(bool, SIZES), SIZES, st.sampled_from(["resize", "centre_crop"]))
def test_fit_mask_equals_the_slow_reference(mask, size, fit):
    np.testing.assert_array_equal(fit_mask(mask, size, fit), slow_fit_mask(mask, size, fit))


@given(SIZES, SIZES, st.data())
def test_a_single_pixel_is_never_lost(shape, size, data):
    mask = np.zeros(shape, bool)
    mask[data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))] = True
    assert fit_mask(mask, size).any()


def test_same_size_leaves_image_and_mask_as_they_are():
    rng = np.random.default_rng(0)
    image_u8 = rng.integers(0, 255, (31, 17, 3), dtype=np.uint8)
    mask = rng.random((31, 17)) > 0.9
    for fit in ("resize", "centre_crop"):
        np.testing.assert_array_equal(fit_image(image_u8, (17, 31), fit), image_u8)
        np.testing.assert_array_equal(fit_mask(mask, (17, 31), fit), mask)


def test_centre_crop_of_ksdd2_to_200_by_600():
    # 230 × 630 holds 210 × 630 at the aspect of 1 : 3, with 10 pixels left over on each side.
    assert crop_box((630, 230, 3), (200, 600), "centre_crop") == (10, 0, 220, 630)
    image_u8 = np.zeros((630, 230, 3), np.uint8)
    image_u8[:, 10:220] = 200
    assert (fit_image(image_u8, (200, 600), "centre_crop") == 200).all()
    assert fit_mask(image_u8.any(axis=2), (200, 600), "centre_crop").all()


@given(SIZES, SIZES)
def test_crop_box_stays_inside_and_is_the_largest_of_its_aspect(shape, size):
    left, top, right, bottom = crop_box(shape, size, "centre_crop")
    assert 0 <= left < right <= shape[1] and 0 <= top < bottom <= shape[0]
    assert right - left == shape[1] or bottom - top == shape[0]


def test_unknown_fit_and_empty_size_are_refused():
    with pytest.raises(ValueError, match="fit 'squeeze' is not one of resize, centre_crop"):
        fit_mask(np.ones((2, 2), bool), (2, 2), "squeeze")
    with pytest.raises(ValueError, match="at least 1 × 1 pixel"):
        fit_image(np.ones((2, 2, 3), np.uint8), (0, 2))


def test_a_file_of_several_pictures_is_refused(tmp_path):
    empty, full = (Image.new("L", (4, 6), value) for value in (0, 255))
    for name in ("pages.tif", "frames.png", "frames.webp"):
        empty.save(tmp_path / name, save_all=True, append_images=[full], lossless=True)
        for read in (read_image, read_mask):
            with pytest.raises(ValueError, match=rf"{name}: contains 2 images"):
                read(tmp_path / name)
    full.convert("RGB").save(
        tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[empty.convert("RGB")]
    )
    assert (read_image(tmp_path / "phone.jpg") == 255).all(), "its second image is a preview"


def test_a_pipe_and_a_folder_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(ValueError, match=f"{name}: is not a regular file"):
            read_image(tmp_path / name)


def test_a_size_that_nobody_could_read_again_is_refused():
    with pytest.raises(ValueError, match=r"size \(100000, 100000\) must be .* at most"):
        crop_box((6, 4), (100_000, 100_000), "resize")
