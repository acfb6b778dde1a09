"""Aggregated selective match kernel: images as sets of binary vectors on visual words.

Tolias, Avrithis and Jegou, "To aggregate or not to aggregate: selective match kernels for image
search" (ICCV 2013), with the binarised residuals of Tolias, Jenicek and Chum (ECCV 2020).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from ops.records import Record, record

CHUNK = 4096
"""Centroids compared at a time: for 300 features a table of 5 MB, whatever the codebook's size."""
_WORD = 32


@record
class AsmkCode(Record):
    """The visual words an image shows, each with one binary vector; padded to a static length."""

    words: Int32[Array, "*batch m"]
    """Centroid numbers, ascending and distinct where ``mask`` is set, 0 elsewhere."""
    bits: UInt32[Array, "*batch m width"]
    """Signs of the aggregated residuals, 32 dimensions a word, the first in the highest bit."""
    mask: Bool[Array, "*batch m"]
    """Which entries are in use; they come first."""


def encode(
    features: Float[Array, "n d"], centroids: Float[Array, "k d"], *, assignments: int = 1
) -> AsmkCode:
    """Assign features to their nearest centroids and binarise what they sum to there.

    For every centroid visited, the residuals ``feature - centroid`` of the features assigned to it
    are added; a bit is set where the sum is positive. Both arguments must have the same dtype.

    Args:
        features: local features of one image.
        centroids: the codebook.
        assignments: nearest centroids a feature goes to: 1 for the images of a database, more
            for a query.

    Returns:
        ``n * assignments`` entries, of which as many are in use as centroids were visited. ``d``
        is rounded up to a multiple of 32; the bits beyond it are 0.

    Raises:
        ValueError: ``assignments`` is not between 1 and the number of centroids.
    """
    if not 1 <= assignments <= centroids.shape[0]:
        raise ValueError(
            f"assignments={assignments} must be between 1 and the {centroids.shape[0]} centroids"
        )
    return aggregate(features, centroids, nearest(features, centroids, assignments))


def aggregate(
    features: Float[Array, "n d"], centroids: Float[Array, "k d"], assigned: Int32[Array, "n a"]
) -> AsmkCode:
    """The second half of ``encode``: each feature goes to the centroids ``assigned`` to it."""
    size = assigned.size
    words = assigned.reshape(size)
    order = jnp.argsort(words, stable=True)
    words = words[order]
    is_first = jnp.concatenate([jnp.ones(1, bool), words[1:] != words[:-1]])
    entry = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    residuals = features[order // assigned.shape[1]] - centroids[words]
    sums = jax.ops.segment_sum(residuals, entry, num_segments=size, indices_are_sorted=True)
    return AsmkCode(
        words=jnp.zeros(size, jnp.int32).at[entry].set(words),
        bits=pack_bits(sums > 0),
        mask=jnp.arange(size, dtype=jnp.int32) <= entry[-1],
    )


def nearest(
    features: Float[Array, "n d"], centroids: Float[Array, "k d"], count: int
) -> Int32[Array, "n count"]:
    """The ``count`` nearest centroids of every feature, nearest first, in Euclidean distance.

    The codebook is walked through ``CHUNK`` centroids at a time, so memory does not grow with it.
    """
    num_features, num_centroids = features.shape[0], centroids.shape[0]
    chunk = min(max(CHUNK, count), num_centroids)

    def step(index, best):
        # The last chunk ends with the codebook and repeats centroids that it must not count twice.
        start = jnp.minimum(index * chunk, num_centroids - chunk)
        part = jax.lax.dynamic_slice_in_dim(centroids, start, chunk)
        numbers = start + jnp.arange(chunk, dtype=jnp.int32)
        products = jnp.matmul(features, part.T, precision=jax.lax.Precision.HIGHEST)
        # |feature|^2 is the same for all centroids.
        distance = jnp.sum(jnp.square(part), axis=1) - 2 * products
        distance = jnp.where(numbers < index * chunk, jnp.inf, distance)
        best_distance, best_number = best
        distance = jnp.concatenate([best_distance, distance], axis=1)
        numbers = jnp.broadcast_to(numbers, (num_features, chunk))
        numbers = jnp.concatenate([best_number, numbers], axis=1)
        closeness, place = jax.lax.top_k(-distance, count)
        return -closeness, jnp.take_along_axis(numbers, place, axis=1)

    none = (
        jnp.full((num_features, count), jnp.inf, features.dtype),
        jnp.zeros((num_features, count), jnp.int32),
    )
    return jax.lax.fori_loop(0, -(-num_centroids // chunk), step, none)[1]


def pack_bits(bits: Bool[Array, "*batch d"]) -> UInt32[Array, "*batch width"]:
    """Pack the last axis into 32-bit words, first element in the highest bit, padded with 0."""
    *batch, size = bits.shape
    padding = [(0, 0)] * len(batch) + [(0, -size % _WORD)]
    groups = jnp.pad(bits, padding).reshape(*batch, -1, _WORD).astype(jnp.uint32)
    shifts = jnp.arange(_WORD - 1, -1, -1, dtype=jnp.uint32)
    return jnp.sum(groups << shifts, axis=-1, dtype=jnp.uint32)


def score(
    query: AsmkCode,
    database: AsmkCode,
    num_centroids: int,
    *,
    alpha: float = 3.0,
    threshold: float = 0.0,
) -> Float32[Array, " n"]:
    """Similarity of an image to every image of a database, 1 between a code and itself.

    Two vectors on the same word have the similarity ``s = 1 - 2 * hamming / bits``. Those not
    below ``threshold`` are raised to ``alpha`` and added; the sum is divided by the square roots
    of the numbers of words that the two images show.

    Args:
        query: code of one image.
        database: codes with a leading axis ``[n]``; an image without any entry in use scores 0.
        num_centroids: size of the codebook.
        alpha: exponent; it favours few good agreements over many poor ones.
        threshold: smallest similarity of two vectors that counts.

    Returns:
        Scores, from 0 when ``threshold`` is not negative.
    """
    rows = jnp.arange(1, query.words.shape[-1] + 1, dtype=jnp.int32)  # 0 stands for no row
    place = jnp.where(query.mask, query.words, num_centroids)
    row_of = jnp.zeros(num_centroids, jnp.int32).at[place].set(rows, mode="drop")

    row = row_of[database.words]
    shared = database.mask & (row > 0)
    different = jax.lax.population_count(query.bits[jnp.maximum(row - 1, 0)] ^ database.bits)
    hamming = jnp.sum(different, axis=-1, dtype=jnp.int32)
    num_bits = _WORD * query.bits.shape[-1]
    similarity = (num_bits - 2 * hamming).astype(jnp.float32) / num_bits
    counts = shared & (similarity >= threshold)
    # The base is made safe first: a fractional power of a negative number is not a number.
    powers = jnp.where(counts, similarity, 1) ** alpha
    total = jnp.sum(jnp.where(counts, powers, 0), axis=-1)

    sizes = [jnp.sum(code.mask, axis=-1).astype(jnp.float32) for code in (query, database)]
    norm = jnp.sqrt(sizes[0]) * jnp.sqrt(sizes[1])
    return jnp.where(norm > 0, total / jnp.where(norm > 0, norm, 1), 0)
