"""Image files: colour and depth, read so that every malformed file has a sentence of its own."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from slam.io.frames import SourceError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""Which files of a folder are taken for images, in lower case."""

_EXIF_ORIENTATION = 0x0112
_DEEP_GREY = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files directly in ``folder``, in natural order; hidden files are left out."""
    files = (f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    return sorted((f for f in files if not f.name.startswith(".")), key=natural_key)


def natural_key(path: pathlib.Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sorting key that counts: ``2.png`` before ``10.png``."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name.casefold())
    key = [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts]
    return key, path.name


def image_size(path: pathlib.Path) -> tuple[int, int]:
    """``(width, height)`` from the file's header, as shown (EXIF rotation included)."""
    with _opened(path) as image:
        width, height = image.size
        # Of a PNG whose header has no such tag, Pillow would decode all to look behind the pixels.
        tagged = image.format != "PNG" or "exif" in image.info
        turned = tagged and image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def check_one_size(paths: list[pathlib.Path]) -> tuple[int, int]:
    """The images' common ``(width, height)``.

    Raises ``SourceError`` unless all headers are readable and tell the same.
    """
    first = image_size(paths[0])
    for path in paths[1:]:
        size = image_size(path)
        if size != first:
            raise SourceError(mixed_sizes(str(path), size, str(paths[0]), first))
    return first


def mixed_sizes(
    origin: str, size: tuple[int, int], first_origin: str, first: tuple[int, int]
) -> str:
    """The sentence for an image whose ``(width, height)`` differs from the first one's."""
    return (
        f"{origin}: image is {size[0]}x{size[1]} but {first_origin} is {first[0]}x{first[1]}; "
        "all images of a run must have one size, so resize them or run the parts separately"
    )


def read_rgb(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB bytes, turned upright by its EXIF tag.

    Grey images repeat their channel, palettes are resolved, transparency is dropped, and of 16-bit
    values the high byte is kept. Raises ``SourceError`` for what cannot be read in full.
    """
    with _opened(path) as image:
        if image.mode == "F":
            raise SourceError(f"{path}: holds floating-point values; convert it to 8-bit RGB")
        image = ImageOps.exif_transpose(image)
        if image.mode in _DEEP_GREY:
            grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.array(image.convert("RGB"))


def read_depth(path: pathlib.Path, units_per_metre: float) -> Float32[np.ndarray, "h w"]:
    """A one-channel integer depth image in metres; 0 stays 0, unknown.

    Raises ``SourceError`` for what cannot be read in full and for colour images.
    """
    with _opened(path) as image:
        if image.mode not in _DEEP_GREY | {"L"}:
            raise SourceError(
                f"{path}: expected a depth image with one 16-bit channel, found mode {image.mode}"
            )
        return (np.asarray(image).astype(np.float64) / units_per_metre).astype(np.float32)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """Pillow's image, its errors turned into ours (also those of decoding within the block)."""
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise SourceError(f"{path}: not an image this program can read") from error
    except FileNotFoundError as error:
        raise SourceError(f"{path}: missing image") from error
    except SourceError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow reports a cut or damaged file as any of these, depending on the format.
        raise SourceError(f"{path}: unreadable image ({error})") from error
