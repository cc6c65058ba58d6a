"""Refuses every connection that would leave this machine, and writes down what was asked for.

`tests/conftest.py` puts this folder on PYTHONPATH, so that it also holds in each process that a test starts.
"""

import os
import socket

LOG = "PERCEPTION_TEST_CONNECTIONS"
"""Environment variable: the file in which refused connections are written down, a line each."""
UNROUTED = "192.0.2."
"""Addresses for documentation (RFC 5737): refused as all others, but not written down, for the test of this file."""


def _is_local(host: object) -> bool:
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "")
    names = ("", "None", "localhost", "0.0.0.0", "::", "::1", socket.gethostname())
    return text in names or text.startswith(("127.", "::ffff:127."))


def _refuse(what: object) -> OSError:
    if UNROUTED not in str(what) and os.environ.get(LOG):
        with open(os.environ[LOG], "a", encoding="utf-8") as file:  # noqa: PTH123 - before anything is imported
            file.write(f"{what!r} by {os.getpid()}\n")
    return OSError(f"the tests refuse connections: {what!r}")


def _guard(original):
    def method(self, address, *more):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise _refuse(address)
        return original(self, address, *more)

    return method


def _resolve(host, *arguments, **options):
    if not _is_local(host):
        raise _refuse(host)
    return _resolver(host, *arguments, **options)


if not hasattr(socket, "_guarded_by_tests"):
    socket._guarded_by_tests = True
    _resolver, socket.getaddrinfo = socket.getaddrinfo, _resolve
    for _name in ("connect", "connect_ex"):
        setattr(socket.socket, _name, _guard(getattr(socket.socket, _name)))
