"""Cards: what they tell, and that nothing but what they tell is loaded."""

import dataclasses
import hashlib
import json
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mast3r_jax import CheckpointError, load, load_retrieval, packaging
from mast3r_jax.card import CardError, ModelCard, check_files, read_card
from mast3r_jax.packaging import package
from mast3r_jax.retrieval import build_retrieval
from tests.mast3r_jax.golden_network import TINY, tiny_network

CARD = ModelCard(
    name="tiny",
    date="2026-01-31",
    licence="Apache-2.0",
    data="coloured noise",
    image_size=(64, 48),
    parameters=0,
    steps=1234,
    pairs=98720,
    pairs_per_second=1500.4,
    device="a GPU",
    optimizer="AdamW",
    versions={"jax": "0.10.2", "nothing": None},
    errors={
        "rooms": {"view 1": 0.125, "rotation, degrees": 3.0},
        "walk": {"view 1": float("nan"), "frames lost": 7.0},
    },
    notes=("All of it is made up.",),
)
RNG = np.random.default_rng(0)
RETRIEVAL = build_retrieval(
    {
        "prewhiten.mean": RNG.standard_normal(64),
        "prewhiten.projection": RNG.standard_normal((64, 64)),
        "centroids": RNG.standard_normal((9, 64)),
    },
    num_features=-0.5,
)
FILES = ["config.json", "model.safetensors", "retrieval.json", "retrieval.safetensors"]


@pytest.fixture
def folder(tmp_path):
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"PNG")
    package(tmp_path / "presets" / "tiny", tiny_network(), RETRIEVAL, CARD, curves=picture)
    return tmp_path / "presets" / "tiny"


def test_a_package_is_whole_and_in_half_precision(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "card.json",
        *FILES[:1],
        "curves.png",
        *FILES[1:],
    ]
    assert len({stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}) == 1
    half = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float16), x.dtype), tiny_network())
    pairs = zip(jax.tree.leaves(load(folder)), jax.tree.leaves(half), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    found = load_retrieval(folder)
    assert (found.num_features, found.postwhiten) == (-0.5, None)
    expected = np.asarray(RETRIEVAL.centroids, np.float16)
    np.testing.assert_array_equal(found.centroids, expected.astype(np.float32))


def test_the_card_tells_everything(folder):
    card = read_card(folder)
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (*FILES, "curves.png")
    }
    walk = {"view 1": None, "frames lost": 7.0}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(tiny_network()))
    assert card == dataclasses.replace(
        CARD,
        files=digests,
        parameters=parameters,
        curves="curves.png",
        errors={**CARD.errors, "walk": walk},
    )
    assert check_files(folder) == card
    text = (folder / "README.md").read_text()
    assert text == card.to_markdown()
    for part in (
        *("# tiny", "coloured noise", "64x48", "1,234", "98,720, 1,500 a second", "a GPU"),
        *("AdamW", "jax 0.10.2", "2026-01-31", "Apache-2.0", "All of it is made up."),
        *("| view 1 | 0.125 | - |", "| rotation, degrees | 3 | - |", "| frames lost | - | 7 |"),
        *("![metrics](curves.png)", *digests.values()),
    ):
        assert part in text, part
    assert "nothing" not in text


@pytest.mark.parametrize("name", [*FILES, "curves.png"])
def test_a_single_other_bit_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert str(caught.value).startswith(f"{folder / name}: is not the file of its card")
    assert str(caught.value).count("\n") == 0


def test_files_and_card_belong_together(folder):
    (folder / "retrieval.json").rename(folder / "other.json")
    with pytest.raises(CheckpointError, match=r"retrieval\.json: is missing, but card\.json names"):
        load(folder)
    (folder / "other.json").rename(folder / "retrieval.json")
    (folder / "more.bin").write_bytes(b"1")
    with pytest.raises(CheckpointError, match=r"more\.bin: is not on the card beside it"):
        load(folder)


def test_cards_that_cannot_be_read(folder):
    path = folder / "card.json"
    fields = json.loads(path.read_text())
    for text, words in (
        ("{", "card.json: is not a JSON object"),
        ("[1]", "card.json: is no card"),
        (json.dumps({**fields, "colour": 1}), "missing or unknown: colour"),
        (json.dumps({k: v for k, v in fields.items() if k != "steps"}), "unknown: steps"),
        (json.dumps({**fields, "image_size": [64]}), "image_size two numbers"),
    ):
        path.write_text(text)
        with pytest.raises(CardError, match=words):
            read_card(folder)
        with pytest.raises(CheckpointError, match=words):
            load(folder)
    path.write_bytes(b"\xff")
    with pytest.raises(CardError, match=r"card\.json"):
        read_card(folder)
    path.unlink()
    with pytest.raises(CardError, match=r"tiny: has no card\.json"):
        read_card(folder)


def test_a_preset_needs_its_card_and_another_folder_does_not(folder, monkeypatch):
    (folder / "card.json").unlink()
    assert load(folder).config == TINY
    monkeypatch.setattr("mast3r_jax.checkpoint.PRETRAINED", folder.parent)
    for name in ("tiny", folder):
        with pytest.raises(CheckpointError, match=r"tiny: has no card\.json"):
            load(name)


def test_what_cannot_be_packaged_leaves_the_folder_as_it_was(folder, monkeypatch, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    large = jax.tree.map(lambda x: jnp.full_like(x, 7e4), tiny_network())
    with pytest.raises(CheckpointError, match="the network has numbers that float16 does not hold"):
        package(folder, large, RETRIEVAL, CARD)
    lost = RETRIEVAL.replace(centroids=jnp.full((9, 64), jnp.nan))
    with pytest.raises(CheckpointError, match="the retrieval model has numbers"):
        package(folder, tiny_network(), lost, CARD)
    size = len(before["model.safetensors"]) + len(before["config.json"])
    monkeypatch.setattr(packaging, "MAX_BYTES", size - 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors and the files .* MB of a"):
        package(folder, tiny_network(), None, CARD)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    monkeypatch.setattr(packaging, "MAX_BYTES", size)
    package(folder, tiny_network(), None, CARD)
    assert not (folder / "retrieval.json").exists() and load(folder).config == TINY
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match=r"mine: exists and has no card\.json"):
        package(tmp_path / "mine", tiny_network(), None, CARD)
