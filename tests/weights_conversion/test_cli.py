"""The command line: what it writes, what it says, and that bad input leaves nothing behind."""

import dataclasses
import hashlib
import io
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import rich.console
import safetensors.numpy

import mast3r_jax
from tests.conftest import DATA
from tests.weights_conversion import archives as a
from tests.weights_conversion.file_server import CONTENT, serving
from tests.weights_conversion.test_torch_archive import formula_weight
from weights_conversion import cli, load_tensors
from weights_conversion.download import PUBLISHED
from weights_conversion.inspection import heads_of
from weights_conversion.tensors import load_archive

OFFICIAL = DATA / "network" / "tiny_official_layout.pth"
RESULT = {"model.safetensors", "config.json", "NOTICE.txt"}


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("no_proxy", "*")


def call(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(capsys, *arguments) -> str:
    """Run a command that must fail as bad input does; returns its sentence."""
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith("\n") and "Traceback" not in error
    return error.removeprefix("error: ").rstrip("\n")


@pytest.fixture(scope="session")
def network() -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in load_tensors(OFFICIAL).items()}


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The official layout in float32: (folder, what the command said)."""
    folder = tmp_path_factory.mktemp("converted") / "out"
    said = io.StringIO()
    console = rich.console.Console(file=said, width=80)
    assert cli.run(cli.Convert(OFFICIAL, folder), console) == 0
    return folder, said.getvalue()


# convert


def test_convert_writes_a_folder_that_loads(converted):
    folder, said = converted
    assert names(folder.parent) == {"out"} and names(folder) == RESULT
    weights = load_tensors(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}
    expected = formula_weight("enc_norm.weight", (8,), "micro/")
    np.testing.assert_array_equal(weights["encoder.norm.scale"], expected)
    model = mast3r_jax.load(folder)
    # The heads stand in the text of the training arguments only.
    assert (model.config.enc_heads, model.config.dec_heads) == (2, 1)

    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest in said and "640 used, 17 ignored" in said and "671,116 as float32" in said
    assert "8: the coarsest fusion stage" in said and "1: only the pre-training task" in said
    assert "8: the same tensor under a second name" in said and "scratch.layer1_rn.weight" in said
    assert "CC BY-NC-SA 4.0" in said and "NON-COMMERCIAL" in said
    assert all(len(line) <= 80 for line in said.splitlines()[1:])  # the first is the path
    notice = (folder / "NOTICE.txt").read_text()
    assert "CC BY-NC-SA 4.0" in notice
    assert hashlib.sha256(OFFICIAL.read_bytes()).hexdigest() in notice


def test_convert_takes_safetensors_without_second_names(tmp_path, capsys, network, converted):
    """As published copies are: no training arguments, and one name of each tied pair."""
    path = tmp_path / "w.safetensors"
    single = {name: value for name, value in network.items() if ".scratch.layer_rn." not in name}
    assert len(network) - len(single) == 8
    safetensors.numpy.save_file(single, path)
    said = refused(capsys, "convert", path, tmp_path / "out")
    assert said.startswith(f"{path}: ") and "enc_heads" in said
    heads = ("--enc-heads", 2, "--dec-heads", 1)
    assert call("convert", path, tmp_path / "out", *heads, "--dtype", "float16") == 0
    assert "640 used, 9 ignored" in capsys.readouterr().out
    one = load_tensors(tmp_path / "out" / "model.safetensors")
    other = load_tensors(converted[0] / "model.safetensors")
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name].astype(np.float16), name)


def test_bad_files_leave_nothing_behind(tmp_path, capsys, network):
    whole = OFFICIAL.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    at = whole.index(formula_weight("enc_norm.weight", (8,), "micro/").tobytes())
    (tmp_path / "flipped.pth").write_bytes(whole[:at] + b"?" + whole[at + 1 :])
    system = a.call(a.name("posix", "system"), a.text(f"touch {tmp_path}/ran"))
    a.write(tmp_path / "evil.pth", a.dict_of({"model": system}))
    a.write(tmp_path / "other.pth", a.dict_of({"w": a.tensor("0", (4,))}), {"0": bytes(16)})
    shutil.copy(OFFICIAL.with_name("preprocess.npz"), tmp_path / "numpy.pth")
    broken = {**network, "enc_norm.weight": np.full(8, np.inf, np.float32)}
    safetensors.numpy.save_file(broken, tmp_path / "inf.pth")
    rude = {**network, "\x1b[2J": np.zeros(8, np.float32)}
    safetensors.numpy.save_file(rude, tmp_path / "rude.pth")
    before = names(tmp_path)
    for name, message in {
        "cut.pth": "download it again",
        "flipped.pth": "wrong checksum",
        "evil.pth": "refuses to load posix.system",
        "other.pth": "missing tensor",
        "numpy.pth": "not a PyTorch checkpoint",
        "inf.pth": "enc_norm.weight holds numbers that are not finite",
        "rude.pth": r"unknown tensor \x1b[2J",
        "missing.pth": "no such file",
    }.items():
        heads = ("--enc-heads", 2, "--dec-heads", 1)
        said = refused(capsys, "convert", tmp_path / name, tmp_path / "deep" / "out", *heads)
        assert said.startswith(f"{tmp_path / name}: ") and message in said
        assert names(tmp_path) == before


def test_numbers_beyond_half_precision_are_refused(tmp_path, capsys, network):
    large = {**network, "enc_norm.weight": np.full(8, 7e4, np.float32)}
    path = tmp_path / "large.safetensors"
    safetensors.numpy.save_file(large, path)
    command = ("convert", path, tmp_path / "out", "--enc-heads", 2, "--dec-heads", 1, "--dtype")
    said = refused(capsys, *command, "float16")
    assert "tensor enc_norm.weight has numbers beyond the range of float16" in said
    assert names(tmp_path) == {"large.safetensors"}


def test_results_are_replaced_only_on_demand(tmp_path, capsys, converted):
    out = tmp_path / "out"
    shutil.copytree(converted[0], out)
    (out / "NOTICE.txt").write_text("an earlier one")
    before = (out / "model.safetensors").read_bytes()
    command = ("convert", OFFICIAL, out, "--dtype", "bfloat16")
    said = f"{out}: holds a conversion already; pass --overwrite, or choose another folder"
    assert refused(capsys, *command) == said
    assert (out / "model.safetensors").read_bytes() == before
    assert call(*command, "--overwrite") == 0
    assert names(tmp_path) == {"out"} and names(out) == RESULT
    weights = load_tensors(out / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {np.dtype(ml_dtypes.bfloat16)}
    expected = formula_weight("enc_norm.weight", (8,), "micro/").astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(weights["encoder.norm.scale"], expected)
    assert (out / "NOTICE.txt").read_text() == (converted[0] / "NOTICE.txt").read_text()


def test_heads_given_by_hand_win_over_the_checkpoint_s_own_text():
    assert heads_of(load_archive(OFFICIAL), 4, None) == {"enc_heads": 4, "dec_heads": 1}


def test_other_files_are_never_replaced(tmp_path, capsys):
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"x")
    said = refused(capsys, "convert", OFFICIAL, folder, "--overwrite")
    assert "holds other files (photo.jpg)" in said
    said = refused(capsys, "convert", OFFICIAL, folder / "photo.jpg", "--overwrite")
    assert "exists and is no folder" in said
    (tmp_path / "link").symlink_to(folder)
    assert "no folder" in refused(capsys, "convert", OFFICIAL, tmp_path / "link", "--overwrite")
    assert names(folder) == {"photo.jpg"}


def test_a_full_disk_keeps_the_earlier_result(tmp_path, capsys, monkeypatch, converted):
    out = tmp_path / "out"
    shutil.copytree(converted[0], out)
    before = (out / "model.safetensors").read_bytes()

    def full(path, _model, *, dtype):
        pathlib.Path(path).mkdir(exist_ok=True)
        (pathlib.Path(path) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cli, "convert_mast3r", lambda *_, **__: None)
    monkeypatch.setattr(mast3r_jax, "save", full)
    assert "No space left" in refused(capsys, "convert", OFFICIAL, out, "--overwrite")
    assert (out / "model.safetensors").read_bytes() == before
    assert names(tmp_path) == {"out"} and names(out) == RESULT


def test_converted_weights_are_recognised(tmp_path, capsys, converted):
    ours = converted[0] / "model.safetensors"
    assert "is converted already" in refused(capsys, "convert", ours, tmp_path / "again")
    assert call("inspect", ours) == 0
    assert "weights of this project" in capsys.readouterr().out


# inspect


def test_inspect_counts_and_fits_80_columns(capsys):
    assert call("inspect", OFFICIAL) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    # The first line is the path, which must stay whole.
    assert all(len(line) <= 80 for line in lines[1:])
    columns = [line.split() for line in lines]
    # 657 names; the eight tied pairs of 3 x 3 kernels are counted once: 6, 8, 10, 12 -> 8 channels.
    tied = 2 * 9 * 8 * (6 + 8 + 10 + 12)
    total = sum(value.size for value in load_tensors(OFFICIAL).values()) - tied
    assert ["total", "657", f"{total:,}"] in columns
    assert ["epoch", "int", "50"] in columns and ["model", "657", "tensors"] in columns
    assert ["enc_blocks", "24", "1,744", "float32"] in columns
    assert ["enc_heads", "2"] in columns and [
        "dpt_layer_dims",
        "(6,",
        "8,",
        "10,",
        "12)",
    ] in columns


def test_inspect_of_other_networks_says_why(tmp_path, capsys):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"prewhiten.p": np.ones((4, 4), ml_dtypes.bfloat16)}, path)
    assert call("inspect", path) == 0
    said = capsys.readouterr().out
    assert "prewhiten" in said and "bfloat16" in said and "not a MASt3R network" in said


def test_inspect_prints_nothing_a_file_could_abuse(tmp_path, capsys):
    entries = {
        "\x1b[2Jboo": a.text("\x1b]0;title\x07"),
        "[red]x[/nonsense]": a.text("[/]"),
        "loop": b"]q\x00h\x00a",  # a list that contains itself
        "model": a.dict_of({"\x1b[31m.w": a.tensor("0", (4,))}),
    }
    path = a.write(tmp_path / "rude.pth", a.dict_of(entries), {"0": bytes(16)})
    assert call("inspect", path) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said
    assert r"\x1b[2Jboo" in said and "[red]x[/nonsense]" in said and "list of 1" in said


def test_inspect_refuses_hostile_files(tmp_path, capsys):
    path = a.write(tmp_path / "evil.pth", a.dict_of({"model": a.name("posix", "system")}))
    assert "refuses to load posix.system" in refused(capsys, "inspect", path)


# download


def test_download_needs_consent(tmp_path, capsys):
    assert "pass --yes" in refused(capsys, "download", "--out", tmp_path / "new")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("answer", "accepted"), [("n", False), ("", False), ("Y", True)])
def test_download_asks_on_a_terminal(tmp_path, capsys, monkeypatch, answer, accepted):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(rich.console.Console, "input", lambda *_args, **_options: answer)
    with serving() as (behaviour, published):
        monkeypatch.setitem(PUBLISHED, "retrieval", published)
        if accepted:
            assert call("download", "retrieval", "--out", tmp_path / "new") == 0
            assert (tmp_path / "new" / "w.pth").read_bytes() == CONTENT
        else:
            said = refused(capsys, "download", "retrieval", "--out", tmp_path / "new")
            assert "not accepted" in said and names(tmp_path) == set()
        assert len(behaviour.requests) == accepted


def test_download_all_shows_the_licence_and_the_checksums(tmp_path, capsys, monkeypatch):
    with serving() as (_behaviour, published):
        for name in PUBLISHED:
            entry = dataclasses.replace(published, file_name=f"{name}.pth")
            monkeypatch.setitem(PUBLISHED, name, entry)
        assert call("download", "all", "--yes", "--out", tmp_path) == 0
        said = capsys.readouterr().out
        assert said.count(hashlib.sha256(CONTENT).hexdigest()) == 3
        assert "CC BY-NC-SA 4.0" in said and "map-free" in said
        assert f"convert {tmp_path / 'mast3r.pth'}" in said
        assert call("download", "--yes", "--out", tmp_path) == 0
        assert "was there already, and is intact" in capsys.readouterr().out
        said = refused(capsys, "download", "all", "--yes", "--out", tmp_path, "--sha256", "0" * 64)
        assert "name that file" in said
        said = refused(capsys, "download", "--yes", "--out", tmp_path, "--sha256", "0" * 64)
        assert "was demanded" in said


def test_interrupted_downloads_say_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "fetch", interrupted)
    assert call("download", "--yes", "--out", tmp_path) == 130
    assert "resumes" in capsys.readouterr().err


# the parser


@pytest.mark.parametrize(
    "arguments", [(), ("convert",), ("convert", "a", "b", "--dtype", "int8"), ("fly",)]
)
def test_wrong_usage_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    assert caught.value.code == 2


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "weights_conversion", "--help"],
        capture_output=True,
        text=True,
        cwd=DATA.parents[1],
        timeout=60,
    )
    assert done.returncode == 0
    for command in ("convert", "inspect", "download"):
        assert command in done.stdout
