"""Which prior ``demo`` and ``run`` take by themselves: the network of the package, if it has one.

A whole run with the network of the package is in ``test_cli``.
"""

import pathlib

import numpy as np
import pytest

from mast3r_jax import checkpoint
from mast3r_jax.packaging import package
from mast3r_jax.retrieval import build_retrieval
from slam.cli import demo, main
from slam.cli import run as run_command
from slam.cli.prior import RENDERED, default_prior, trained_size
from slam.config import SlamConfig
from slam.priors.mast3r import MASt3RPrior
from slam.priors.rendered import RenderedGeometryPrior
from tests.mast3r_jax.golden_network import tiny_network
from tests.mast3r_jax.test_card import CARD
from tests.slam import rim
from tests.slam.io.recordings import write_images


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, a package without weights, and no cache in the user's home."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "pretrained")


@pytest.fixture
def packaged(tmp_path):
    """A package with weights, made for images of 64x48; their folder."""
    package(tmp_path / "pretrained" / "small", tiny_network(), None, CARD)
    return tmp_path / "pretrained" / "small"


@pytest.fixture
def asked(monkeypatch):
    """Calls a command; what it would have run: its source, chosen prior, configuration, rest."""
    calls = []
    for module in (demo, run_command):
        monkeypatch.setattr(module, "run_and_report", lambda *a, **k: calls.append((*a, k)) or 0)

    def ask(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        source, chosen, config, _, rest = calls.pop()
        return source, chosen, config, rest

    return ask


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not list(pathlib.Path().iterdir())
    return said


def test_without_weights_demo_takes_the_renderer_and_run_asks(asked, capsys):
    assert default_prior() is None and trained_size(None) is None
    source, chosen, config, _ = asked("demo")
    assert isinstance(chosen.prior, RenderedGeometryPrior) and chosen.about["kind"] == "rendered"
    assert (source.options.size, config.size) == ((128, 96), 128)
    said = refused(capsys, "run", "walk.mp4")
    for part in ("--prior is missing", "without weights", "mast3r-slam convert", "rendered"):
        assert part in said
    assert "small: no such weights" in refused(capsys, "demo", "--prior", "small")


def test_with_weights_both_take_them(asked, packaged):
    assert (default_prior(), trained_size(None)) == (str(packaged), (64, 48))
    pathlib.Path("small").mkdir()  # a folder of that name is the user's business
    for arguments in (("demo",), ("run", rim.URI)):
        _, chosen, config, rest = asked(*arguments)
        assert isinstance(chosen.prior, MASt3RPrior) and "of this package" in chosen.name
        assert chosen.about == {"kind": "mast3r", "weights": "small", "precision": "float32"}
        assert config.size == 64 and not any("trained on" in hint for hint in rest.get("hints", ()))
    assert asked("demo")[0].options.size == (64, 48)


def test_what_is_asked_for_comes_first(asked, packaged):
    for command in (("demo",), ("run", rim.URI)):
        _, chosen, config, _ = asked(*command, "--prior", RENDERED)
        assert isinstance(chosen.prior, RenderedGeometryPrior)
        assert config.size == (128 if command == ("demo",) else SlamConfig.size)
    assert asked("demo", "--size", 96)[0].options.size == (96, 72)
    *_, config, rest = asked("run", rim.URI, "--config.size", 128)
    assert config.size == 128
    assert any("trained on images of 64x48" in hint for hint in rest["hints"])
    # A folder with a card says as much as a preset.
    assert asked("run", rim.URI, "--prior", packaged)[2].size == 64
    assert asked("run", rim.URI, f"--prior={packaged}", "--preset", "calib")[2].size == 64


def test_noise_is_the_renderer_s(packaged, capsys):
    said = refused(capsys, "demo", "--noise.depth", 0.1)
    assert "--noise" in said and "--prior rendered" in said


def test_weights_that_are_not_those_of_their_card_are_refused(packaged, capsys):
    weights = packaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert "checksum differs" in refused(capsys, "demo")
    write_images(packaged.parent / "images", ["a.png", "b.png"])
    assert "checksum differs" in refused(capsys, "run", packaged.parent / "images")
    (packaged / "card.json").write_text("{")
    assert "card.json: is not a JSON object" in refused(capsys, "demo")


def test_retrieval_weights_of_another_network_are_refused(packaged, capsys):
    for width in (64, 32):
        retrieval = build_retrieval({"centroids": np.ones((4, width))}, num_features=3)
        package(packaged, tiny_network(), retrieval, CARD)
        if width == 64:
            assert MASt3RPrior.load("small").retrieval.num_centroids == 4
    assert "read 32 channels but its network makes 64" in refused(capsys, "demo")
