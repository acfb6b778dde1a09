"""Earlier views of the same place: a database of image codes, one for each keyframe slot."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32

from mast3r_jax.retrieval import RetrievalModel
from ops import asmk
from ops.asmk import AsmkCode
from ops.records import Record, record
from slam.config import RetrievalConfig
from slam.slots import write_slot


@record
class Database(Record):
    """Codes of the keyframes, by slot; an empty slot has no entry in use."""

    codes: AsmkCode
    """Leading axis [capacity]."""

    @property
    def capacity(self) -> int:
        """Slots there are (static)."""
        return self.codes.words.shape[0]


@record
class Hits(Record):
    """What a query found, best first."""

    slot: Int32[Array, " k"]
    """Slots of the database; 0 where not valid."""
    score: Float32[Array, " k"]
    """Similarity (``ops.asmk.score``); 0 where not valid."""
    valid: Bool[Array, " k"]
    """Which entries are hits; they come first."""


def empty_database(model: RetrievalModel, num_tokens: int, capacity: int) -> Database:
    """A database of empty slots for images of ``num_tokens`` tokens; computes nothing."""
    tokens = jax.ShapeDtypeStruct((num_tokens, model.token_dim), model.centroids.dtype)
    code = jax.eval_shape(lambda model, tokens: model.encode(tokens, query=False), model, tokens)
    return Database(jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), code))


def add(
    database: Database, slot: Int[Array, ""], code: AsmkCode, where: Bool[Array, ""]
) -> Database:
    """Write a code (the first of ``RetrievalModel.encode_both``) into a slot if ``where``."""
    return Database(write_slot(database.codes, slot, code, where))


def query(
    database: Database,
    code: AsmkCode,
    config: RetrievalConfig,
    num_centroids: int,
    exclude: Bool[Array, " capacity"],
) -> Hits:
    """The slots most similar to an image, best first; the lower slot among equals.

    Args:
        database: what to search.
        code: of the image, the second of ``RetrievalModel.encode_both``.
        config: how many hits at most, and the score they must exceed.
        num_centroids: size of the codebook.
        exclude: slots that must not be returned, such as the image itself.
    """
    count = config.num_candidates
    scores = asmk.score(code, database.codes, num_centroids)
    scores = jnp.where(exclude, -jnp.inf, scores)
    scores = jnp.pad(scores, (0, max(0, count - database.capacity)), constant_values=-jnp.inf)
    best, slot = jax.lax.top_k(scores, count)
    valid = best > config.min_score
    return Hits(slot=jnp.where(valid, slot, 0), score=jnp.where(valid, best, 0), valid=valid)
