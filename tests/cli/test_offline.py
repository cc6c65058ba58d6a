"""S5: every test runs with a network that refuses, and so does every command that a test starts; see conftest.py."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ATTEMPTS = (
    "socket.create_connection(('192.0.2.1', 80), 1)",
    "socket.getaddrinfo('192.0.2.1', 80)",
    "__import__('urllib.request').request.urlopen('http://192.0.2.1/', timeout=1)",
    "__import__('http.client').client.HTTPSConnection('192.0.2.1', timeout=1).connect()",
)


@pytest.mark.fault("S5")
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_connection_is_refused_here_and_in_child_processes(attempt):
    with pytest.raises(OSError, match="the tests refuse connections"):
        eval(attempt)
    child = subprocess.run(
        [sys.executable, "-c", f"import socket; {attempt}"], capture_output=True, text=True, check=False
    )
    assert child.returncode == 1
    assert "the tests refuse connections" in child.stderr


@pytest.mark.fault("S5")
def test_an_attempt_fails_the_whole_run(tmp_path):
    """In a run of its own: a test that swallows the error is caught at the end."""
    (tmp_path / "conftest.py").write_text(Path(__file__).parents[1].joinpath("conftest.py").read_text("utf-8"), "utf-8")
    (tmp_path / "offline").symlink_to(Path(__file__).parents[1].joinpath("offline"))
    (tmp_path / "test_it.py").write_text(
        "import contextlib, socket\n"
        "def test_it():\n"
        "    with contextlib.suppress(OSError):\n"
        "        socket.create_connection(('198.51.100.7', 80), 1)\n"
    )
    alone = {key: value for key, value in os.environ.items() if key != "PERCEPTION_TEST_CONNECTIONS"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout
    assert done.returncode == 1
    assert "198.51.100.7" in done.stderr


def test_connections_on_this_machine_are_left_alone():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(("localhost", server.getsockname()[1]), 5).close()
