"""Files over the network, each checked against a known SHA-256 before it gets its name."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from odenets.data.errors import DataError, NoNetwork
from odenets.progress import Progress, progress_bar

__all__ = ["content_hash", "download_files", "read_hash_table"]

BLOCK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0
TEXT_ENDINGS = (".hea",)


def read_hash_table(text: str) -> dict[str, str]:
    """Name → SHA-256, from text in the form of the tool `sha256sum`: a digest, blanks and a name a line."""
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in text.splitlines())}


def content_hash(path: Path, name: str | None = None) -> str:
    """SHA-256 of the file at `path`, in hexadecimal; `name` is its final name where that differs.

    Headers (.hea) are text, and copies in circulation end their lines with CR LF (as PhysioNet's do) or with
    LF: both give the hash of the LF form, so that a mere change of line ends is not taken for damage.
    """
    if (name or path.name).endswith(TEXT_ENDINGS):
        return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_files(
    base_url: str, hashes: Mapping[str, str], dest: Path, hint: str, progress: Progress = progress_bar
) -> None:
    """Fetch every file named in `hashes` (name → `content_hash`) from `base_url` + name into `dest`.

    A file that is there with the right hash is not fetched again, so an interrupted download goes on where it
    stopped. `hint` ends the message where nothing can be reached: it says what a person without a network can
    do. Raises `NoNetwork` where nothing answers, `DataError` where the server refuses or a hash differs; no
    unverified file is left behind either way.
    """
    dest.mkdir(parents=True, exist_ok=True)
    missing = [name for name, digest in hashes.items() if not _verified(dest / name, digest)]
    for name in progress(missing, "Downloading"):
        _fetch(base_url.rstrip("/") + "/" + name, dest / name, hashes[name], hint)


def _verified(path: Path, digest: str) -> bool:
    return path.is_file() and content_hash(path) == digest


def _fetch(url: str, path: Path, digest: str, hint: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write(part, _blocks(url, hint))
        found = content_hash(part, path.name)
        if found != digest:
            raise DataError(
                f"{url} has SHA-256 {found}, but {digest} is expected: the file was damaged on the way or "
                f"changed at its origin, and was not kept. Try again; if it happens again, report it."
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, blocks: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        for block in blocks:
            file.write(block)


def _blocks(url: str, hint: str) -> Iterator[bytes]:
    """The body of `url`, block by block. Errors of the network, and only they, are translated here."""
    request = urllib.request.Request(url, headers={"User-Agent": "odenets"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            expected, received = response.headers.get("Content-Length"), 0
            while block := response.read(BLOCK_BYTES):
                received += len(block)
                yield block
            if expected is not None and received < int(expected):  # `read` does not complain about a short body
                raise ConnectionError(f"the connection closed after {received} of {expected} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url} answered {error.code} {error.reason}. {hint}") from error
    except (OSError, http.client.HTTPException) as error:
        raise NoNetwork(f"Could not download {url}: {error}. {hint}") from error
