"""Downloads survive cut connections, notice changed files, and never leave half a file."""

import collections
import dataclasses
import hashlib
import http.server
import json
import pathlib

import pytest

from tests.weights_conversion.file_server import CONTENT, Behaviour, Handler, serving
from weights_conversion.download import (
    PUBLISHED,
    DownloadError,
    Published,
    fetch,
    recorded_sha256,
    verify,
)

SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with serving() as served:
        yield served


def get(published: Published, folder: pathlib.Path, **options):
    return fetch(published, folder, **{"backoff": 0.001, "timeout": 5.0, **options})


def files(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def ranges(behaviour: Behaviour) -> list[str | None]:
    return [headers.get("Range") for headers in behaviour.requests]


def test_download_records_its_checksum(server, tmp_path):
    behaviour, published = server
    seen = collections.defaultdict(list)

    def progress(what, done, total):
        seen[what].append((done, total))

    got = get(published, tmp_path / "new", progress=progress)
    assert got.path.read_bytes() == CONTENT
    assert (got.size, got.sha256, got.fetched) == (len(CONTENT), SHA256, True)
    # The record is what `sha256sum -c` reads.
    assert (tmp_path / "new/w.pth.sha256").read_text() == f"{SHA256}  w.pth\n"
    assert files(tmp_path / "new") == {"w.pth", "w.pth.sha256"}
    for what in ("download", "checksum"):
        assert seen[what][-1] == (len(CONTENT), len(CONTENT))
        assert seen[what] == sorted(seen[what])
    assert len(behaviour.requests) == 1


def test_second_download_only_verifies(server, tmp_path):
    behaviour, published = server
    get(published, tmp_path)
    again = get(published, tmp_path)
    assert not again.fetched and again.sha256 == SHA256 and len(behaviour.requests) == 1


def test_cut_connections_are_resumed(server, tmp_path):
    behaviour, published = server
    behaviour.cuts = [1_000_000, 500_000, 0, 0]
    got = get(published, tmp_path)
    assert got.path.read_bytes() == CONTENT
    assert ranges(behaviour) == [
        None,
        "bytes=1000000-",
        "bytes=1500000-",
        "bytes=1500000-",
        "bytes=1500000-",
    ]
    assert behaviour.requests[1]["If-Range"] == '"one"'
    assert files(tmp_path) == {"w.pth", "w.pth.sha256"}


def test_giving_up_keeps_the_part_for_the_next_run(server, tmp_path):
    behaviour, published = server
    behaviour.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"without progress .* resume from 1\.00 MB"):
        get(published, tmp_path, retries=2)
    assert files(tmp_path) == {"w.pth.part", "w.pth.part.json"}
    behaviour.cuts = []
    assert get(published, tmp_path).path.read_bytes() == CONTENT
    assert ranges(behaviour)[-1] == "bytes=1000000-"


def test_a_complete_part_needs_no_bytes(server, tmp_path):
    """Stopped between the last byte and the checksum: the server answers 416."""
    behaviour, published = server
    behaviour.cuts = [10]
    with pytest.raises(DownloadError):
        get(published, tmp_path, retries=0)
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    assert get(published, tmp_path).path.read_bytes() == CONTENT
    assert ranges(behaviour) == [None, f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    behaviour, published = server
    behaviour.cuts = [10]
    with pytest.raises(DownloadError):
        get(published, tmp_path, retries=0)
    (tmp_path / "w.pth.part").write_bytes(CONTENT + b"more")
    assert get(published, tmp_path).path.read_bytes() == CONTENT


def test_server_without_ranges_restarts_cleanly(server, tmp_path):
    behaviour, published = server
    behaviour.ranges, behaviour.cuts = False, [1_000_000, 500_000]
    got = get(published, tmp_path)
    assert got.path.read_bytes() == CONTENT
    assert len(behaviour.requests) == 3


def test_server_that_never_gets_further_is_given_up(server, tmp_path):
    behaviour, published = server
    behaviour.ranges, behaviour.cuts = False, [1000] * 50
    with pytest.raises(DownloadError, match="4 attempts without progress"):
        get(published, tmp_path, retries=3)
    assert len(behaviour.requests) < 10


@pytest.mark.parametrize("if_range", [True, False])
def test_a_changed_file_is_fetched_anew(server, tmp_path, if_range):
    """By If-Range, or where the server ignores that, by comparing the ETag of the answer."""
    behaviour, published = server
    behaviour.cuts = [1_000_000]
    with pytest.raises(DownloadError):
        get(published, tmp_path, retries=0)
    behaviour.content = CONTENT[::-1]
    behaviour.etag, behaviour.if_range = '"two"', if_range
    assert get(published, tmp_path).path.read_bytes() == CONTENT[::-1]


def test_a_file_of_another_size_is_fetched_anew_without_etags(server, tmp_path):
    behaviour, published = server
    behaviour.etag, behaviour.cuts = None, [1_000_000]
    with pytest.raises(DownloadError):
        get(published, tmp_path, retries=0)
    behaviour.content = CONTENT[::-1] + b"!"
    assert get(published, tmp_path).path.read_bytes() == CONTENT[::-1] + b"!"


def test_parts_of_unknown_origin_are_not_trusted(server, tmp_path):
    behaviour, published = server
    (tmp_path / "w.pth.part").write_bytes(b"something else")
    assert get(published, tmp_path).path.read_bytes() == CONTENT
    (tmp_path / "w.pth").unlink()
    (tmp_path / "w.pth.part").write_bytes(b"something else")
    (tmp_path / "w.pth.part.json").write_text('{"url": ')
    assert get(published, tmp_path).path.read_bytes() == CONTENT
    (tmp_path / "w.pth").unlink()
    (tmp_path / "w.pth.part").write_bytes(b"something else")
    other = {"url": "http://x/w.pth", "size": len(CONTENT), "etag": '"one"', "modified": None}
    (tmp_path / "w.pth.part.json").write_text(json.dumps(other))
    assert get(published, tmp_path).path.read_bytes() == CONTENT
    assert ranges(behaviour) == [None, None, None]


def test_server_errors_are_retried(server, tmp_path):
    behaviour, published = server
    behaviour.status = 503
    with pytest.raises(DownloadError, match="the server answered 503"):
        get(published, tmp_path, retries=2)
    assert len(behaviour.requests) == 3
    assert files(tmp_path) == set()


def test_missing_files_are_not_retried(server, tmp_path):
    behaviour, published = server
    behaviour.status = 404
    with pytest.raises(DownloadError, match=r"w\.pth: the server answered 404 Not Found; check"):
        get(published, tmp_path)
    assert len(behaviour.requests) == 1 and files(tmp_path) == set()


def test_no_network_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    unreachable = Published(f"http://127.0.0.1:{port}/w.pth", "w.pth", "test weights")
    with pytest.raises(DownloadError, match="cannot reach the server"):
        fetch(unreachable, tmp_path)  # with the real back-off: it must not be used
    assert files(tmp_path) == set()


def test_web_pages_are_not_weights(server, tmp_path):
    behaviour, published = server
    behaviour.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="a web page instead of the file"):
        get(published, tmp_path)
    assert files(tmp_path) == set()


def test_only_web_addresses_are_opened(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    with pytest.raises(DownloadError, match="only http and https"):
        get(Published(secret.as_uri(), "w.pth", ""), tmp_path / "out")


def test_demanded_checksum_is_enforced(server, tmp_path):
    behaviour, published = server
    wrong = "0" * 64
    with pytest.raises(DownloadError, match=f"{SHA256}, but {wrong} was demanded"):
        get(published, tmp_path, sha256=wrong)
    assert files(tmp_path) == set(), "nothing is kept of a file with the wrong checksum"
    assert get(published, tmp_path, sha256=SHA256.upper()).sha256 == SHA256
    pinned = dataclasses.replace(published, sha256=wrong)
    with pytest.raises(DownloadError, match="was demanded"):
        get(pinned, tmp_path)  # a published checksum counts like a demanded one
    requests = len(behaviour.requests)
    with pytest.raises(DownloadError, match="is not 64 hexadecimal digits"):
        get(published, tmp_path, sha256="abc")
    assert len(behaviour.requests) == requests


def test_recorded_checksum_is_enforced(server, tmp_path):
    """Trust on first use: a different file under the same name is refused until the user agrees."""
    behaviour, published = server
    get(published, tmp_path)
    (tmp_path / "w.pth").unlink()
    behaviour.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match=rf"w\.pth\.sha256 records {SHA256}; .* delete"):
        get(published, tmp_path)
    assert files(tmp_path) == {"w.pth.sha256"}
    (tmp_path / "w.pth.sha256").unlink()
    assert get(published, tmp_path).path.read_bytes() == CONTENT[::-1]


def test_damage_on_disk_is_found(server, tmp_path):
    _, published = server
    got = get(published, tmp_path)
    got.path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DownloadError, match="it is damaged"):
        get(published, tmp_path)
    with pytest.raises(DownloadError, match="it is damaged"):
        verify(got.path)
    assert recorded_sha256(got.path) == SHA256


def test_a_file_brought_by_hand_is_recorded(server, tmp_path):
    behaviour, published = server
    (tmp_path / "w.pth").write_bytes(CONTENT)
    assert recorded_sha256(tmp_path / "w.pth") is None
    assert get(published, tmp_path).sha256 == SHA256
    assert recorded_sha256(tmp_path / "w.pth") == SHA256 and not behaviour.requests


def test_unreadable_records_are_named(server, tmp_path):
    behaviour, published = server
    (tmp_path / "w.pth.sha256").write_text("rubbish\n")
    with pytest.raises(DownloadError, match=r"w\.pth\.sha256:1: no SHA-256"):
        get(published, tmp_path)
    assert not behaviour.requests


def test_full_disks_are_noticed_before_writing(server, tmp_path, monkeypatch):
    _, published = server
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(DownloadError, match=r"3\.00 MB more are needed, 1\.00 MB are free"):
        get(published, tmp_path)
    assert "w.pth" not in files(tmp_path)


def test_unusable_folders_are_named(server, tmp_path):
    _, published = server
    (tmp_path / "file").write_text("x")
    with pytest.raises(DownloadError, match="file: File exists; choose another folder"):
        get(published, tmp_path / "file")


def test_files_of_unknown_length_are_taken(server, tmp_path):
    behaviour, published = server
    behaviour.lengthless = True
    assert get(published, tmp_path).path.read_bytes() == CONTENT


def test_the_table_of_published_files():
    for entry in PUBLISHED.values():
        assert entry.url.startswith("https://download.europe.naverlabs.com/ComputerVision/MASt3R/")
        assert entry.url.endswith("/" + entry.file_name)
    # The retrieval module finds the codebook by replacing the last part of the head's name.
    head = PUBLISHED["retrieval"].file_name
    assert PUBLISHED["codebook"].file_name == head.rsplit("_", 1)[0] + "_codebook.pkl"
