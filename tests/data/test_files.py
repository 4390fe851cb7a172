"""A reader's own files: images as they are meant to be seen, sounds whole; the rest is refused."""

import os

import librosa
import numpy as np
import pytest
import soundfile
from PIL import Image

from xaiutils.data import assets, files
from xaiutils.data.excerpts import _load

RATE = 16_000
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def saved(tmp_path):
    """Function that saves an image under a name and returns the path."""

    def save(name, image, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def two_halves(mode="RGB", size=(40, 20)):
    """Left half red, right half blue."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)


def colour(array, row, column):
    return (array[:, row, column] * 255).round().astype(int).tolist()


def test_an_image_is_rgb_in_unit_range(saved):
    found = files.read_photograph(saved("a.png", two_halves()))
    assert found.shape == (3, 20, 40) and found.dtype == np.float32
    assert colour(found, 0, 0) == list(RED) and colour(found, 19, 39) == list(BLUE)


def test_the_orientation_of_exif_is_applied(saved):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    found = files.read_photograph(saved("a.png", two_halves(), exif=exif))
    assert found.shape == (3, 40, 20)
    assert colour(found, 0, 0) == list(RED) and colour(found, 39, 0) == list(BLUE)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "1"])
def test_grey_images_keep_their_brightness(saved, mode):
    grey = np.array([[0, 128, 255]], np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        assert image.mode == mode
    else:
        image = Image.fromarray(grey).convert(mode, dither=Image.Dither.NONE)
    found = files.read_photograph(saved("a.png", image))
    assert (found == found[:1]).all()
    expected = [0, 255, 255] if mode == "1" else [0, 128, 255]
    assert (found[0, 0] * 255).round().tolist() == expected


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bits_are_scaled_not_clipped(saved, name):
    deep = Image.fromarray(np.array([[0, 300, 32_896, 65_535]], np.uint16))
    found = files.read_photograph(saved(name, deep))
    assert (found[0, 0] * 255).round().tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_parts_are_white(saved, mode):
    if mode == "P":
        image, options = two_halves("P"), {"transparency": two_halves("P").getpixel((0, 0))}
        path = saved("a.png", image, **options)
    else:
        image = two_halves("RGBA")
        image.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 255]]), 20, 1).repeat(20, 0)))
        path = saved("a.png" if mode != "PA" else "a.tiff", image.convert("RGBA"))
        if mode == "LA":
            path = saved("b.png", image.convert("LA"))
    found = files.read_photograph(path)
    assert colour(found, 5, 0) == [255, 255, 255]
    assert colour(found, 5, 39) != [255, 255, 255]


def test_half_transparent_pixels_are_mixed_with_white(saved):
    found = files.read_photograph(saved("a.png", Image.new("RGBA", (4, 4), (255, 0, 0, 128))))
    assert colour(found, 0, 0) == [255, 127, 127]


def test_cmyk_is_converted(saved):
    found = files.read_photograph(saved("a.jpg", two_halves("CMYK"), quality=95))
    red, blue = colour(found, 10, 2), colour(found, 10, 37)
    assert red[0] > 240 and max(red[1:]) < 15
    assert blue[2] > 240 and max(blue[:2]) < 15


def test_of_an_animation_the_first_frame_is_taken(saved):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    path = saved("a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert colour(files.read_photograph(path), 0, 0) == list(RED)


@pytest.mark.parametrize(
    ("size", "box"), [((60, 20), (20, 0, 40, 20)), ((20, 60), (0, 20, 20, 40))]
)
def test_the_central_square_is_resized(saved, size, box):
    content = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(content)
    expected = np.asarray(image.crop(box).resize((8, 8), Image.Resampling.BICUBIC)) / 255
    found = files.read_photograph(saved("a.png", image), 8)
    inner = np.s_[:, 2:6, 2:6]  # towards the edges pixels beyond them count a little
    np.testing.assert_allclose(found[inner], expected.transpose(2, 0, 1)[inner], atol=1.5 / 255)
    with pytest.raises(ValueError, match="size is 0"):
        files.read_photograph(saved("a.png", image), 0)


@pytest.mark.parametrize("kind", ["I", "F"])
def test_pixels_without_a_fixed_white_are_refused(saved, kind):
    path = saved(
        "a.tiff", Image.fromarray(np.ones((4, 4), np.int32 if kind == "I" else np.float32))
    )
    with pytest.raises(files.FileError, match=r"a\.tiff has 32-bit pixels"):
        files.read_photograph(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_truncated_image_is_refused(saved, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(name, Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(files.FileError, match=rf"{name} cannot be read as an image: .*truncated"):
        files.read_photograph(path)


@pytest.mark.parametrize("read", [files.read_photograph, files.read_sound])
def test_what_is_no_readable_file_is_named(tmp_path, read):
    with pytest.raises(files.FileError, match=r"there is no file .*nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(files.FileError, match="is a folder"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(files.FileError, match="pipe is no regular file"):
        read(tmp_path / "pipe")
    for name, content in (("a.txt", b"words"), ("empty.png", b""), ("a.raw", b"\0\1" * 50)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(files.UnknownFormatError, match=rf"{name} is no .* in a known format"):
            read(tmp_path / name)


def sound(seconds=2.0, rate=RATE, channels=1):
    """Noise under a gliding tone; its MP3 has frames that borrow bits from those before."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(size=(t.size, channels))
    tone = 0.3 * np.sin(2 * np.pi * 440 * t * (1 + 0.1 * t))[:, None] + 0.1 * noise
    return (tone * np.where(np.sin(2 * np.pi * 1.3 * t) > 0, 1, 0.1)[:, None]).astype(np.float32)


@pytest.mark.parametrize("name", ["vocadito_14.wav", "calm_acoustic_1.opus"])
def test_a_sound_is_what_librosa_loads(name):
    path = assets.path(name)
    expected, _ = librosa.load(path, sr=RATE, mono=True)
    found = files.read_sound(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(_load(path), expected)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_channels_are_averaged_and_rates_changed(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    stereo = sound(rate=44_100, channels=2)
    soundfile.write(path, stereo, 44_100)
    found = files.read_sound(path)
    assert found.shape == (2 * RATE,)
    expected = librosa.resample(stereo.mean(1), orig_sr=44_100, target_sr=RATE)
    assert np.corrcoef(found, expected)[0, 1] > 0.97


def test_a_part_of_an_mp3_is_cut_from_the_whole(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, sound(5), RATE)
    whole, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(files.read_sound(path), whole, atol=1e-6)
    # Why: from an offset other samples come.
    differences = [
        np.abs(soundfile.read(path, start=s, frames=RATE)[0] - whole[s : s + RATE]).max()
        for s in range(0, 4 * RATE, 1000)
    ]
    assert max(differences) > 0.01


def test_sounds_that_hold_no_sound_are_refused(tmp_path):
    for name, samples, rate, message in (
        ("none.wav", np.zeros(0), RATE, r"none\.wav holds no samples"),
        ("nan.wav", np.array([0, np.nan, np.inf]), RATE, "2 of 3 samples are not finite"),
        ("slow.wav", np.zeros(100), 100, "has 100 samples a second; 4000 at least"),
    ):
        soundfile.write(tmp_path / name, samples, rate, subtype="FLOAT")
        with pytest.raises(files.FileError, match=message):
            files.read_sound(tmp_path / name)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    two_halves().save(path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(files.FileError, match=r"a\.png cannot be opened: Permission denied"):
        files.read_photograph(path)
