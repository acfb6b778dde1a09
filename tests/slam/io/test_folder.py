"""Image folders: order, formats, and one sentence for each way they can be broken."""

import numpy as np
import pytest
from PIL import Image

from slam.io.folder import FolderSource
from slam.io.frames import Source, SourceError
from slam.io.images import read_depth, read_rgb
from tests.slam.io.recordings import number_of, picture, write_images


def test_frames_come_in_natural_order_with_numbered_times(tmp_path):
    folder = write_images(tmp_path / "shots", ["img1.png", "img2.png", "img9.png", "img10.png"])
    (folder / "notes.txt").write_text("no image")
    (folder / "._img1.png").write_bytes(b"a Mac's shadow file")
    source = FolderSource(folder, fps=10.0)
    assert isinstance(source, Source)
    assert (source.name, source.num_frames) == ("shots", 4)
    for _ in range(2):  # iterable again
        frames = list(source)
        assert [number_of(f.rgb) for f in frames] == [0, 1, 2, 3]
        assert [f.index for f in frames] == [0, 1, 2, 3]
        assert [f.timestamp for f in frames] == [0.0, 0.1, 0.2, 0.3]
    assert frames[3].origin == str(folder / "img10.png")
    assert frames[0].depth is None and frames[0].T_WC is None and frames[0].K is None


def test_thirty_images_a_second_unless_told(tmp_path):
    folder = write_images(tmp_path, ["0.png", "1.png"])
    assert list(FolderSource(folder))[1].timestamp == 1 / 30


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tif", "webp"])
def test_lossless_formats_come_through_unchanged(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(image).save(tmp_path / f"a.{suffix}", **options)
    (frame,) = FolderSource(tmp_path)
    np.testing.assert_array_equal(frame.rgb, image)
    assert frame.rgb.dtype == np.uint8


def test_jpeg_has_the_right_channels(tmp_path):
    Image.fromarray(picture(7)).save(tmp_path / "a.jpeg", quality=95)
    assert number_of(read_rgb(tmp_path / "a.jpeg")) == 7


def test_grey_alpha_palette_and_deep_images_become_rgb(tmp_path):
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
    expected = np.repeat(grey[..., None], 3, axis=2)
    deep = grey.astype(np.uint16) * 256 + 37
    alpha = np.dstack([expected, np.arange(20, dtype=np.uint8).reshape(4, 5)])
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    for name in ("grey.png", "deep.png", "deep.tif", "alpha.png", "palette.png"):
        np.testing.assert_array_equal(read_rgb(tmp_path / name), expected, err_msg=name)


def test_exif_rotation_is_applied_and_counts_for_the_size(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side; upright after a clockwise quarter turn
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.rot90(image, -1)).save(tmp_path / "b.png")
    first, second = FolderSource(tmp_path)
    np.testing.assert_array_equal(first.rgb, second.rgb)


def test_calibration_beside_the_images(tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    (tmp_path / "calibration.txt").write_text("60 61 32.5 24.5\n")
    for frame in FolderSource(tmp_path):
        np.testing.assert_array_equal(frame.K, [[60, 0, 32.5], [0, 61, 24.5], [0, 0, 1]])


def test_missing_folder(tmp_path):
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        FolderSource(tmp_path / "nowhere")


def test_folder_without_images_says_where_they_may_be(tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(SourceError, match=r"folder without images; expected \.jpg"):
        FolderSource(tmp_path)
    write_images(tmp_path / "cam0", ["0.png"])
    with pytest.raises(SourceError, match=r"there are some in .*cam0: pass that folder"):
        FolderSource(tmp_path)


def test_mixed_sizes_are_refused_at_once_naming_both(tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    Image.fromarray(picture(2, height=30, width=40)).save(tmp_path / "2.png")
    with pytest.raises(SourceError, match=r"2\.png: image is 40x30 but .*0\.png is 64x48"):
        FolderSource(tmp_path)


def test_garbage_in_an_image_file_is_named_at_once(tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    (tmp_path / "1.png").write_bytes(b"garbage" * 100)
    with pytest.raises(SourceError, match=r"1\.png: not an image"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
def test_truncated_image_is_named_and_never_half_read(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    path = tmp_path / f"0.{suffix}"
    Image.fromarray(image).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match=rf"0\.{suffix}: (unreadable image|not an image)"):
        list(FolderSource(tmp_path))


def test_image_that_vanishes_while_running(tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    frames = iter(FolderSource(tmp_path))
    next(frames)
    (tmp_path / "1.png").unlink()
    with pytest.raises(SourceError, match=r"1\.png: .*is gone"):
        next(frames)


def test_floating_point_image_is_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "0.tif")
    with pytest.raises(SourceError, match=r"0\.tif: holds floating-point values"):
        list(FolderSource(tmp_path))


def test_colour_image_is_no_depth(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "d.png")
    with pytest.raises(SourceError, match=r"d\.png: expected a depth image"):
        read_depth(tmp_path / "d.png", 1000.0)


def test_pixels_are_looked_at_when_their_turn_comes(tmp_path):
    """On opening, headers are: a thousand images must not be decoded before the first is used."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(noise).save(tmp_path / name)
    damaged = tmp_path / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    frames = iter(FolderSource(tmp_path))
    assert (next(frames).rgb == noise).all()
    with pytest.raises(SourceError, match=r"b\.png: unreadable image"):
        next(frames)
