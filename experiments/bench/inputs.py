"""Inputs as the system meets them: views of a procedural room, seen by a camera that moves.

Pointmaps and descriptors come from the rendered-geometry prior with its usual errors; where a
correspondence or a pose is to be known, it is the true one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.bench.plan import Size
from mast3r_jax.pointmap import Pointmap
from ops import Edges, Sim3, pinhole
from ops.lie_convert import from_matrix
from slam.io.procedural import parse_procedural
from slam.priors import RenderedGeometryPrior
from slam.priors.rendered import invert, transform
from slam.types import Frame

GAP = 3
"""Frames from one view to the other: the camera turns by about seven degrees."""
KEYFRAME_GAP = 6
"""Frames from one keyframe of the graph to the next."""
OCCLUDED = 0.03
"""A point this much farther, relatively, than what is seen at its pixel is behind it."""


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """A keyframe's and a frame's pointmap in one camera, without batch axes."""

    view_1: Pointmap
    """Of the image that is searched: the frame's."""
    view_2: Pointmap
    """Of the image whose pixels are looked for: the keyframe's."""
    K: Float[Array, "3 3"]
    truth: Float[np.ndarray, "hw 2"]
    """Where in image 1 the points of image 2 truly are, in pixels; NaN where they are hidden."""

    @property
    def maps(self) -> tuple[Array, Array, Array, Array]:
        """The arguments of ``ops.match``."""
        return (
            self.view_1.points,
            self.view_2.points,
            self.view_1.descriptors,
            self.view_2.descriptors,
        )


@dataclasses.dataclass(frozen=True)
class Graph:
    """Keyframes of a walk, linked with their neighbours, and where optimisation starts."""

    start: Sim3
    """Disturbed poses; the first is exact."""
    points: Float[Array, "n hw 3"]
    confidence: Float[Array, "n hw"]
    edges: Edges
    K: Float[Array, "3 3"]


def room_frames(size: Size, frames: int, step: int = 1, seed: int = 3) -> list[Frame]:
    """Every ``step``-th of the frames of a walk, on the host, at exactly this size."""
    uri = f"procedural:room?seed={seed}&frames={frames}&size={size[0]}x{size[1]}"
    return [
        Frame(
            index=np.asarray(source.index, np.int32),
            timestamp=np.asarray(source.timestamp, np.float32),
            image=source.rgb,
            depth=source.depth,
            T_WC=np.asarray(source.T_WC, np.float32),
            K=np.asarray(source.K, np.float32),
        )
        for source in parse_procedural(uri).select(slice(0, frames, step))
    ]


@functools.lru_cache(maxsize=4)
def two_views(size: Size) -> TwoViews:
    """A keyframe and the frame ``GAP`` later, both pointmaps in the frame's camera."""
    keyframe, frame = room_frames(size, GAP + 1, GAP)
    prior = RenderedGeometryPrior()
    encode, decode = jax.jit(prior.encode), jax.jit(prior.decode)
    pair = [jax.tree.map(lambda x: x[None], encode(seen)) for seen in (frame, keyframe)]
    view_1, view_2 = (jax.tree.map(lambda x: x[0], view) for view in decode(*pair))
    uv, visible = _seen_in(encode(keyframe), encode(frame), jnp.asarray(frame.K))
    truth = np.where(np.asarray(visible)[:, None], np.asarray(uv), np.nan)
    return TwoViews(view_1, view_2, jnp.asarray(frame.K), truth)


@functools.lru_cache(maxsize=1)
def graph(size: Size, keyframes: int) -> Graph:
    """Keyframes of a walk, each linked both ways with the next three."""
    frames = room_frames(size, KEYFRAME_GAP * (keyframes - 1) + 1, KEYFRAME_GAP)
    prior = RenderedGeometryPrior()
    encode, decode = jax.jit(prior.encode), jax.jit(prior.decode)
    encodings = [encode(frame) for frame in frames]
    K = jnp.asarray(frames[0].K)
    alone = []
    for encoding in encodings:
        one = jax.tree.map(lambda x: x[None], encoding)
        alone.append(jax.tree.map(lambda x: x[0], decode(one, one)[0]))
    points = jnp.stack([view.points.reshape(-1, 3) for view in alone])
    confidence = jnp.stack([view.confidence.reshape(-1) for view in alone])

    links = [(k, k + gap) for gap in (1, 2, 3) for k in range(keyframes - gap)]
    pairs = [end for i, j in links for end in ((i, j), (j, i))]
    seen_in = jax.jit(_seen_in)
    width = size[0]
    index, valid = [], []
    for i, j in pairs:
        uv, visible = seen_in(encodings[j], encodings[i], K)
        u, v = jnp.round(uv).astype(jnp.int32).T
        index.append(jnp.where(visible, u + width * v, 0))
        valid.append(visible)
    ends_i, ends_j = (jnp.asarray(ends, jnp.int32) for ends in zip(*pairs, strict=True))
    valid = jnp.stack(valid)
    edges = Edges(
        ends_i, ends_j, jnp.stack(index), valid, jnp.full(valid.shape, 2.0, jnp.float16),
        jnp.ones(len(pairs), bool),
    )  # fmt: skip
    T_WC = from_matrix(jnp.stack([encoding.T_WC for encoding in encodings]))
    noise = 0.02 * np.random.default_rng(0).normal(size=(keyframes, 7))
    noise[0] = 0
    return Graph(T_WC.retract(jnp.asarray(noise, jnp.float32)), points, confidence, edges, K)


def _seen_in(one, other, K: Float[Array, "3 3"]) -> tuple[Array, Array]:
    """Where the true points of one view are in another's image, and whether they are seen there."""
    height, width = other.seen.shape
    relative = jnp.matmul(invert(other.T_WC), one.T_WC, precision="highest")
    points = transform(relative, one.points_C).reshape(-1, 3)
    x, y, z = points.T
    in_front = z > 1e-3
    z = jnp.where(in_front, z, 1.0)
    u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
    inside = in_front & (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    u, v = jnp.where(inside, u, 0.0), jnp.where(inside, v, 0.0)
    pixel = jnp.round(u).astype(jnp.int32) + width * jnp.round(v).astype(jnp.int32)
    surface = other.points_C[..., 2].reshape(-1)[pixel]
    seen = one.seen.reshape(-1) & other.seen.reshape(-1)[pixel]
    return jnp.stack([u, v], axis=-1), inside & seen & (z < (1 + OCCLUDED) * surface)


def constrained(points: Float[Array, "*batch hw 3"], K: Float[Array, "3 3"], size: Size) -> Array:
    """Pointmaps slid onto their pixels' rays, as the calibrated mode takes them."""
    width, height = size
    slide = functools.partial(pinhole.constrain_to_rays, K=K, image_shape=(height, width))
    return slide(points) if points.ndim == 2 else jax.vmap(slide)(points)
