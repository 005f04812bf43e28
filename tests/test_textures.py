"""Texture collections: folders with wrong files, bounded memory, the built-in ones."""

import numpy as np
import pytest
from PIL import Image

from defaug_utils.methods.textures import (
    TextureCollection,
    open_builtin_textures,
    open_texture_folder,
    open_textures,
)


@pytest.fixture
def folder(tmp_path):
    """Three textures in two folders, one of them grey, and a file that is no image."""
    (tmp_path / "cracked").mkdir()
    Image.new("RGB", (10, 20), (200, 0, 0)).save(tmp_path / "cracked" / "rot ä.png")
    Image.new("L", (30, 30), 90).save(tmp_path / "grey.jpg")
    Image.new("RGBA", (5, 5), (1, 2, 3, 0)).save(tmp_path / "alpha.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_is_read_recursively_in_order(folder):
    textures = open_texture_folder(folder)
    assert textures.names == ("alpha.png", "cracked/rot ä.png", "grey.jpg")
    red = textures.read(1, (8, 24))
    assert red.shape == (24, 8, 3)
    assert (red == [200, 0, 0]).all()


def test_every_broken_file_is_reported_at_once(folder):
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "cracked" / "cut.jpg").write_bytes((folder / "grey.jpg").read_bytes()[:100])
    with pytest.raises(ValueError, match="2 problem") as caught:
        open_texture_folder(folder)
    assert "broken.png" in str(caught.value)
    assert "cut.jpg" in str(caught.value)


def test_missing_and_empty_folders_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no texture folder"):
        open_textures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="contains no images"):
        open_textures(tmp_path)


def test_the_hash_knows_the_contents(folder):
    before = open_texture_folder(folder).describe()
    Image.new("RGB", (10, 20), (201, 0, 0)).save(folder / "cracked" / "rot ä.png")
    after = open_texture_folder(folder).describe()
    assert before["count"] == after["count"] == 3
    assert before["sha256"] != after["sha256"]


def test_the_cache_stays_within_its_bytes_and_saves_reading():
    read = []

    def draw(name: str) -> np.ndarray:
        read.append(name)
        return np.full((10, 10, 3), int(name), np.uint8)

    textures = TextureCollection(["0", "1", "2"], draw, "", cache_bytes=2 * 300)
    for index in (0, 1, 1, 0, 2, 0, 1):
        assert (textures.read(index, (10, 10)) == index).all()
    assert read == ["0", "1", "2", "1"]  # 1 was the least recently used when 2 came


def test_builtin_textures_are_many_and_differ():
    textures = open_builtin_textures()
    assert len(textures) >= 20
    small = {textures.read(index, (16, 16)).tobytes() for index in range(len(textures))}
    assert len(small) == len(textures)


def test_shared_textures_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        open_builtin_textures().read(0, (8, 8))[0, 0] = 0
