"""YAML files as flat entries that know their lines, for messages."""

import dataclasses
import pathlib
import re
from typing import Any

import yaml

from slam.io.frames import SourceError

MAX_DEPTH = 8
"""Mappings within mappings; a file that contains itself (YAML can) has no end to them."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1, which executes nothing; but ``1e-3`` is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A value that is no mapping, and the line of its key, from 1."""

    value: Any
    line: int


def read_yaml(path: pathlib.Path) -> dict[str, Entry]:
    """The values of a YAML file by their dotted keys, ``tracking.huber``, in the file's order.

    Lists are values; an empty file has none. The first line may be the ``%YAML:1.0`` that OpenCV
    writes and asks for, which is no YAML. Raises ``SourceError`` naming the line if the file
    cannot be read, is no YAML, is no mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not a text file") from error
    entries: dict[str, Entry] = {}
    text = re.sub(r"\A%YAML:", "#", text)
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                _collect(path, loader, root, "", entries, MAX_DEPTH)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SourceError(f"{path}{line}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    return entries


def _collect(
    path: pathlib.Path,
    loader: _Loader,
    node: yaml.Node,
    prefix: str,
    entries: dict[str, Entry],
    depth: int,
) -> None:
    if not isinstance(node, yaml.MappingNode):
        raise SourceError(f"{path}:{node.start_mark.line + 1}: expected lines 'key: value'")
    if depth == 0:
        raise SourceError(f"{path}:{node.start_mark.line + 1}: nested too deep")
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if key in seen:
            raise SourceError(
                f"{path}:{line}: key '{key}' is there already, on line {seen[key]}; leave one out"
            )
        seen[key] = line
        if isinstance(value_node, yaml.MappingNode):
            _collect(path, loader, value_node, f"{key}.", entries, depth - 1)
        else:
            entries[key] = Entry(loader.construct_object(value_node, deep=True), line)
