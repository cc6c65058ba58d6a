"""What is at an http(s) address: asked once, and fetched where it is an image or a video with an end."""

from __future__ import annotations

import base64
import http.client
import re
import shutil
import tempfile
import urllib.request
import weakref
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from perception.types import PerceptionError

CHUNK_BYTES = 1 << 18
_HINTS = {
    401: "Give the user and the password in the address: http://USER:PASSWORD@HOST/...",
    403: "The server does not let you have it: look whether it asks for a user, a password or a token.",
    404: "Check the address.",
    410: "Check the address.",
}
_SECRET_PATTERN = re.compile(r"(?i)((?:^|[&;])[^=&;]*(?:pass|pwd|token|key|secret|auth|sig|credential)[^=&;]*=)[^&;]*")


class TemporaryFolder:
    """A folder of its own that is removed with this object, or at the end of the program."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="perception-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass
class PeekedResponse:
    """An answer of which ``head`` was read, to see what it is, for whoever opens the address first.

    is_stream: it consists of parts, and has no end
    is_consumed: whoever opens it first has it
    """

    response: http.client.HTTPResponse
    head: bytes = b""
    is_stream: bool = False
    is_consumed: bool = False

    def close(self) -> None:
        self.response.close()


def redact_url(address: str) -> str:
    """The address as it may be told: without user and password, the values of ``token=`` and the like left out."""
    parts = urlsplit(address)
    return urlunsplit(
        parts._replace(netloc=parts.netloc.rpartition("@")[2], query=_SECRET_PATTERN.sub(r"\1***", parts.query))
    )


def open_url(address: str, timeout: float) -> http.client.HTTPResponse:
    """The opened answer, after redirects. timeout: seconds for connecting and for each piece that arrives.

    Raises PerceptionError where the server answers with an error; OSError, HTTPException or ValueError where there is
    no server, or no answer.
    """
    parts = urlsplit(address)
    plain = quote(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), safe="%/:?#[]@!$&'()*+,;=~")
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    wanted = urllib.request.Request(plain, headers={"User-Agent": "perception", "Accept": "*/*"})
    try:
        try:
            answer = opener.open(wanted, timeout=timeout)
        except HTTPError as error:
            if error.code != 401 or parts.username is None:
                raise
            asked = error.headers.get_all("WWW-Authenticate", [])
            error.close()
            wanted.add_unredirected_header("Authorization", _make_authorization(wanted, asked, parts))
            answer = opener.open(wanted, timeout=timeout)
    except HTTPError as error:
        with error:
            mend = _HINTS.get(error.code, "Try again later, or fetch it by other means and give the file.")
            raise PerceptionError(
                f"{redact_url(address)}: the server answers {error.code} {error.reason}. {mend}"
            ) from None
    if not isinstance(answer, http.client.HTTPResponse):
        raise ValueError("no answer over HTTP")
    return answer


def _make_authorization(request: urllib.request.Request, challenges: list[str], parts: SplitResult) -> str:
    """User and password, in the way that the server asks for: Digest where it knows it, else Basic."""
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    for challenge in challenges:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "digest":
            known = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            known.add_password(None, request.full_url, user, password)
            fields = urllib.request.parse_keqv_list(urllib.request.parse_http_list(rest))
            return f"Digest {urllib.request.HTTPDigestAuthHandler(known).get_authorization(request, fields)}"
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def url_file_name(address: str) -> str:
    """The last part of the address' path where it can be the name of a file; else ``download``."""
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    return name if re.fullmatch(r"[\w][\w .()+,=@-]{0,100}", name) else "download"


def fetch_file(
    response: http.client.HTTPResponse, head: bytes, display_name: str, name: str, max_bytes: int
) -> tuple[Path, TemporaryFolder]:
    """The whole answer, of which ``head`` was read already, as a file.

    max_bytes: bytes, where the server tells no length
    Raises PerceptionError where not all of it comes, or there is no room for it.
    """
    length = None if response.length is None else response.length + len(head)
    folder = TemporaryFolder()
    if length is not None and length > shutil.disk_usage(folder.path).free:
        raise PerceptionError(
            f"{display_name} has {length / 1e9:.1f} GB and {folder.path.parent} "
            "has no room for it. Free some, or set TMPDIR."
        )
    path, got, whole = folder.path / name, len(head), True
    try:
        with path.open("wb") as file:
            file.write(head)
            while piece := response.read1(CHUNK_BYTES):
                got += len(piece)
                if length is None and got > max_bytes:
                    raise PerceptionError(f"{display_name} does not end after {max_bytes >> 20} MB. Expected an image.")
                file.write(piece)
    except (http.client.HTTPException, ConnectionError, TimeoutError):
        whole = False
    except OSError as error:
        raise PerceptionError(f"{display_name} cannot be kept in {folder.path.parent}: {error}. Set TMPDIR.") from error
    if not whole or (length is not None and got < length):
        raise make_truncation_error(display_name, got, length)
    return path, folder


def make_truncation_error(display_name: str, received: int, length: int | None = None) -> PerceptionError:
    of = "" if length is None else f" of {length:,}"
    return PerceptionError(
        f"{display_name}: the server stopped after {received:,} bytes{of}. Try again, or fetch it first."
    )


def copy_stream(stream: BinaryIO, name: str, what: str) -> tuple[Path, TemporaryFolder]:
    """All that comes from a pipe, as a file. Raises PerceptionError where there is nothing, or no room."""
    folder = TemporaryFolder()
    path = folder.path / name
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file, CHUNK_BYTES)
    except OSError as error:
        raise PerceptionError(f"{what} cannot be kept in {folder.path.parent}: {error}. Set TMPDIR.") from error
    if not path.stat().st_size:
        raise PerceptionError(f"{what} is empty. Expected an image or a video.")
    return path, folder
