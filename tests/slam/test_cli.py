"""The command line: help a newcomer can follow, one sentence for bad input, and whole runs."""

import contextlib
import dataclasses
import functools
import glob
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from mast3r_jax import checkpoint, load
from mast3r_jax.packaging import package
from slam import runner
from slam.cli import demo, main, session
from slam.cli.main import _parse
from slam.cli.prior import ChosenPrior, rendered_name
from slam.cli.run import Run
from slam.config import SlamConfig
from slam.io import recording
from slam.io.frames import SourceError
from slam.io.open_source import RectifiedSource, open_source
from slam.io.recording import write_video
from slam.presets import read_preset
from slam.priors.rendered import GeometryNoise
from slam.reconstruction import Reconstruction
from tests.conftest import DATA
from tests.mast3r_jax.test_card import CARD
from tests.slam import rim
from tests.slam.io.recordings import write_images, write_tum
from tests.weights_conversion.test_retrieval import small, write_files

OFFICIAL = DATA / "network" / "tiny_official_layout.pth"
NO_NOISE = tuple(f"--noise.{kind}=0" for kind in ("depth", "bias", "scale", "descriptor"))
SMALL = ("--config.size", "128", "--config.keyframe-capacity", "4")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, a terminal of 80 columns, and no cache in the user's home."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """What has been compiled for one run serves the next of the same configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Stepper", rim.stepper)
        yield


def call(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def help_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    return " ".join(text.replace("│", " ").split())


def refused(capsys, *arguments, words=()) -> None:
    """Bad input: status 2, one sentence on stderr, and no file."""
    before = sorted(pathlib.Path().rglob("*"))
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err, captured.err
    assert sorted(pathlib.Path().rglob("*")) == before


# help


def test_help_names_the_commands_and_where_to_start(capsys):
    text = help_of(capsys, "--help")
    for part in ("mast3r-slam demo", "mast3r-slam convert", "mast3r-slam run video.mp4 --prior"):
        assert part in text
    assert "python -m weights_conversion download" in text
    assert all(f"• {name} " in text for name in ("demo", "run", "convert"))


def test_version(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("mast3r-slam ")


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("demo", ["--seed", "--frames", "--size", "--out FOLDER", "no weights are needed"]),
        (
            "run",
            [
                *("SOURCE", "Video file", "--prior", "mast3r-slam convert", "rendered", "--out"),
                *("--calib", "--stride", "--config.size", "run --help-all", "outputs/"),
                *("--preset", "eval_no_calib", "--no-loop-closure"),
            ],
        ),
        ("convert", ["FILE OUT", ".pth", "--dtype", "--overwrite"]),
    ],
)
def test_help_of_a_command(capsys, command, parts):
    text = help_of(capsys, command, "--help")
    assert all(part in text for part in parts), text


def test_help_of_run_does_not_drown_the_essential(capsys):
    brief = help_of(capsys, "run", "--help")
    whole = help_of(capsys, "run", "--help-all")
    assert "sigma-ray" in whole and "--noise.bias" in whole and "--config.match.radius" in whole
    assert "sigma-ray" not in brief and "--noise.bias" not in brief
    assert "--config.graph" not in brief and "--config.graph.loop-closure" in whole
    assert "--noise.depth" in brief
    assert len(brief) < len(whole) / 2


def test_parse_errors_say_where_help_is(capsys):
    for arguments in (["run", "--prior", "x"], ["demo", "--frame", "3"], ["fly"], []):
        with pytest.raises(SystemExit) as stopped:
            call(*arguments)
        assert stopped.value.code == 2
        assert "--help" in "".join(capsys.readouterr())


def test_the_module_is_the_command():
    """A process of its own: the way in, and that parsing does not wait for a compiler."""
    done = subprocess.run(
        [sys.executable, "-m", "slam.cli", "run", "nowhere.mp4", "--prior", "rendered"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere.mp4: no such file or folder;")


# bad input


def test_sources_that_cannot_be_used(capsys, tmp_path):
    run = functools.partial(refused, capsys, "run")
    rendered = ("--prior", "rendered", "--out", "out")
    run("nowhere.mp4", *rendered, words=["nowhere.mp4", "no such file"])
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(np.random.default_rng(0).bytes(5000))
    run(garbage, *rendered, words=["garbage.mp4", "not a video"])
    (tmp_path / "empty").mkdir()
    run(tmp_path / "empty", *rendered, words=["empty", "folder without images"])
    write_images(tmp_path / "mixed", ["a.png", "b.png"])
    Image.new("RGB", (32, 32)).save(tmp_path / "mixed" / "b.png")
    run(tmp_path / "mixed", *rendered, words=["b.png", "32x32", "64x48"])
    run("procedural:room?seats=3", *rendered, words=["unknown key 'seats'"])
    run(rim.URI, *rendered, "--start", 99, words=["start=99", "past its end"])
    run(rim.URI, *rendered, "--config.size", 100, words=["--config.size=100 must be", "of 16"])
    run(rim.URI, *rendered, "--noise.depth", -1, words=["--noise.depth=-1 must be at least 0"])
    capacity = ("--config.keyframe-capacity", 0)
    run(rim.URI, *rendered, *capacity, words=["--config.keyframe-capacity=0 must be"])
    share = ("--config.tracking.min-match-fraction", 2)
    run(rim.URI, *rendered, *share, words=["--config.tracking.min-match-fraction=2 must be"])
    refused(capsys, "demo", "--frames", 0, words=["frames=0"])
    refused(capsys, "demo", "--size", 100, words=["multiple of 16"])
    refused(capsys, "demo", "--noise.scale", -0.5, words=["--noise.scale=-0.5 must be"])


def test_rendered_geometry_needs_geometry(capsys, tmp_path):
    write_images(tmp_path / "images", ["a.png", "b.png"])
    words = ["images", "--prior rendered needs depth, poses, intrinsics", "MASt3R"]
    refused(capsys, "run", tmp_path / "images", "--prior", "rendered", words=words)
    write_tum(tmp_path / "tum")
    (tmp_path / "tum" / "calibration.txt").unlink()
    words = ["tum: --prior rendered needs intrinsics,"]
    refused(capsys, "run", tmp_path / "tum", "--prior", "rendered", words=words)


def test_calibration_files(capsys, tmp_path):
    folder = write_tum(tmp_path / "tum")
    tum = ("run", folder, "--prior", "rendered")
    (tmp_path / "K.txt").write_text("60 61 32\n")
    refused(capsys, *tum, "--calib", tmp_path / "K.txt", words=["K.txt:1", "fx fy cx cy"])
    refused(capsys, *tum, "--calib", tmp_path / "none.txt", words=["none.txt"])
    yaml = tmp_path / "K.yaml"
    yaml.write_text("width: 640\nheight: 360\ncalibration: [500, 500, 320, 180]\n")
    refused(capsys, *tum, "--calib", yaml, words=["K.yaml:3", "640x360, which 64x48 are no"])
    (folder / "calibration.txt").unlink()
    write_images(tmp_path / "images", ["a.png", "b.png"])
    convert = ("convert", OFFICIAL, tmp_path / "weights")
    assert call(*convert) == 0
    capsys.readouterr()
    network = ("--prior", tmp_path / "weights", "--config.size", "64")
    for asked in (("--calibrated",), ("--preset", "calib")):
        words = ["a.png", "no intrinsics", "calibration"]
        refused(capsys, "run", tmp_path / "images", *network, *asked, words=words)


def test_presets_that_cannot_be_used(capsys, tmp_path):
    run = functools.partial(refused, capsys, "run", rim.URI, "--prior", "rendered", "--preset")
    run("calip", words=["calip: neither a preset nor a file", "eval_no_calib"])
    mine = tmp_path / "mine.yaml"
    mine.write_text("tracking:\n  hubber: 1\n")
    run(mine, words=["mine.yaml:2: unknown key 'tracking.hubber'; did you mean tracking.huber"])
    refused(capsys, "run", "--help", f"--preset={mine}", words=["mine.yaml:2"])


@pytest.fixture
def asked(monkeypatch):
    """The commands that would have been executed."""
    commands = []
    monkeypatch.setattr(Run, "execute", lambda self: commands.append(self) or 0)

    def ask(*arguments) -> Run:
        assert call("run", "walk.mp4", "--prior", "rendered", *arguments) == 0
        return dataclasses.replace(commands.pop(), arguments=())

    return ask


def test_options_overrule_the_preset_and_the_preset_the_defaults(asked, tmp_path):
    assert asked() == Run("walk.mp4", "rendered")
    eth3d = asked("--preset", "eth3d")
    assert (eth3d.calibrated, eth3d.stride, eth3d.center_principal_point) == (True, 1, False)
    assert eth3d.config == read_preset("eth3d").config != SlamConfig()
    mine = tmp_path / "mine.yaml"
    mine.write_text("inherit: calib.yaml\ntracking: {huber: 2, max_iters: 7}\nretrieval: {k: 5}\n")
    more = ("--stride", 4, "--no-calibrated", "--config.tracking.rays.huber", 3)
    # Before or after the options that overrule it, in one word or two.
    for command in (asked("--preset", mine, *more), asked(*more, f"--preset={mine}")):
        tracking = command.config.tracking
        assert (tracking.rays.huber, tracking.pixels.huber) == (3.0, 2.0)
        assert tracking.rays.max_iterations == tracking.pixels.max_iterations == 7
        assert command.config.retrieval.num_candidates == 5
        assert (command.stride, command.calibrated, command.preset) == (4, False, str(mine))
    assert asked("--preset", "base").config == SlamConfig()


def test_help_shows_the_preset_s_values(capsys):
    text = help_of(capsys, "run", "--preset", "calib", "--help")
    assert "Use every n-th frame from there. (default: 2)" in text and "--no-calibrated" in text
    assert "--config.relocalization" not in text


@pytest.mark.parametrize(
    ("options", "calibrated", "closes_loops", "rectified"),
    [
        ((), False, True, None),
        (("--calibrated",), True, True, True),
        (("--preset", "eth3d"), True, True, False),
        (("--calib", "K.txt", "--no-loop-closure"), True, False, True),
        (("--config.graph.no-loop-closure",), False, False, None),
    ],
)
def test_what_a_run_is_asked_to_do(monkeypatch, options, calibrated, closes_loops, rectified):
    pathlib.Path("K.txt").write_text("100 100 63.5 47.5")
    asked = {}

    def run_and_report(source, prior, config, out, **others):
        asked.update(others, source=source, config=config)
        return 0

    monkeypatch.setattr("slam.cli.run.run_and_report", run_and_report)
    assert call("run", rim.URI, "--prior", "rendered", *options) == 0
    assert asked["calibrated"] == calibrated
    assert asked["config"].graph.loop_closure == closes_loops
    source = asked["source"]
    assert isinstance(source, RectifiedSource) == calibrated
    assert getattr(source, "center_principal_point", None) == rectified
    if "--calib" in options:
        assert next(iter(source)).K[0, 0] == pytest.approx(100, rel=1e-6)
        assert asked["about"]["calib"] == "K.txt" and json.dumps(asked["about"])


def test_a_viewer_looks_on(monkeypatch, capsys):
    """The run's observer is a viewer that serves to this machine only, and is closed at the end."""
    looked = []

    def run_and_report(source, prior, config, wanted, hints, **others):
        viewer = wanted.observer
        looked.extend([viewer, *hints])
        with socket.create_connection(("localhost", viewer.port)):
            return 0

    monkeypatch.setattr("slam.cli.run.run_and_report", run_and_report)
    command = ("run", rim.URI, "--prior", "rendered")
    assert call(*command, "--viewer", "--viewer-port", "0") == 0
    viewer, said = looked
    assert viewer.host == "localhost" and viewer.url in said
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", viewer.port))
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        refused(capsys, *command, "--viewer", "--viewer-port", port, words=[str(port)])


def test_demo_without_loop_closure(monkeypatch):
    configs = []
    monkeypatch.setattr(
        demo, "run_and_report", lambda s, p, config, *a, **k: configs.append(config) or 0
    )
    for options in ((), ("--no-loop-closure",)):
        call("demo", *options)
    assert [config.graph.loop_closure for config in configs] == [True, False]


def test_weights_that_cannot_be_used(capsys, tmp_path):
    write_images(tmp_path / "images", ["a.png", "b.png"])
    run = functools.partial(refused, capsys, "run", tmp_path / "images", "--prior")
    run("nowhere", words=["nowhere: no such weights", "mast3r-slam convert"])
    run(OFFICIAL, words=["tiny_official_layout.pth: is a file", "mast3r-slam convert"])
    (tmp_path / "weights").mkdir()
    run(tmp_path / "weights", words=["weights: no checkpoint folder", "model.safetensors"])
    (tmp_path / "weights" / "config.json").write_text("{}")
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"12345")
    run(tmp_path / "weights" / "model.safetensors", words=["pass the folder"])
    run(tmp_path / "weights", words=["weights"])


def test_checkpoints_that_cannot_be_converted(capsys, tmp_path):
    whole = OFFICIAL.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    refused(capsys, "convert", tmp_path / "cut.pth", "out", words=["cut.pth"])
    # A pickle that would run a command: protocol 2, posix.system('touch hacked').
    evil = b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch hacked\x85R."
    (tmp_path / "evil.pth").write_bytes(evil)
    refused(capsys, "convert", tmp_path / "evil.pth", "out", words=["evil.pth"])
    refused(capsys, "convert", tmp_path / "none.pth", "out", words=["none.pth"])


def test_output_folders_that_cannot_be_used(capsys, tmp_path):
    run = functools.partial(refused, capsys, "run", rim.URI, "--prior", "rendered", "--out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    run(tmp_path / "full", words=["full: holds other files (thesis.tex)"])
    run(tmp_path / "full", "--overwrite", words=["full: holds other files (thesis.tex)"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "map.ply").write_text("earlier")
    run(tmp_path / "run", words=["run: holds the results of a run", "--overwrite"])
    assert (tmp_path / "run" / "map.ply").read_text() == "earlier"
    run(tmp_path / "full" / "thesis.tex", words=["no folder"])
    run(tmp_path / "full" / "thesis.tex" / "out", words=["not a folder that can be written to"])


def test_what_can_be_refused_early_is(capsys, monkeypatch):
    """A folder for the results, or weights, that cannot be used: before any image is looked at."""
    monkeypatch.setattr("slam.cli.run.open_source", None)
    refused(capsys, "run", "walk.mp4", "--prior", "nowhere", words=["nowhere: no such weights"])
    pathlib.Path("mine.txt").write_text("mine")
    out = ("--prior", "rendered", "--out", "mine.txt")
    refused(capsys, "run", "walk.mp4", *out, words=["mine.txt: exists and is no folder"])


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ((0.01, 0.005, 0.01, 0.02), "depth 1 %, bias 0.5 %, scale 1 %, descriptors 0.02"),
        ((0.0, 0.02, 0.0, 0.0), "bias 2 %"),
        ((0.0, 0.0, 0.0, 0.0), "none"),
    ],
)
def test_the_prior_s_name_tells_all_that_it_gets_wrong(sizes, name):
    assert rendered_name(GeometryNoise(*sizes)) == f"rendered geometry; noise: {name}"


def test_the_depth_scale_is_told_where_it_is_assumed(tmp_path):
    folder = write_tum(tmp_path / "tum")
    told = ["depth: 5000 units per metre (TUM's); --depth-scale changes it"]
    for source in (open_source(folder), open_source(folder, stride=2)):
        assert Run(str(folder), "rendered").hints(source) == told
        # Reads no depth, but has no retrieval weights.
        assert not any("depth" in hint for hint in Run(str(folder), "weights").hints(source))
        assert Run(str(folder), "rendered", depth_scale=5000.0).hints(source) == []
    (folder / "depth.txt").unlink()
    assert Run(str(folder), "rendered").hints(open_source(folder)) == []
    assert Run(rim.URI, "rendered").hints(open_source(rim.URI)) == []


def test_missing_retrieval_weights_are_told_where_they_matter(tmp_path):
    weights = str(tmp_path / "weights")
    (hint,) = Run("walk.mp4", weights).hints(rim.source())
    assert "loops and relocalisation need retrieval weights" in hint
    assert f"mast3r-slam convert RETRIEVAL.pth {weights}" in hint
    assert Run("walk.mp4", weights, no_loop_closure=True).hints(rim.source()) == []
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "retrieval.json").write_text("{}")
    assert Run("walk.mp4", weights).hints(rim.source()) == []


@pytest.mark.slow
@pytest.mark.parametrize("lost", [True, False])
def test_a_run_that_got_lost_at_once_says_where_to_look(capsys, lost):
    frames = [
        frame if n == 0 or not lost else rim.covered(frame)
        for n, frame in enumerate(rim.walk()[:3])
    ]
    status = session.run_and_report(
        rim.Frames(frames),
        ChosenPrior(rim.EXACT, "exact", {}, "next: look"),
        rim.CONFIG,
        session.Session(),
        about={},
    )
    said = capsys.readouterr().out
    assert status == int(lost) and ("LOST" in said) == ("next: look" in said) == lost


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def broken(self):
        raise KeyError("slot")

    monkeypatch.setattr(demo.Demo, "execute", broken)
    with pytest.raises(KeyError):
        call("demo")


def test_compiled_programs_are_kept_for_the_next_run(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        assert call("run", "nowhere.mp4", "--prior", "rendered") == 2
        kept = [getattr(jax.config, name) for name in names]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert kept == [str(tmp_path / "cache/mast3r-slam-jax/compiled"), 0.0]


# whole runs


def test_demo(capsys, monkeypatch):
    """As promised: it needs nothing, ends well, and says where everything is."""
    # Buffers of the size that the other tests have compiled.
    monkeypatch.setattr(demo, "SlamConfig", functools.partial(SlamConfig, keyframe_capacity=4))
    assert call("demo", "--seed", 3, "--frames", 8, *NO_NOISE) == 0
    said, err = capsys.readouterr()
    assert err == "" and max(map(len, said.splitlines())) <= 80
    assert "all 8 frames have a pose" in said and "Results in outputs/procedural-room-3/" in said
    for part in ("RMSE", "Sim(3)", " m ", " ms ", "waiting for images", "whole frame", "solve"):
        assert part in said
    folder = pathlib.Path("outputs/procedural-room-3")
    told = json.loads((folder / "run.json").read_text())
    assert told["source"] == "procedural:room?seed=3&frames=8&size=128x96"
    assert told["prior"]["kind"] == "rendered" and told["prior"]["noise"]["depth"] == 0
    for path in folder.iterdir():
        assert f"  {path.name}" in said


@pytest.mark.slow
def test_run_and_run_again(capsys):
    options = ("--prior", "rendered", *NO_NOISE, *SMALL, "--stride", 3)
    arguments = ("run", rim.URI, *options, "--max-frames", 4)
    assert call(*arguments) == 0
    assert call(*arguments) == 0
    assert sorted(p.name for p in pathlib.Path("outputs").iterdir()) == [
        "procedural-room-3",
        "procedural-room-3-2",
    ]
    one, two = (Reconstruction.load(p) for p in sorted(pathlib.Path("outputs").iterdir()))
    np.testing.assert_array_equal(one.trajectory().T_WC, two.trajectory().T_WC)
    # The command and the function are one system.
    np.testing.assert_array_equal(one.trajectory().T_WC, rim.result().trajectory().T_WC[:4])
    capsys.readouterr()
    out = pathlib.Path("outputs/procedural-room-3")
    (out / "map.ply").write_text("old")
    assert call(*arguments, "--out", out, "--overwrite") == 0
    assert (out / "map.ply").read_bytes().startswith(b"ply\n")
    assert f"Results in {out}/" in capsys.readouterr().out


KILLED = """
import sys
from slam.cli import main
from slam.io.procedural import ProceduralSource
from slam import runner
step, count = runner._Saver.save, 0
def save(self, state, collected):
    step(self, state, collected)
    if len(collected.outputs) == 3:
        self._checkpoints.finish()
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
runner._Saver.save = save
main(sys.argv[1:])
"""
"""A process that is killed right after the checkpoint of its third frame."""


@pytest.mark.slow
def test_kill_minus_nine_and_resume(capsys):
    options = ("--prior", "rendered", *NO_NOISE, *SMALL, "--stride", "3", "--max-frames", "4")
    command = (*("run", rim.URI), *options, "--out", "out", "--checkpoint-seconds", "0")
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command], capture_output=True, env=os.environ | cache
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [path.name for path in pathlib.Path("out").iterdir()] == ["checkpoint"]
    refused(capsys, *command, words=["out: holds an unfinished run", "run --resume out"])
    refused(capsys, *command, "--resume", "out", words=["leave out procedural:"])
    there = pathlib.Path("elsewhere")
    there.mkdir()
    with contextlib.chdir(there):
        assert call("run", "--resume", "../out") == 0
    assert list(there.iterdir()) == []
    result = Reconstruction.load("out")
    expected = rim.result()
    np.testing.assert_array_equal(result.trajectory().T_WC, expected.trajectory().T_WC[:4])
    assert json.loads(pathlib.Path("out/run.json").read_text())["timing"]["resumed_at_frame"] == 3
    capsys.readouterr()
    refused(capsys, "run", "--resume", "out", words=["out: this run has finished"])
    refused(capsys, "run", "--resume", "nowhere", words=["nowhere: no such folder"])


def test_ctrl_c_leaves_a_run_that_can_be_gone_on_with(capsys, monkeypatch):
    def interrupted(frames):
        for number, frame in enumerate(frames):
            if number == 2:
                signal.raise_signal(signal.SIGINT)
            yield frame

    class Source(rim.Frames):
        def __iter__(self):
            return interrupted(self.frames)

    chosen = ChosenPrior(rim.EXACT, "exact", {}, "next: look")
    wanted = session.Session(pathlib.Path("out"), checkpoint_seconds=60.0, arguments=("run", "x"))
    source = Source(rim.source().frames)
    assert session.run_and_report(source, chosen, rim.CONFIG, wanted, about={}) == 130
    said = capsys.readouterr().out
    assert "to go on:" in said and "mast3r-slam run --resume out" in said
    assert [path.name for path in pathlib.Path("out").iterdir()] == ["checkpoint"]
    # Of a camera, what there is is all there will be.
    source.live = True
    wanted = dataclasses.replace(wanted, overwrite=True)
    assert session.run_and_report(source, chosen, rim.CONFIG, wanted, about={}) == 0
    result = Reconstruction.load("out")
    assert 1 <= result.num_frames < len(source.frames) and result.tracked.all()


def test_what_was_mapped_before_an_unreadable_image_is_written(capsys):
    recording.write_tum(open_source(rim.URI, stride=3, max_frames=4), pathlib.Path("tum"))
    images = sorted(pathlib.Path("tum/rgb").iterdir())
    images[2].write_bytes(images[2].read_bytes()[:-5000])
    command = ("run", "tum", "--prior", "rendered", *NO_NOISE, *SMALL, "--out", "out")
    assert call(*command) == 3
    said, err = capsys.readouterr()
    assert err == "" and max(map(len, said.splitlines())) <= 80
    assert f"note: the source broke off after frame 1: {images[2]}: " in " ".join(said.split())
    result = Reconstruction.load("out")
    assert result.num_frames == 2 and result.broken_off.startswith(str(images[2]))
    told = json.loads(pathlib.Path("out/run.json").read_text())
    assert told["verdict"] == result.verdict() and "broke off" in told["verdict"]
    assert told["notes"] == list(result.notes)
    assert not pathlib.Path("out/checkpoint").exists()
    images[0].write_bytes(images[0].read_bytes()[:-5000])
    refused(capsys, *command, "--overwrite", words=[str(images[0])])


@pytest.mark.parametrize("live", [False, True])
def test_a_source_that_breaks_off_as_it_is_interrupted(live, monkeypatch):
    class Source(rim.Frames):
        def __iter__(self):
            yield from self.frames
            raise SourceError("no picture for 10 s")

    class AfterTwoFrames:
        asked = 0

        def is_set(self):
            self.asked += 1
            return self.asked > 2

    interrupt = contextlib.nullcontext(AfterTwoFrames())
    monkeypatch.setattr(session, "_first_interrupt", lambda *_: interrupt)

    source = Source(list(rim.walk()[:2]))
    source.live = live
    chosen = ChosenPrior(rim.EXACT, "exact", {}, "next: look")
    wanted = session.Session(pathlib.Path("out"), checkpoint_seconds=60.0)
    status = session.run_and_report(source, chosen, rim.CONFIG, wanted, about={})
    assert status == (0 if live else session.BROKEN_OFF)
    assert Reconstruction.load("out").num_frames == 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A MASt3R of 0.7 million random parameters, converted by the command."""
    folder = tmp_path_factory.mktemp("network") / "weights"
    assert main(["convert", str(OFFICIAL), str(folder)]) == 0
    return folder


NETWORK = ("--config.size", "64", "--config.keyframe-capacity", "4")


def consistent(said, status, folder, frames):
    """Screen, exit status and record tell the same, whatever it is; returns the record."""
    told = json.loads((folder / "run.json").read_text())
    result = Reconstruction.load(folder)
    assert told["verdict"] == result.verdict() and result.verdict() in " ".join(said.split())
    counts = told["counts"]
    assert counts["frames"] == frames == sum(counts["modes"].values())
    assert counts["frames_with_pose"] == result.tracked.sum() == counts["modes"]["tracking"]
    rows = (folder / "trajectory.txt").read_text().splitlines()
    assert len(rows) - 1 == counts["frames_with_pose"]
    assert status == (0 if counts["frames_with_pose"] > 1 else 1)
    words = {"NOT STARTED": (0, 0), "LOST": (1, 1), "PARTLY LOST": (2, frames - 1)}
    low, high = words.get(told["verdict"].split(":")[0], (frames, frames))
    assert low <= counts["frames_with_pose"] <= high
    return told


@pytest.mark.slow
def test_the_network_of_the_package_runs_on_a_video(capsys, weights, tmp_path, monkeypatch):
    """From pixels to a map with nothing but a video; the network's parameters are random numbers,
    so whether it finds its way is chance, but that every stage runs and tells the truth is not."""
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "pretrained")
    package(tmp_path / "pretrained" / "small", load(weights), None, CARD)
    write_video(open_source("procedural:room?seed=3&frames=6&size=64x48"), "walk.mp4")
    status = call("run", "walk.mp4", "--config.keyframe-capacity", 4)
    said, err = capsys.readouterr()
    assert err == "" and "prior: MASt3R, the small one of this package" in said
    told = consistent(said, status, pathlib.Path("outputs/walk"), 6)
    assert told["prior"] == {"kind": "mast3r", "weights": "small", "precision": "float32"}
    assert told["source"] == "walk.mp4"
    assert told["config"]["size"] == 64 and told["ate"] == []
    calls = {name: row["calls"] for name, row in told["timing"]["stages"].items()}
    for stage in ("source", "look up", "encode", "decode", "match", "solve", "commit", "frame"):
        assert calls[stage] == 6
    assert max(calls.values()) == 6  # stages that only some frames need
    assert "loops and relocalisation need retrieval weights" in said
    assert not pathlib.Path("outputs/walk/groundtruth.txt").exists()


@pytest.mark.slow
def test_the_network_survives_a_covered_lens(capsys, weights):
    frames = list(open_source("procedural:room?seed=3&frames=6&size=64x48"))
    writer = cv2.VideoWriter("dark.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number, frame in enumerate(frames):
        bgr = frame.rgb[..., ::-1] if number not in (0, 3) else np.zeros_like(frame.rgb)
        writer.write(np.ascontiguousarray(bgr))
    writer.release()
    status = call("run", "dark.avi", "--prior", weights, *NETWORK, "--out", "out")
    said, err = capsys.readouterr()
    assert err == ""
    consistent(said, status, pathlib.Path("out"), 6)


def test_convert_says_what_it_did(capsys, tmp_path):
    assert call("convert", OFFICIAL, tmp_path / "weights", "--dtype", "float16") == 0
    assert "671,116 as float16" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "weights").iterdir()} == {
        "model.safetensors",
        "config.json",
        "NOTICE.txt",
    }
    refused(capsys, "convert", OFFICIAL, tmp_path / "weights", words=["--overwrite"])
    shutil.rmtree(tmp_path / "weights")


# the README's path, as a newcomer types it

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TOY = {"run": NETWORK, "view": ("--port", "0")}
"""What is added to the commands."""
ELSEWHERE = ("demo", "bench", "train")
"""They have tests of their own."""
PUBLISHED = "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"


def commands() -> list[str]:
    """What follows ``mast3r-slam``, in the order of the text."""
    found = re.findall(r"mast3r-slam ([a-z]+(?: [^`\n#]+)?)(?=[`\n#])", README)
    return [command.strip() for command in found]


def typed(command: str) -> list[str]:
    """The command's words as the shell hands them on, at toy size."""
    words = [w for word in shlex.split(command) for w in (glob.glob(word) or [word])]
    if "retrieval" in command:  # or the runs would need programs of their own
        words[-1] = "weights/retrieval"
    if "rendered" in words:
        words[words.index("256")] = "128"
        return [*words, *NO_NOISE, "--config.keyframe-capacity", "4"]
    if "--viewer" in words:
        words += ["--viewer-port", "0"]
    return [*words, *(() if "--resume" in words else TOY.get(words[0], ()))]


def closed_at_once(seconds):
    raise KeyboardInterrupt


@pytest.fixture
def newcomer(monkeypatch):
    """A folder with somebody's recordings, and what ``download`` brings."""
    monkeypatch.setattr("slam.cli.view.time.sleep", closed_at_once)
    files = write_files(pathlib.Path("checkpoints"), *small())
    for file in (files, files.with_name(files.name.replace("trainingfree.pth", "codebook.pkl"))):
        file.rename(file.with_name(file.name.replace("MASt3R_512_metric", PUBLISHED)))
    shutil.copy(OFFICIAL, f"checkpoints/{PUBLISHED}.pth")
    for name in ("my_video.mp4", "second.mp4"):
        write_video(open_source("procedural:room?seed=3&frames=4&size=64x48"), name)
    recording.write_tum(rim.source(8), "path/to/tum_sequence")


@pytest.mark.slow
def test_the_readme_can_be_typed(newcomer, capsys):
    for command in commands():
        words = typed(command)
        if words[0] in ELSEWHERE:
            _parse(words, brief=False)
            continue
        if words[0] == "export":  # of a run that has found its way for sure
            words[1] = "outputs/tum_sequence"
        status = main(words)
        said, err = capsys.readouterr()
        if "--resume" in words:
            assert "outputs/my_video: this run has finished; there is nothing to go on" in err
            continue
        # Where a network of random numbers gets to is chance.
        assert (status, err) in ((0, ""), (int("weights/mast3r" in words), "")), (command, err)
        assert max(map(len, said.splitlines())) <= 80, said
    for name in ("my_video", "my_video-2", "second", "tum_sequence"):
        assert pathlib.Path("outputs", name, "run.json").is_file(), name
    library, recordings = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:2]
    names = {}
    exec(library.replace("SlamConfig()", "SlamConfig(size=64, keyframe_capacity=4)"), names)
    assert names["poses"].shape[1:] == (4, 4) and capsys.readouterr().out
    exec(recordings.replace("frames=60", "frames=2&size=64x48"), names)
    assert len(list(open_source("room.mp4"))) == 2


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"\.\[(\w+)\]", README)
    assert {"dev", "viewer", "bench", "gpu"} <= set(named) <= set(extras["optional-dependencies"])
