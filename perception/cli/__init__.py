"""Every command. Heavy imports happen inside the command that needs them: `perception --help` is instant."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from perception import __version__
from perception.cli import bench, data, export, inference, studies, train
from perception.cli.arguments import install_plain_warnings, printable_lines
from perception.files.safe_write import DISK_FULL_ERRNOS, REFUSED_ERRNOS, is_disk_full
from perception.types import PerceptionError
from perception.video.progress import write_now
from perception.video.threads import exit_despite_hung_threads

BROKEN_PIPE_EXIT_CODE = 141
"""Exit code where nobody reads standard output any more, as of a program that SIGPIPE ends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, that of this process where there are no arguments, which then may end here.

    Returns its exit code: 0; 1 where something of it could not be done or a disk is full; 2 where the user must mend
    something; 130, 143, ... by a signal.
    """
    parsed = _parse(arguments)
    install_plain_warnings()
    code = _run(parsed)
    if arguments is None:
        exit_despite_hung_threads(code)
    return code


def _run(parsed: argparse.Namespace) -> int:
    try:
        return parsed.action(parsed) or 0
    except PerceptionError as error:
        _print_error(parsed, str(error))
        return 1 if is_disk_full(error) else 2
    except BrokenPipeError:  # nobody reads what it prints any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_EXIT_CODE
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS | REFUSED_ERRNOS:
            raise
        _print_error(parsed, f"{error.filename or 'a file'}: {error.strerror}. Check its name, permissions and disk.")
        return 1 if error.errno in DISK_FULL_ERRNOS else 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "perception":
            raise
        _print_error(parsed, describe_missing(error.name or ""))
        return 2
    except KeyboardInterrupt as error:
        return 128 + getattr(error, "signal", signal.SIGINT)


def _print_error(parsed: argparse.Namespace, text: str) -> None:
    write_now(sys.stderr, f"perception {parsed.command}: {printable_lines(text)}\n")


INSTALL_HINTS = {
    "onnxruntime": "Install one engine: pip install onnxruntime, or for CUDA and TensorRT: pip install onnxruntime-gpu",
    "cv2": "Install OpenCV: pip install opencv-python-headless; for ROS's Python: apt install python3-opencv.",
    "rosbags": "Install what reads recordings: pip install 'dense-perception[robots]'",
    "mcap": "Install what reads recordings: pip install 'dense-perception[robots]'",
    "optuna": "Install what searches recipes: pip install 'dense-perception[tune]'",
    "rerun": "Install what writes .rrd files: pip install 'dense-perception[rerun]'",
    **dict.fromkeys(("numpy", "yaml"), "Install it: pip install dense-perception"),
}
"""Module -> how it is installed, where that is not with all that training needs."""


def describe_missing(module: str) -> str:
    """What to say where ``module`` cannot be imported because nothing installed provides it."""
    name = module.partition(".")[0]
    default = "Install all that training needs: pip install 'dense-perception[train]'"
    return f"the package {name} is not installed. {INSTALL_HINTS.get(name, default)}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with key=value overrides allowed anywhere: argparse takes positionals in one run only."""
    parser = _build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    strays = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(parsed, "overrides")]
    if strays:
        parser.error(f"unrecognized arguments: {' '.join(strays)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perception", description="One network, one pass: detection, segmentation, depth and classification."
    )
    parser.add_argument("--version", action="version", version=f"perception {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (train, studies, inference, export, bench, data):
        group.add_commands(commands)
    return parser
