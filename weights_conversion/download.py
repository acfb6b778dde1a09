"""Fetching the published weights: resumed after a cut, checked, and never half-written.

A download grows in ``NAME.part``; ``NAME.part.json`` says of which version of the file it is a
part. When it is complete its SHA-256 is compared with the demanded one, or with the one recorded in
``NAME.sha256`` by an earlier download (trust on first use; the record has the format of
``sha256sum``), and only then does it get its name.
"""

import dataclasses
import hashlib
import http.client
import json
import pathlib
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping

from weights_conversion.inert_pickle import ArchiveError, printable

LICENCE_NOTICE = """\
The published MASt3R weights are (c) Naver Corporation, under CC BY-NC-SA 4.0:
NON-COMMERCIAL USE ONLY, with attribution, and derivatives (such as a conversion
to another format) under the same licence. They were trained on datasets with
terms of their own, which bind users of the weights as well; the licence of the
map-free relocalisation dataset in particular is very restrictive. Read
https://github.com/naver/mast3r/blob/main/CHECKPOINTS_NOTICE before using them.
The Apache-2.0 licence of this project covers its code, not these weights."""

Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(what, done, total)`` in bytes; ``what`` is ``download`` or ``checksum``."""

_CHUNK = 1 << 20
_FOLDER = "https://download.europe.naverlabs.com/ComputerVision/MASt3R/"
_STEM = "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"


class DownloadError(ArchiveError):
    """A download that failed for good; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Published:
    """One published file."""

    url: str
    file_name: str
    what: str
    """One line for tables."""
    about_bytes: int | None = None
    """Approximate size, for the user and for the check of free space; None where unknown."""
    sha256: str | None = None
    """None: the publisher gives no checksum, the first download is trusted and recorded."""


PUBLISHED: Mapping[str, Published] = {
    "mast3r": Published(
        url=f"{_FOLDER}{_STEM}.pth",
        file_name=f"{_STEM}.pth",
        what="the network, ViT-Large, 512 px, metric",
        about_bytes=2_754_000_000,  # 688,638,856 float32 parameters
    ),
    "retrieval": Published(
        url=f"{_FOLDER}{_STEM}_retrieval_trainingfree.pth",
        file_name=f"{_STEM}_retrieval_trainingfree.pth",
        what="the retrieval head (whitening) for loop closure",
    ),
    "codebook": Published(
        url=f"{_FOLDER}{_STEM}_retrieval_codebook.pkl",
        file_name=f"{_STEM}_retrieval_codebook.pkl",
        what="the retrieval codebook for loop closure",
    ),
}


@dataclasses.dataclass(frozen=True)
class Downloaded:
    """A file that is complete and checked."""

    path: pathlib.Path
    size: int
    sha256: str
    fetched: bool
    """False if it was there already."""


@dataclasses.dataclass(frozen=True)
class _Version:
    """Which version of a remote file bytes belong to."""

    url: str
    size: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """What ``If-Range`` may carry: a strong ETag, else the date."""
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.modified

    def same_as(self, other: "_Version") -> bool:
        return self == other and self.size is not None


class _CutError(Exception):
    """The transfer stopped early; worth another try."""


def human(nbytes: int) -> str:
    """A number of bytes for people: ``2.75 GB``."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if nbytes >= 1000**power:
            return f"{nbytes / 1000**power:.2f} {unit}"
    return f"{nbytes} bytes"


def sha256_of(path: pathlib.Path, progress: Progress | None = None) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
            done += len(block)
            if progress:
                progress("checksum", done, total)
    return digest.hexdigest()


def _beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)


def recorded_sha256(path: pathlib.Path) -> str | None:
    """The checksum an earlier download recorded in ``NAME.sha256``, None without a record.

    Raises ``DownloadError`` if the record cannot be understood.
    """
    record = _beside(path, ".sha256")
    if not record.exists():
        return None
    found = re.match(r"([0-9a-fA-F]{64})(\s|$)", record.read_text(errors="replace"))
    if not found:
        raise DownloadError(
            f"{record}:1: no SHA-256 of 64 digits; delete this file and verify again"
        )
    return found[1].lower()


def _check(path: pathlib.Path, actual: str, demanded: str | None, content: pathlib.Path) -> None:
    """Compare the checksum of ``content`` with the demanded and the recorded one of ``path``."""
    recorded = recorded_sha256(path)
    if demanded and actual != demanded:
        raise DownloadError(
            f"{content}: SHA-256 is {actual}, but {demanded} was demanded; "
            "delete it and download it again, or correct the demanded checksum"
        )
    if recorded and actual != recorded:
        raise DownloadError(
            f"{content}: SHA-256 is {actual}, but {_beside(path, '.sha256')} records {recorded}; "
            "it is damaged, or its publisher replaced it: delete the record to accept the new one"
        )


def _record(path: pathlib.Path, digest: str) -> None:
    temporary = _beside(path, ".sha256.tmp")
    temporary.write_text(f"{digest}  {path.name}\n")
    temporary.replace(_beside(path, ".sha256"))


def verify(
    path: pathlib.Path, sha256: str | None = None, progress: Progress | None = None
) -> Downloaded:
    """Check a file on disk against ``sha256`` and against its record, writing the record if new.

    Raises ``DownloadError`` on a mismatch (the file is left as it is).
    """
    digest = sha256_of(path, progress)
    _check(path, digest, _checked_hex(sha256), path)
    _record(path, digest)
    return Downloaded(path, path.stat().st_size, digest, fetched=False)


def _checked_hex(sha256: str | None) -> str | None:
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DownloadError(f"--sha256: {printable(sha256)} is not 64 hexadecimal digits")
    return sha256.lower() if sha256 else None


def _read_version(path: pathlib.Path) -> _Version | None:
    try:
        return _Version(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _size_of(response: http.client.HTTPResponse) -> int | None:
    """Size of the whole remote file, from ``Content-Range`` or ``Content-Length``."""
    if response.status == 206:
        found = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _range_start(response: http.client.HTTPResponse) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _attempt(
    url: str, part: pathlib.Path, timeout: float, about: int | None, progress: Progress | None
) -> None:
    """One request: returns when ``part`` is complete, raises ``_CutError`` if it stopped early."""
    notes = _beside(part, ".json")
    known = _read_version(notes)
    have = part.stat().st_size if part.exists() else 0
    if have and (known is None or known.url != url):
        have = 0  # of unknown origin: start over
    request = urllib.request.Request(url, headers={"User-Agent": "mast3r-slam-jax"})
    if have and known is not None:
        request.add_header("Range", f"bytes={have}-")
        if known.validator:
            request.add_header("If-Range", known.validator)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # beyond the end: complete, or of another version
            total = re.search(r"\*/(\d+)$", error.headers.get("Content-Range", ""))
            if known is not None and known.size == have and total and int(total[1]) == have:
                return
            part.unlink(missing_ok=True)
            raise _CutError("the part on disk is longer than the file") from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _CutError(f"the server answered {error.code} {error.reason}") from error
        raise DownloadError(
            f"{url}: the server answered {error.code} {printable(error.reason)}; "
            "check the address, or fetch the file with a browser and run "
            "`mast3r-slam convert FILE OUT`"
        ) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(
                f"{url}: the server sent a web page instead of the file; "
                "a log-in page of your network may be in the way"
            )
        headers = response.headers
        version = _Version(url, _size_of(response), headers["ETag"], headers["Last-Modified"])
        if response.status == 206:
            if known is None or not version.same_as(known) or _range_start(response) != have:
                part.unlink(missing_ok=True)
                raise _CutError("the file on the server has changed")
        else:
            have = 0
            notes.write_text(json.dumps(dataclasses.asdict(version)))
        _check_space(part, (version.size or about or 0) - have)
        with part.open("ab" if have else "wb") as file:
            while block := response.read(_CHUNK):
                file.write(block)
                have += len(block)
                if progress:
                    progress("download", have, version.size)
    if version.size is not None and have != version.size:
        raise _CutError(f"the connection closed after {have} of {version.size} bytes")


def _check_space(part: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DownloadError(
            f"{part.parent}: {human(needed)} more are needed, {human(free)} are free; "
            "make room, or choose another folder with --out"
        )


def fetch(
    published: Published,
    folder: pathlib.Path,
    *,
    sha256: str | None = None,
    retries: int = 6,
    backoff: float = 1.0,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> Downloaded:
    """Download a published file into ``folder``, or verify it if it is there.

    ``sha256`` demands a checksum (default: the published one, if any). A transfer that stops is
    resumed, ``retries`` times in a row without a new byte, waiting ``backoff`` seconds, doubled
    each time, at most 30. ``timeout`` is that of the connection in seconds.

    Raises ``DownloadError``: no network, no such file, not enough space, or a wrong checksum (then
    the data are deleted, and nothing gets the file's name).
    """
    demanded = _checked_hex(sha256) or published.sha256
    path = folder / published.file_name
    part, notes = _beside(path, ".part"), _beside(path, ".part.json")
    try:
        if path.exists():
            return verify(path, demanded, progress)
        folder.mkdir(parents=True, exist_ok=True)
        recorded_sha256(path)  # an unreadable record should not be found out after 2.75 GB
        _transfer(published, part, retries, backoff, timeout, progress)
        digest = sha256_of(part, progress)
        try:
            _check(path, digest, demanded, part)
        except DownloadError:
            part.unlink()
            notes.unlink(missing_ok=True)
            raise
        _record(path, digest)
        part.replace(path)
        notes.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(
            f"{error.filename or path}: {error.strerror or error}; choose another folder with --out"
        ) from error
    return Downloaded(path, path.stat().st_size, digest, fetched=True)


def _transfer(
    published: Published,
    part: pathlib.Path,
    retries: int,
    backoff: float,
    timeout: float,
    progress: Progress | None,
) -> None:
    """Attempts until ``part`` is complete, of which ``retries`` in a row may bring nothing new."""
    url, failures = published.url, 0
    start = most = part.stat().st_size if part.exists() else 0
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: only http and https addresses can be downloaded")
    while True:
        try:
            return _attempt(url, part, timeout, published.about_bytes, progress)
        except urllib.error.URLError as error:
            # No connection at all: say so at once, unless there was one a moment ago.
            if most == start:
                raise DownloadError(
                    f"{url}: cannot reach the server ({printable(error.reason)}); check the "
                    "network, or fetch the file elsewhere and run "
                    "`mast3r-slam convert FILE OUT`"
                ) from error
            cause: Exception = error
        except (
            _CutError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
            ssl.SSLError,
        ) as error:
            cause = error
        have = part.stat().st_size if part.exists() else 0
        failures, most = (1 if have > most else failures + 1), max(have, most)
        if failures > retries:
            raise DownloadError(
                f"{url}: given up after {failures} attempts without progress "
                f"({printable(cause, 200)}); run the same command again to resume "
                f"from {human(have)}"
            ) from cause
        time.sleep(min(30.0, backoff * 2 ** (failures - 1)))
