"""The match kernel against the original, a plain loop in double precision, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import asmk
from tests.mast3r_jax.golden_retrieval import NAMES, vectors


def encode(features, centroids, assignments=1):
    """``asmk.encode`` in float32, compiled as a whole."""
    function = jax.jit(lambda f, c: asmk.encode(f, c, assignments=assignments))
    return function(jnp.asarray(features, jnp.float32), jnp.asarray(centroids, jnp.float32))


def plain_encode(features, centroids, assignments):
    """``encode`` by its definition: {word: residual sum} in double precision."""
    sums: dict[int, np.ndarray] = {}
    for feature in features.astype(np.float64):
        distance = np.linalg.norm(feature - centroids, axis=1)
        for word in np.argsort(distance)[:assignments]:
            sums[word] = sums.get(word, 0) + feature - centroids[word]
    return dict(sorted(sums.items()))


def unpacked(code, d):
    """{word: bits} of a code's entries in use."""
    rows = [word.astype(">u4").tobytes() for word in np.asarray(code.bits)]
    bits = [np.unpackbits(np.frombuffer(row, np.uint8))[:d] for row in rows]
    count = int(code.mask.sum())
    assert not np.asarray(code.mask)[count:].any() and not np.asarray(code.words)[count:].any()
    return dict(zip(np.asarray(code.words)[:count].tolist(), bits[:count], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_codes_match_the_original(name):
    data = vectors(name)
    features, centroids = jnp.asarray(data["topk_feat_0"]), jnp.asarray(data["centroids"])
    nearest = jax.jit(lambda f, c: asmk.nearest(f, c, 5))(features, centroids)
    np.testing.assert_array_equal(nearest, data["assign5"][0])
    code = encode(features, centroids)
    count = len(data["build_words_0"])
    assert code.mask.shape == (len(features),) and int(code.mask.sum()) == count
    np.testing.assert_array_equal(code.words[:count], data["build_words_0"])
    np.testing.assert_array_equal(code.bits[:count], data["build_bits_0"])


# 40 dimensions: the second word of every vector is padded. Chunks of 7 do not divide 50, chunks of
# 2 hold fewer centroids than a feature is assigned to.
@pytest.mark.parametrize(("chunk", "assignments"), [(2, 5), (7, 5), (7, 1), (4096, 5)])
def test_encoding_is_its_definition(monkeypatch, chunk, assignments):
    monkeypatch.setattr(asmk, "CHUNK", chunk)
    rng = np.random.default_rng(5)
    features, centroids = rng.normal(size=(30, 40)), rng.normal(size=(50, 40))
    code = encode(features, centroids, assignments)
    expected = plain_encode(features, centroids, assignments)
    found = unpacked(code, 40)
    assert list(found) == list(expected) and len(expected) < 30 * assignments
    for word, sums in expected.items():
        np.testing.assert_array_equal(found[word], sums > 0)
    assert not np.any(np.asarray(code.bits)[:, 1] & 0x00FFFFFF)


def test_of_equally_near_centroids_the_first_counts(monkeypatch):
    monkeypatch.setattr(asmk, "CHUNK", 3)
    centroids = jnp.ones((8, 2)).at[2].set(0.0)
    found = asmk.nearest(jnp.ones((1, 2)), centroids, 4)
    np.testing.assert_array_equal(found, [[0, 1, 3, 4]])


def test_one_centroid_for_every_feature_is_enough():
    code = encode(np.ones((3, 4)), np.zeros((1, 4)))
    assert unpacked(code, 4)[0].tolist() == [1, 1, 1, 1]
    np.testing.assert_array_equal(code.bits[0], [0xF0000000])
    with pytest.raises(ValueError, match="assignments=2 must be between 1 and the 1 centroids"):
        asmk.encode(jnp.ones((3, 4)), jnp.zeros((1, 4)), assignments=2)


def random_codes(count, entries, num_centroids, seed, width=2):
    """Codes with random words, the first of them without any entry in use."""
    rng = np.random.default_rng(seed)
    sizes = [0, *rng.integers(entries // 2, entries + 1, count - 1)]
    words = np.zeros((count, entries), np.int32)
    for row, size in zip(words, sizes, strict=True):
        row[:size] = np.sort(rng.permutation(num_centroids)[:size])
    bits = rng.integers(0, 2**32, (count, entries, width), dtype=np.uint32)
    mask = np.arange(entries) < np.asarray(sizes)[:, None]
    return asmk.AsmkCode(jnp.asarray(words), jnp.asarray(bits), jnp.asarray(mask))


def image(codes, number):
    return jax.tree.map(lambda x: np.asarray(x)[number], codes)


def plain_score(query, image, alpha, threshold):
    """``score`` of one image by its definition, in double precision."""
    sides = [
        {int(w): np.asarray(b) for w, b, used in zip(c.words, c.bits, c.mask, strict=True) if used}
        for c in (query, image)
    ]
    total = 0.0
    for word in sides[0].keys() & sides[1].keys():
        hamming = sum(int(x).bit_count() for x in sides[0][word] ^ sides[1][word])
        similarity = 1 - 2 * hamming / (32 * query.bits.shape[-1])
        total += similarity**alpha if similarity >= threshold else 0.0
    return total / np.sqrt(len(sides[0]) * len(sides[1])) if sides[0] and sides[1] else 0.0


@pytest.mark.parametrize(("alpha", "threshold"), [(3.0, 0.0), (1.0, 0.0), (2.5, 0.1), (3.0, -1.0)])
def test_scores_are_their_definition(alpha, threshold):
    database, query = random_codes(9, 12, 20, 1), image(random_codes(2, 15, 20, 2), 1)
    function = jax.jit(lambda q, d: asmk.score(q, d, 20, alpha=alpha, threshold=threshold))
    found = function(query, database)
    expected = [plain_score(query, image(database, i), alpha, threshold) for i in range(9)]
    assert found[0] == 0 and np.count_nonzero(expected) > 5
    # At most 12 terms, each a few roundings of float32.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


def test_every_image_is_most_like_itself():
    database = random_codes(9, 12, 20, 3)
    one = jax.jit(jax.vmap(lambda q, d: asmk.score(q, d, 20), (0, None)))(database, database)
    np.testing.assert_allclose(np.diag(one)[1:], 1, rtol=1e-6)
    assert np.all(one[0] == 0) and np.all(one[:, 0] == 0)  # without entries there is no likeness
    np.testing.assert_allclose(one, one.T, rtol=1e-6)


def test_batches_are_encoded_as_one_by_one():
    rng = np.random.default_rng(6)
    features, centroids = rng.normal(size=(3, 6, 40)), rng.normal(size=(10, 40))
    features, centroids = (jnp.asarray(x, jnp.float32) for x in (features, centroids))
    function = jax.vmap(lambda f, c: asmk.encode(f, c, assignments=2), (0, None))
    batch = jax.jit(function)(features, centroids)
    for i in range(3):
        one = encode(features[i], centroids, 2)
        jax.tree.map(np.testing.assert_array_equal, one, image(batch, i))


def test_a_large_codebook_is_not_copied():
    """Published size: 64k centroids of 1024 numbers, 268 MB; all distances at once are 79 MB."""
    features = jax.ShapeDtypeStruct((300, 1024), jnp.float32)
    centroids = jax.ShapeDtypeStruct((1 << 16, 1024), jnp.float32)
    compiled = jax.jit(lambda f, c: asmk.encode(f, c, assignments=5)).lower(features, centroids)
    assert compiled.compile().memory_analysis().temp_size_in_bytes < 64e6


def test_scores_of_a_large_database_take_little_memory():
    """512 images of 300 entries are 20 MB; rows of the query are not laid out beside them."""
    # 300 features of the length that fills 32 words, encoded for a query and for the database.
    features, centroids = (jax.ShapeDtypeStruct((n, 1024), jnp.float32) for n in (300, 1 << 16))
    query = jax.eval_shape(lambda f, c: asmk.encode(f, c, assignments=5), features, centroids)
    one = jax.eval_shape(asmk.encode, features, centroids)
    database = jax.tree.map(lambda x: jax.ShapeDtypeStruct((512, *x.shape), x.dtype), one)
    lowered = jax.jit(asmk.score, static_argnums=2).lower(query, database, 1 << 16)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 4e6
