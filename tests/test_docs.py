"""The guides: every page is reachable, and what they tell the reader to type exists."""

import importlib.util
import pathlib
import pkgutil
import re
import shlex

import jax
import numpy as np
import pytest
import yaml

import ops
import slam
from slam.cli.main import _parse
from slam.io.preparation import prepare_frames

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = {path.relative_to(DOCS).as_posix(): path.read_text() for path in PAGES}
NOT_OURS = {"--align", "--correct_scale"}
"""Options of other programs that the guides speak of."""


def leaves(tree) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    return [
        leaf
        for part in (tree.values() if isinstance(tree, dict) else tree)
        for leaf in leaves(part)
    ]


def commands() -> list[str]:
    """Everything after ``mast3r-slam`` that a block of the shell says."""
    blocks = re.findall(r"```bash\n(.*?)```", "".join(TEXTS.values()), re.DOTALL)
    lines = (re.split(r"&&|\n", block) for block in blocks)
    found = [re.search(r"(?:^|\s)mast3r-slam (.*)", line) for part in lines for line in part]
    return sorted({match[1].strip() for match in found if match})


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(leaves(nav)) == sorted(TEXTS)


def test_links_lead_to_pages():
    wrong = [
        f"{page}: {target}"
        for page, text in TEXTS.items()
        for target in re.findall(r"\]\(([^)#:]+\.md)", text)
        if not (DOCS / page).parent.joinpath(target).is_file()
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command):
    arguments = shlex.split(command)
    if "--resume" in arguments:  # which brings its source along
        arguments.insert(1, "source")
    _parse(arguments, brief=False)


def test_options_in_the_text_exist(capsys):
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", "".join(TEXTS.values())))
    known = set(NOT_OURS)
    with pytest.raises(SystemExit):
        _parse(["--help"], brief=False)
    for name in re.findall(r"• ([a-z]+) ", capsys.readouterr().out):
        with pytest.raises(SystemExit):
            _parse([name, "--help"], brief=False)
        known |= set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    assert {"--stride", "--seed", "--dtype"} <= known
    assert mentioned <= known | {"--help-all"}, mentioned - known


def test_the_reference_names_what_exists():
    names = re.findall(r"^::: (\S+)", "".join(TEXTS.values()), re.MULTILINE)
    for name in names:
        package, *path = name.split(".")
        pkgutil.resolve_name(f"{package}:{'.'.join(path)}")
    promised = {"slam.run", "slam.Reconstruction", "ops.match", "ops.Sim3", "mast3r_jax.load"}
    assert promised <= set(names) and len(names) == len(set(names))
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\[([\w.]+)\]", text):
            assert target in names, f"{page}: {target} is not in the reference"


def load_example():
    spec = importlib.util.spec_from_file_location("flat_world", DOCS / "examples/flat_world.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@jax.numpy_dtype_promotion("standard")  # what readers have
def test_the_example_prior_finds_a_known_shift():
    example = load_example()
    wall, prior = example.PrintedWall(), example.FlatWorld()
    assert isinstance(prior, slam.TwoViewPrior) and isinstance(wall, slam.Source)
    frames = [frame for _, frame in prepare_frames(wall, example.WIDTH)]

    @jax.jit
    def look(first, second):
        encodings = (jax.tree.map(lambda x: x[None], prior.encode(f)) for f in (first, second))
        one, two = (jax.tree.map(lambda x: x[0], view) for view in prior.decode(*encodings))
        return two, ops.match(one.points, two.points, one.descriptors, two.descriptors)

    view, found = look(frames[0], frames[2])
    shift = np.subtract(wall.corner(2), wall.corner(0))
    assert shift.all()
    centre = (np.array([example.WIDTH, example.HEIGHT]) - 1) / 2
    corner = (shift - centre) / example.FOCAL  # the wall is one unit away
    np.testing.assert_allclose(view.points[0, 0, :2], corner, atol=1e-6)
    v, u = np.indices((example.HEIGHT, example.WIDTH)).reshape(2, -1)
    here, valid = np.stack([u, v], axis=-1), np.asarray(found.valid)
    # Where the 5 x 5 pixels around are in both images.
    low, high = 2, np.array([example.WIDTH, example.HEIGHT]) - 2
    inside = np.all([(at >= low) & (at < high) for at in (here, here + shift)], axis=(0, 2))
    assert valid[inside].mean() > 0.95
    # A rough texture has a chance likeness here and there.
    exact = (np.asarray(found.uv) == here + shift).all(axis=1)
    assert exact[inside & valid].mean() > 0.9
    covered = frames[2].replace(image=np.zeros_like(frames[2].image))
    assert not look(frames[0], covered)[0].confidence.any()
