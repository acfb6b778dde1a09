"""Stages and peers on tiny inputs: they run, and all compute the same. No time is asserted."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.bench import inputs, suite, timing, work
from experiments.bench.machine import describe_machine
from experiments.bench.peers import cpp, matchers, torch_blocks
from experiments.bench.plan import STAGES, quick_plan
from experiments.bench.stage import OURS, Work
from experiments.bench.system import time_walk
from experiments.bench.work import encoder_block
from experiments.bench.working_prior import WorkingPrior
from mast3r_jax import MASt3RConfig
from mast3r_jax.layers import Numerics
from mast3r_jax.transformer import EncoderBlock
from slam.priors import RenderedGeometryPrior
from tests.experiments.bench.small import CEILINGS
from tests.slam import rim

GXX = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: the C++ peers are NOT tested")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Peers are compiled into a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        cpp.library.cache_clear()
        yield
    cpp.library.cache_clear()


def made(*only: str) -> dict[str, suite.Stage]:
    return {stage.name: stage for stage in suite.stages(quick_plan(only))}


@pytest.mark.slow
@GXX
def test_cpp_computes_the_same():
    names = ("projection", "refinement", "match", "edges-rays", "edges-pixels")
    stages = made(*names)
    assert tuple(stages) == names
    for stage in stages.values():
        peer = stage.peers[0]
        assert (peer.name, peer.status) == (cpp.NAME, "measured"), peer
        assert stage.compile_s > 0 and stage.work.operations > 0
    about = stages["match"].about
    assert about["valid"] > 0.5 and about["wrong"] < 0.05 and about["motion_px"] > 3
    tree, brute_force = stages["match"].peers[1:]
    assert not tree.same_method and tree.status == brute_force.status == "measured"
    result = suite.measured(stages["match"], quick_plan(), CEILINGS)
    assert set(result.samples) == {OURS, cpp.NAME, matchers.TREE, matchers.BRUTE_FORCE}
    assert [ratio.name for ratio in result.ratios] == [f"match 64x48: ours / {cpp.NAME}"]


@pytest.mark.slow
def test_without_a_compiler_the_peer_says_so(monkeypatch):
    cpp.library.cache_clear()
    monkeypatch.setattr(cpp.shutil, "which", lambda name: None)
    stage = made("projection")["projection"]
    assert (stage.peers[0].status, stage.peers[0].why_not) == ("not here", "no g++ was found")
    assert set(suite.measured(stage, quick_plan(), CEILINGS).samples) == {OURS}
    cpp.library.cache_clear()


def test_torch_computes_the_same():
    pytest.importorskip("torch", reason="no PyTorch: its blocks are NOT compared with ours")
    for stage in made("encoder-block", "decoder-block").values():
        (peer,) = stage.peers
        assert (peer.name, peer.status) == (torch_blocks.NAME, "measured"), peer


def test_without_torch_the_peer_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert "pip install torch" in (torch_blocks.why_absent() or "")


def test_lapack_and_superlu_solve_the_same():
    stage = made("solver")["solver"]
    assert [peer.status for peer in stage.peers] == ["measured", "measured"]


@pytest.mark.slow
def test_geometry_converges_on_its_inputs():
    stages = made("pose-rays", "fusion")
    assert stages["pose-rays"].about["status"] in (0, 1)
    assert 1 < stages["pose-rays"].about["iterations"] < 50
    suite.measured(stages["fusion"], quick_plan(), CEILINGS)


def test_operations_are_those_the_compiler_counts():
    """Of a block, whose operations are nearly all matrix products."""
    config, numerics = MASt3RConfig.small(), Numerics.of(None, None)
    block = EncoderBlock(config, numerics=numerics, rngs=nnx.Rngs(0))
    rotary = torch_blocks.Rotary(*(jnp.ones((12, 2, 8)) for _ in range(2)))
    program = jax.jit(lambda b, x: b(x, rotary)).lower(block, jnp.ones((1, 12, 128))).compile()
    counted = program.cost_analysis()["flops"]
    assert encoder_block(config, 12 * 256).operations == pytest.approx(counted, rel=0.1)
    # The published network, in GFLOP an image of 512x384: 24 blocks of 1024 channels.
    whole = work.encoder(MASt3RConfig.vit_large(), 512 * 384, "float32").operations
    assert whole == pytest.approx(2 * 768 * (24 * (12 * 1024**2 + 2 * 768 * 1024) + 768 * 1024))


def test_the_nearer_ceiling_is_the_larger_floor():
    assert CEILINGS.floor_ms(1e8, 1e6, "float32") == {"float32 product": 1.0, "copy": 0.1}
    assert Work(1.0, 1.0).dtype == "float32"


def test_contestants_take_turns():
    calls = []
    contestants = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = timing.take_turns(contestants, 4, 0.0)
    # Warm-up twice each; then rounds, each begun by another, of an uncounted call and a counted.
    assert "".join(calls) == "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert all(len(s.ms) == timing.LEAST_ROUNDS for s in samples.values())
    assert timing.ratio(timing.Samples((2.0, 9.0, 4.0)), timing.Samples((1.0, 3.0, 2.0))) == 2.0


def test_compilation_is_not_a_lookup():
    compiled = []
    jax.monitoring.register_event_listener(lambda event, **rest: compiled.append(event))
    argument = jnp.ones(5)  # its own program may well be looked up
    for _ in range(2):
        compiled.clear()
        call, seconds = timing.compiled(lambda x: x * 3 + 1, argument)
        assert not any("cache_hits" in event for event in compiled)
        assert seconds > 0 and call().shape == (5,)


@pytest.mark.slow
def test_the_walk_is_timed_frame_by_frame():
    times = time_walk(rim.source(5), rim.EXACT, rim.CONFIG, "exact 128x96")
    assert (times.frames, times.compiled_frames, times.tracked) == (5, 0, 5)
    assert len(times.latency.ms) == 4 and times.frames_per_second > 0
    assert set(times.rows["frame"]) == {"encoder", "decoder", "match", "solve", "rest"}


@pytest.mark.slow
def test_the_working_prior_says_what_the_geometry_says():
    class Network:
        encode = staticmethod(lambda frame: jnp.ones(3))
        decode = staticmethod(lambda a, b: ({"any": a}, {"any": jnp.nan * b}))

    geometry = RenderedGeometryPrior()
    prior = WorkingPrior(geometry, Network())
    assert prior.retrieval is geometry.retrieval
    frame = inputs.room_frames((64, 48), 1)[0]
    one = jax.tree.map(lambda x: x[None], prior.encode(frame))
    found, expected = prior.decode(one, one)[1], geometry.decode(one.geometry, one.geometry)[1]
    np.testing.assert_array_equal(found.points, expected.points)


def test_the_machine_is_described():
    machine = describe_machine()
    assert machine["cores"] >= 1 and machine["versions"]["jax"] == jax.__version__
    assert set(STAGES) == set(quick_plan().only)
