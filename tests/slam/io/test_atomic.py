"""Atomic files: whole or absent, and no litter."""

import os

import pytest

from slam.io.atomic import atomic_write


def test_appears_only_at_the_end(tmp_path):
    path = tmp_path / "deep" / "er" / "f.bin"
    with atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert [p.name for p in path.parent.iterdir()] == ["f.bin"]


def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "f.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="midway"), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError("midway")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.bin"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "f") as file:
        file.write(b"")
    assert os.stat(tmp_path / "f").st_mode == os.stat(tmp_path / "plain").st_mode
