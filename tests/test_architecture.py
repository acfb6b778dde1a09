"""Imports go one way, and the numerics depend on almost nothing."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("mast3r_jax", "ops", "slam", "weights_conversion", "experiments")
ALLOWED = {
    "ops": set(),
    "mast3r_jax": {"ops"},
    "slam": {"mast3r_jax", "ops"},
    "weights_conversion": {"mast3r_jax"},
    "experiments": {"mast3r_jax", "ops", "slam", "weights_conversion"},
}
# The command line is the rim where packages meet; nothing imports it.
ENTRY_POINT = "slam/cli"
OPS_THIRD_PARTY = {"jax", "jaxlib", "jaxlie", "numpy", "jaxtyping"}


def imports_of(source: str) -> set[str]:
    """Top-level names of everything a piece of source imports, at any depth of nesting."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this project"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no source found in {package}"
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        if not path.relative_to(ROOT).as_posix().startswith(ENTRY_POINT)
        for name in imports_of(path.read_text()) & set(PACKAGES)
        if name != package and name not in ALLOWED[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line():
    wrong = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(ENTRY_POINT)
        and re.search(rf"\b{ENTRY_POINT.replace('/', '.')}\b", path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_ops_depend_on_numerics_only():
    allowed = OPS_THIRD_PARTY | {"ops"} | set(sys.stdlib_module_names)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / "ops").rglob("*.py"))
        for name in imports_of(path.read_text()) - allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_annotations_are_not_postponed():
    """Postponed annotations are strings, which run-time shape checking cannot read."""
    wrong = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if "from __future__ import annotations" in path.read_text()
    ]
    assert not wrong, "\n".join(wrong)


def test_checker_sees_nested_and_dotted_imports():
    source = "def f():\n    import slam.io.video\n    from experiments import bench\n"
    assert imports_of(source) == {"slam", "experiments"}
