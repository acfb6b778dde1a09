"""The database of keyframe codes against the original's scores and answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import asmk
from ops.asmk import AsmkCode
from slam.config import RetrievalConfig
from slam.priors import MASt3RPrior
from slam.retrieval import Database, add, empty_database, query
from slam.slots import add_slots
from tests.mast3r_jax.golden_network import tiny_network
from tests.mast3r_jax.golden_retrieval import LOST, NAMES, codes, image, model_of, vectors

NUM_TOKENS, NUM_CENTROIDS = 192, 512
CONFIG = RetrievalConfig()


@functools.partial(jax.jit, static_argnums=2)
def ask(database, code, config, size):
    """Hits among the slots before ``size``, and all scores."""
    exclude = jnp.arange(database.capacity) >= size
    hits = query(database, code, config, NUM_CENTROIDS, exclude)
    return hits, asmk.score(code, database.codes, NUM_CENTROIDS)


store = jax.jit(add, donate_argnums=0)


def returned(hits) -> list[int]:
    """As the golden vectors list hits: -1 for none."""
    assert np.all(np.asarray(hits.slot)[~np.asarray(hits.valid)] == 0)
    assert np.all(np.asarray(hits.score)[~np.asarray(hits.valid)] == 0)
    return [int(s) if v else -1 for s, v in zip(hits.slot, hits.valid, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_a_growing_database_answers_as_the_original(name):
    """Every image is looked up, then added; the database doubles on the way."""
    data = vectors(name)
    _, build, queries = codes(name)
    database = empty_database(model_of(name), NUM_TOKENS, 6)
    for number, expected in enumerate(data["returned"]):
        if number == database.capacity:
            database = add_slots(database, database.capacity)
        hits, scores = ask(database, image(queries, number), CONFIG, jnp.int32(number))
        assert returned(hits) == expected.tolist()
        # Scores are shares; the original adds up to a hundred terms in float64, here in float32.
        np.testing.assert_allclose(
            scores[:number], data["scores"][number, :number], rtol=0, atol=1e-7
        )
        assert not np.any(scores[number:])
        found = np.asarray(hits.score)[np.asarray(hits.valid)]
        np.testing.assert_array_equal(found, scores[np.asarray(hits.slot)[: len(found)]])
        database = store(database, jnp.int32(number), image(build, number), jnp.array(True))
    assert database.capacity == 12
    # The view of a lost camera is looked up among all of them, and not added.
    hits, _ = ask(database, image(queries, LOST), CONFIG, jnp.int32(12))
    assert returned(hits) == data["reloc_returned"].tolist()


def test_adding_where_not_wanted_changes_nothing():
    _, build, _ = codes("A_free")
    database = empty_database(model_of("A_free"), NUM_TOKENS, 3)
    one = store(database, jnp.int32(1), image(build, 4), jnp.array(True))
    assert database.codes.bits.is_deleted()  # donated, hence written in place
    before = jax.device_get(one)
    after = store(one, jnp.int32(1), image(build, 5), jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    np.testing.assert_array_equal(before.codes.words[1], build.words[4])
    assert not before.codes.mask[[0, 2]].any()


def test_an_empty_database_has_the_shape_of_its_codes():
    _, build, _ = codes("B_mlp")
    database = empty_database(model_of("B_mlp"), NUM_TOKENS, 5)
    for blank, code in zip(jax.tree.leaves(database), jax.tree.leaves(build), strict=True):
        assert blank.shape == (5, *code.shape[1:]) and blank.dtype == code.dtype
        assert not np.any(blank)


def codes_of(*words: tuple[int, ...]) -> AsmkCode:
    """Codes of full agreement on every word they share."""
    size = max(map(len, words))
    rows = [(*row, *[0] * (size - len(row))) for row in words]
    mask = np.arange(size) < np.array([[len(row)] for row in words])
    return AsmkCode(
        jnp.asarray(rows, jnp.int32), jnp.zeros((*mask.shape, 1), jnp.uint32), jnp.asarray(mask)
    )


# Against the words (1, 2, 3, 4), whose number's root is 2, the slots score 2/(2*2), 0, 1/(2*1),
# 2/(2*2), nothing and 4/(2*2): three equal ones, and the best one last.
SIX = Database(codes_of((1, 2, 8, 9), (7,), (3,), (1, 4, 8, 9), (), (1, 2, 3, 4)))
VIEW = image(codes_of((1, 2, 3, 4)), 0)


@pytest.mark.parametrize(
    ("count", "min_score", "excluded", "expected"),
    [
        (3, 0.1, (), [5, 0, 2]),  # the lower slot among equals
        (3, 0.1, (5,), [0, 2, 3]),
        (5, 0.1, (), [5, 0, 2, 3, -1]),
        (2, 0.5, (), [5, -1]),  # a score must exceed the threshold
        (3, 0.1, (0, 2, 3, 5), [-1, -1, -1]),
        (3, 0.0, (0, 2, 3, 5), [-1, -1, -1]),  # nothing in common is no hit
        (8, 0.1, (), [5, 0, 2, 3, -1, -1, -1, -1]),  # more than there are slots
    ],
)
def test_hits_are_the_best_above_the_threshold(count, min_score, excluded, expected):
    config = RetrievalConfig(num_candidates=count, min_score=min_score)
    exclude = np.isin(np.arange(6), excluded)
    function = jax.jit(lambda d, c, e: query(d, c, config, 10, e))
    hits = function(SIX, VIEW, jnp.asarray(exclude))
    assert returned(hits) == expected


def test_views_are_looked_up_in_batches():
    _, build, queries = codes("A_free")
    database = Database(jax.tree.map(lambda x: jnp.asarray(x[:6]), build))
    views = jax.tree.map(lambda x: jnp.asarray(x[6:10]), queries)
    exclude = jnp.zeros(6, bool)
    batch = jax.jit(jax.vmap(query, in_axes=(None, 0, None, None, None)), static_argnums=(2, 3))(
        database, views, CONFIG, NUM_CENTROIDS, exclude
    )
    for i in range(4):
        hits, _ = ask(database, image(queries, 6 + i), CONFIG, jnp.int32(6))
        jax.tree.map(np.testing.assert_array_equal, hits, image(batch, i))


def test_the_network_s_prior_carries_its_retrieval_model():
    assert MASt3RPrior(tiny_network()).retrieval is None
    model = model_of("A_free")
    prior = jax.tree.map(lambda x: x, MASt3RPrior(tiny_network(), model))
    jax.tree.map(np.testing.assert_array_equal, prior.retrieval, model)
