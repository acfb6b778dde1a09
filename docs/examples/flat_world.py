"""A two-view prior in sixty lines: a camera that looks straight at a flat, printed wall.

No network and no depth sensor: the shift between two images is found by phase correlation, and the
wall is known to be flat and one unit away. Run it with ``python flat_world.py``.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

import slam
from mast3r_jax import Pointmap

SIZE = WIDTH, HEIGHT = 64, 48
FOCAL = 60.0


@flax.struct.dataclass
class Encoding:
    """What is kept of an image; any pytree of arrays of fixed shapes."""

    grey: jax.Array
    features: jax.Array
    """For looking places up; this prior brings no retrieval, so they stay unused."""


@flax.struct.dataclass
class FlatWorld:
    """The prior: a pytree, here without any leaves (a network would have its weights)."""

    distance: float = flax.struct.field(pytree_node=False, default=1.0)

    def encode(self, frame: slam.Frame) -> Encoding:
        """The per-image part of the work."""
        grey = jnp.asarray(frame.image, jnp.float32).mean(-1) / 255.0
        return Encoding(grey=grey - grey.mean(), features=jnp.zeros((1, 1)))

    def decode(self, first: Encoding, second: Encoding) -> tuple[Pointmap, Pointmap]:
        """Pointmaps of a batch of pairs, both in the first view's camera."""
        return jax.vmap(self._pair)(first, second)

    def _pair(self, first: Encoding, second: Encoding) -> tuple[Pointmap, Pointmap]:
        shift, clear = find_shift(first.grey, second.grey)
        same = self._pointmap(first.grey, jnp.zeros(2), jnp.asarray(True))
        return same, self._pointmap(second.grey, shift, clear)

    def _pointmap(self, grey: jax.Array, shift: jax.Array, clear: jax.Array) -> Pointmap:
        v, u = jnp.mgrid[0:HEIGHT, 0:WIDTH].astype(jnp.float32)
        x = (u + shift[0] - (WIDTH - 1) / 2) / FOCAL
        y = (v + shift[1] - (HEIGHT - 1) / 2) / FOCAL
        confidence = jnp.where(clear, jnp.full(grey.shape, 3.0), 0.0)  # 0: nothing is known
        return Pointmap(
            points=self.distance * jnp.stack([x, y, jnp.ones_like(x)], axis=-1),
            confidence=confidence,
            descriptors=describe(grey),
            descriptor_confidence=confidence,
        )


def find_shift(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where (u, v) the second image's corner lies in the first, and whether that is clear."""
    window = jnp.hanning(HEIGHT)[:, None] * jnp.hanning(WIDTH)
    product = jnp.fft.fft2(first * window) * jnp.conj(jnp.fft.fft2(second * window))
    peaks = jnp.fft.ifft2(product / jnp.maximum(jnp.abs(product), 1e-9)).real
    v, u = jnp.divmod(jnp.argmax(peaks), WIDTH)
    v, u = (v + HEIGHT // 2) % HEIGHT - HEIGHT // 2, (u + WIDTH // 2) % WIDTH - WIDTH // 2
    return jnp.stack([u, v]).astype(jnp.float32), peaks.max() > 8.0 * peaks.std()


def describe(grey: jax.Array) -> jax.Array:
    """Unit descriptors: the 5 x 5 pixels around each pixel, without their mean."""
    padded = jnp.pad(grey, 2, mode="edge")
    rows, columns = np.indices((5, 5)).reshape(2, -1)
    patches = [padded[r : r + HEIGHT, c : c + WIDTH] for r, c in zip(rows, columns, strict=True)]
    values = jnp.stack(patches, axis=-1)
    values = values - values.mean(-1, keepdims=True)
    return values / jnp.maximum(jnp.linalg.norm(values, axis=-1, keepdims=True), 1e-6)


class PrintedWall:
    """A source: anything with a name, a number of frames, and frames to iterate over."""

    name, num_frames = "printed-wall", 12

    def __init__(self) -> None:
        noise = np.random.default_rng(0).uniform(0, 255, (200, 300, 3))
        rough = sum(np.roll(noise, (i, j), (0, 1)) for i in range(3) for j in range(3)) / 9
        self.wall = np.clip(3 * (rough - 127) + 127, 0, 255).astype(np.uint8)

    def corner(self, index: int) -> tuple[int, int]:
        """Where on the wall a frame's image begins."""
        return 20 + 5 * index, 40 + round(8 * np.sin(0.5 * index))

    def __iter__(self):
        for index in range(self.num_frames):
            u, v = self.corner(index)
            rgb = self.wall[v : v + HEIGHT, u : u + WIDTH]
            yield slam.SourceFrame(index=index, timestamp=index / 10, rgb=rgb)


if __name__ == "__main__":
    source, prior = PrintedWall(), FlatWorld()
    # Phase correlation fails for large shifts, so a keyframe is made while 60 % are still in view.
    tracking = slam.TrackingConfig(keyframe_threshold=0.6)
    result = slam.run(source, prior, slam.SlamConfig(size=WIDTH, tracking=tracking))
    print(result)
    moved = np.array([source.corner(index) for index in range(source.num_frames)], float)
    expected = (moved - moved[0]) / FOCAL
    error = np.abs(result.trajectory().positions[:, :2] - expected).max()
    print(f"the path is {expected[-1, 0]:.1f} units long; largest error {error:.4f} units")
