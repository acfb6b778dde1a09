"""The networks that come with the package, whatever they are at present."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mast3r_jax import MASt3RConfig, checkpoint, has_retrieval, load, load_retrieval
from mast3r_jax.card import check_files
from mast3r_jax.packaging import MAX_BYTES

PACKAGED: tuple[str, ...] = ()
"""Presets that this version promises. Whoever adds weights adds their name."""


def test_what_is_packaged_is_what_is_promised():
    assert tuple(checkpoint.presets()) == PACKAGED


def each_preset():
    """The presets; without any, one entry that is skipped, so that the report shows what waits."""
    waits = pytest.mark.skip(reason="no weights are packaged: these checks wait for them")
    return checkpoint.presets() or [pytest.param("none", marks=waits)]


@pytest.mark.parametrize("name", each_preset())
def test_it_is_what_its_card_says(name):
    folder = checkpoint.PRETRAINED / name
    card = check_files(folder)
    assert card.name == name and card.to_markdown() == (folder / "README.md").read_text()
    assert card.parameters == sum(leaf.size for leaf in jax.tree.leaves(load(name)))
    assert card.pairs >= card.steps > 0 and card.errors
    sizes = [path.stat().st_size for path in folder.iterdir() if path.suffix != ".png"]
    assert sum(sizes) <= MAX_BYTES + 100_000  # card and text


@pytest.mark.parametrize("name", each_preset())
def test_it_predicts_and_is_looked_up(name):
    """A flat picture and noise: whatever they are, the numbers are good."""
    model = load(name)
    assert model.config == MASt3RConfig.small()
    width, height = check_files(checkpoint.PRETRAINED / name).image_size
    images = jax.random.uniform(jax.random.key(0), (2, height, width, 3), minval=-1.0)
    views = jax.jit(lambda m, x: m(x[:1], x[1:]))(model, images.at[0].set(0.25))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(views))
    assert all(float(view.confidence.min()) > 1 for view in views)
    assert has_retrieval(checkpoint.PRETRAINED / name)
    retrieval = load_retrieval(checkpoint.PRETRAINED / name)
    assert retrieval.token_dim == model.config.enc_dim
    tokens = jnp.asarray(np.random.default_rng(0).standard_normal((48, model.config.enc_dim)))
    assert np.isfinite(retrieval.select(tokens.astype(jnp.float32))).all()
