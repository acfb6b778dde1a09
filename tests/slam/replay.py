"""Whole runs of the original, replayed: its predictions by formula, its choices on request.

The network's part is played by ``tests/data/slam/e2e_scene.py``, as in the recorded runs. Where
this project departs from the original on purpose, a function here restores the original's way, so
that what remains can be compared to the last digits.
"""

import functools
import importlib.util
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mast3r_jax import Pointmap
from mast3r_jax.retrieval import RetrievalModel
from ops import Sim3
from ops.matching import MatchConfig
from ops.records import Record, record
from slam.slots import read_slot, write_slot
from slam.state import SlamState
from tests.conftest import DATA

FEATURES = 150.0
"""Tokens that the recorded runs kept of 192."""


@functools.cache
def recording() -> ModuleType:
    """The generator of the recorded inputs: ``Net``, ``CFG`` and the module ``scene``."""
    sys.path.insert(0, str(DATA / "slam"))  # e2e_scene imports its neighbour
    try:
        spec = importlib.util.spec_from_file_location("e2e_scene", DATA / "slam" / "e2e_scene.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.scene = sys.modules["scene"]
    finally:
        sys.path.pop(0)
    return module


@functools.cache
def network():
    """The recorded network, one for all tests."""
    return recording().Net(recording().CFG)


@functools.cache
def _pair(i: int, j: int) -> tuple[np.ndarray, ...]:
    prediction = network().pair(i, j)
    names = ("X11", "C11", "D11", "Q11", "X21", "C21", "D21", "Q21")
    return tuple(np.asarray(prediction[name], np.float32) for name in names)


@record
class Replayed(Record):
    """Which frame it is, and its tokens."""

    index: Int[Array, "*batch"]
    features: Float[Array, "*batch n c"]


@record
class ReplayPrior(Record):
    """The recorded network as a prior: it goes by the numbers of the frames."""

    retrieval: RetrievalModel

    @classmethod
    def make(cls) -> "ReplayPrior":
        """With the recorded retrieval model: no whitening, 256 centroids."""
        centroids = jnp.asarray(network().centroids())
        return cls(RetrievalModel(None, (), None, centroids, FEATURES))

    def encode(self, frame):
        shape = jax.ShapeDtypeStruct((192, 64), jnp.float32)
        tokens = jax.pure_callback(lambda i: network().enc(int(i))[0], shape, frame.index)
        return Replayed(jnp.asarray(frame.index), tokens)

    def decode(self, encoding_1, encoding_2):
        h, w = recording().CFG["h"], recording().CFG["w"]
        batch = encoding_1.index.shape[0]
        shapes = [(h, w, 3), (h, w), (h, w, 24), (h, w)] * 2
        arrays = jax.pure_callback(
            lambda i, j: tuple(
                map(np.stack, zip(*map(_pair, i.tolist(), j.tolist()), strict=True))
            ),
            tuple(jax.ShapeDtypeStruct((batch, *shape), jnp.float32) for shape in shapes),
            encoding_1.index,
            encoding_2.index,
            vmap_method="sequential",
        )
        return Pointmap(*arrays[:4]), Pointmap(*arrays[4:])


def refine_in_half_precision(
    descriptors_1: Float[Array, "h w d"],
    descriptors_2: Float[Array, "h w d"],
    index: Int[Array, " hw"],
    config: MatchConfig,
) -> Int[Array, " hw"]:
    """``ops.refine_matches`` as in the original: every product and sum is rounded to float16."""

    def half(x):
        # Conversions to float16 and back may be optimised away; this rounding stays. XLA's own
        # takes numbers below 2^-14 for zero, where float16 goes on in steps of 2^-24.
        normal = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
        return jnp.where(jnp.abs(x) < 2**-14, jnp.round(x * 2**24) * 2**-24, normal)

    height, width, channels = descriptors_1.shape
    table = half(descriptors_1.reshape(-1, channels))
    query = half(descriptors_2.reshape(-1, channels))
    reach = jnp.arange(-config.radius, config.radius + 1, dtype=jnp.int32)
    offset_u, offset_v = (x.reshape(-1) for x in jnp.meshgrid(reach, reach, indexing="ij"))

    def narrow(k, state):
        best, best_score = state
        dilation = config.dilation - k
        u = (best % width)[:, None] + dilation * offset_u
        v = (best // width)[:, None] + dilation * offset_v
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        candidate = jnp.where(inside, u + width * v, 0)
        rows = table[candidate]
        score = jnp.zeros(candidate.shape, jnp.float32)
        for channel in range(channels):
            score = half(score + half(rows[..., channel] * query[:, None, channel]))
        score = jnp.where(inside, score, -jnp.inf)
        first = jnp.argmax(score, axis=-1)[:, None]
        top = jnp.take_along_axis(score, first, axis=-1)[:, 0]
        chosen = jnp.take_along_axis(candidate, first, axis=-1)[:, 0]
        better = top > best_score
        return jnp.where(better, chosen, best), jnp.where(better, top, best_score)

    worst = jnp.full(index.shape, -jnp.inf, jnp.float32)
    return jax.lax.fori_loop(0, config.dilation, narrow, (index, worst))[0]


def start_where_the_frame_was(state: SlamState, T_WC: Sim3) -> SlamState:
    """The original goes on from the last frame's world pose, even if keyframes have moved since."""
    last = int(state.keyframes.last)
    return state.replace(T_kf=state.keyframes.T_WC[last].inverse() @ T_WC)


def without_predictions(state: SlamState, slot: int) -> SlamState:
    """The original's relocalised keyframe: it counts no prediction (N = 0), so its average
    confidence is infinite and the first update replaces its points."""
    keyframes = state.keyframes
    place = jnp.int32(slot)
    bare = read_slot(keyframes.pointmap, place)
    bare = bare.replace(
        count=jnp.int32(0),
        # Nothing against what is added, yet not zero: 0/0 is no infinite average.
        confidence=jnp.full_like(bare.confidence, 1e-30),
    )
    pointmap = write_slot(keyframes.pointmap, place, bare, jnp.asarray(True))
    return state.replace(keyframes=keyframes.replace(pointmap=pointmap))


def with_weights_in_single_precision(state: SlamState) -> SlamState:
    """The original keeps the weights of its factors in float32."""
    graph = state.graph
    return state.replace(graph=graph.replace(quality=graph.quality.astype(jnp.float32)))
