"""Every command. Heavy imports happen inside the command that needs them: `perception --help` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from perception import __version__
from perception.cli import bench, data, deployment, exporting, studies, training
from perception.cli.arguments import printable_lines, show_plainly
from perception.types import PerceptionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit code: 0, or 2 where the user must mend something."""
    parsed = _parse(arguments)
    show_plainly()
    try:
        return parsed.action(parsed) or 0
    except PerceptionError as error:
        print(printable_lines(f"perception {parsed.command}: {error}"), file=sys.stderr)  # noqa: T201
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "perception":
            raise
        print(  # noqa: T201
            f"perception {parsed.command}: the package {error.name} is not installed. "
            "Install all that training needs: pip install 'dense-perception[train]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with key=value overrides allowed anywhere: argparse takes positionals in one run only."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    strays = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(parsed, "overrides")]
    if strays:
        parser.error(f"unrecognized arguments: {' '.join(strays)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perception", description="One network, one pass: detection, segmentation, depth and classification."
    )
    parser.add_argument("--version", action="version", version=f"perception {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (training, studies, deployment, exporting, bench, data):
        group.add_commands(commands)
    return parser
