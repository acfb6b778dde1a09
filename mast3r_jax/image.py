"""From a camera's picture to the network's input, bit for bit as the original prepares it.

The long side is resized to the working size, then the centre is cropped to multiples of the patch.
This runs on the host with Pillow, whose fixed-point resampling is part of the definition: another
resampler differs by one grey level here and there, which a dense matcher notices.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8
from PIL import Image

PATCH = 16
"""Side of the network's patches; both image sides are multiples of it."""

SQUARE_CROP_SIZE = 224
"""The one working size whose images are square: short side to 224, centre square (MASt3R)."""


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Resize and centre crop, as sizes ``(height, width)`` and the crop's first ``(row, column)``.

    The original's ``half_crop`` is ``(resized - cropped) / 2`` and may end in .5 while the crop
    starts at a whole pixel. Intrinsics follow the former, as the original's do; pixels the latter.
    """

    source_shape: tuple[int, int]
    resized_shape: tuple[int, int]
    crop_start: tuple[int, int]
    shape: tuple[int, int]

    @property
    def scale_w(self) -> float:
        """Source pixels per prepared pixel along u."""
        return self.source_shape[1] / self.resized_shape[1]

    @property
    def scale_h(self) -> float:
        """Source pixels per prepared pixel along v."""
        return self.source_shape[0] / self.resized_shape[0]

    @property
    def half_crop_w(self) -> float:
        """Resized pixels cut off at the left, to half a pixel."""
        return (self.resized_shape[1] - self.shape[1]) / 2

    @property
    def half_crop_h(self) -> float:
        """Resized pixels cut off at the top, to half a pixel."""
        return (self.resized_shape[0] - self.shape[0]) / 2

    def intrinsics(self, K: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
        """Pinhole matrix of the prepared image from the one of the source image, in float64.

        ``fx / scale_w, fy / scale_h, cx / scale_w - half_crop_w, cy / scale_h - half_crop_h``.
        """
        K = np.asarray(K, np.float64)
        resize_and_crop = np.array(
            [
                [1 / self.scale_w, 0.0, -self.half_crop_w],
                [0.0, 1 / self.scale_h, -self.half_crop_h],
                [0.0, 0.0, 1.0],
            ]
        )
        return resize_and_crop @ K

    def resample(self, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "a b 3"]:
        """The source's image at the prepared resolution, by Pillow's filters."""
        height, width = self.resized_shape
        # Pillow's resize at unchanged size is a copy, so no case distinction is needed for it.
        shrinks = max(self.source_shape) > max(self.resized_shape)
        method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
        resized = np.asarray(Image.fromarray(rgb).resize((width, height), method))
        top, left = self.crop_start
        return resized[top : top + self.shape[0], left : left + self.shape[1]].copy()

    def sample_nearest(self, values: Shaped[np.ndarray, "h w *c"]) -> Shaped[np.ndarray, "a b *c"]:
        """Values of the source's pixels under the centres of the prepared pixels.

        For what must not be blended, such as depth. ``values`` has the source's height and width;
        the result the prepared ones.
        """
        if values.shape[:2] != self.source_shape:
            raise ValueError(
                f"values of shape {values.shape[:2]} do not belong to an image of "
                f"{self.source_shape} (height, width)"
            )
        rows, columns = (
            # The centre of prepared pixel i lies at (start + i + 1/2) * scale in source pixels.
            np.minimum(((start + np.arange(n) + 0.5) * full / resized).astype(np.intp), full - 1)
            for start, n, full, resized in zip(
                self.crop_start, self.shape, self.source_shape, self.resized_shape, strict=True
            )
        )
        return values[rows[:, None], columns[None, :]]


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """An image at the working resolution, with the way it got there."""

    pixels: Float32[np.ndarray, "h w 3"]
    """RGB in [-1, 1], the network's input."""
    rgb: UInt8[np.ndarray, "h w 3"]
    """The same image as bytes."""
    transform: ImageTransform
    """From the source's pixels to these."""


def prepare_image(rgb: np.ndarray, size: int = 512) -> PreparedImage:
    """Resize and crop an RGB image ``uint8[H, W, 3]`` for the network.

    With ``size`` 512, or any other multiple of 16, the long side becomes ``size`` and the centre is
    cropped to multiples of 16; a square image also gives up a quarter of its height. With 224 the
    short side becomes 224 and the centre square is kept. Both as in MASt3R (arXiv 2406.09756).

    Raises ``ValueError`` for anything but ``uint8[H, W, 3]``, for a ``size`` that is no positive
    multiple of 16, and for an image so narrow that less than one patch would remain of a side.
    """
    transform = plan(_shape_of(rgb), size)
    cropped = transform.resample(rgb)
    return PreparedImage(pixels=normalize(cropped), rgb=cropped, transform=transform)


def normalize(rgb: UInt8[np.ndarray, "*batch 3"]) -> Float32[np.ndarray, "*batch 3"]:
    """Bytes to the network's range [-1, 1]: ``(x / 255 - 0.5) / 0.5`` in float32."""
    half = np.float32(0.5)
    return (rgb.astype(np.float32) / np.float32(255) - half) / half


def plan(source_shape: tuple[int, int], size: int) -> ImageTransform:
    """The transform ``prepare_image`` applies to an image of ``(height, width)``; same errors."""
    if size <= 0 or size % PATCH:
        raise ValueError(f"working size {size} is not a positive multiple of {PATCH}; use 512")
    long_side, short_side = max(source_shape), min(source_shape)
    if short_side < 1:
        raise ValueError(f"image of {_named(source_shape)} has no pixels")
    square_crop = size == SQUARE_CROP_SIZE
    # Python's round goes half to even, like the original's; the order of operations matters too.
    target = round(size * (long_side / short_side)) if square_crop else size
    resized = (
        round(source_shape[0] * target / long_side),
        round(source_shape[1] * target / long_side),
    )
    height, width = (side // PATCH * PATCH for side in resized)
    if square_crop:
        height = width = min(resized) // 2 * 2
    elif resized[0] == resized[1]:
        height = 3 * width // 4 // PATCH * PATCH
    if min(height, width) < PATCH:
        raise ValueError(
            f"image of {_named(source_shape)} is too narrow or too small for working size {size}: "
            f"less than one patch of {PATCH} pixels would remain of a side"
        )
    # The crop is centred on pixel (h // 2, w // 2), also when the resized side is odd.
    start = (resized[0] // 2 - height // 2, resized[1] // 2 - width // 2)
    return ImageTransform(source_shape, resized, start, (height, width))


def _shape_of(rgb: np.ndarray) -> tuple[int, int]:
    if rgb.dtype != np.uint8:
        raise ValueError(f"image must be uint8 RGB in 0..255, not {rgb.dtype}")
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"image must have shape [height, width, 3], not {list(rgb.shape)}")
    return rgb.shape[0], rgb.shape[1]


def _named(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]} pixels"
