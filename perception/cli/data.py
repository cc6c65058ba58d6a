"""The data commands: doctor, data street, data extract."""

from __future__ import annotations

import argparse
import sys
from importlib import metadata, util
from pathlib import Path

from perception.cli.arguments import (
    Commands,
    add_command,
    add_overrides,
    add_tasks,
    parse_count,
    parse_size,
    print_lines,
    progress_bar,
)


def add_commands(commands: Commands) -> None:
    """Add the commands `doctor` and `data`."""
    doctor = add_command(commands, "doctor", _doctor, "check the data of a recipe and the environment")
    doctor.add_argument("config", type=Path, help="YAML recipe")
    add_overrides(doctor)
    add_tasks(doctor)
    doctor.add_argument("--out", type=Path, help="folder of the report (default: doctor/<name of the recipe>)")
    doctor.add_argument("--max-images", type=parse_count, metavar="N", help="check only N images of each source")
    doctor.add_argument(
        "--workers", type=int, help="processes (default: one per CPU; 0: none, a crash then ends the check)"
    )

    data = commands.add_parser(
        "data", help="render street scenes, unpack archives", description="Render or unpack data."
    )
    kinds = data.add_subparsers(dest="kind", required=True, metavar="KIND")
    street = kinds.add_parser("street", help="render synthetic street scenes with exact labels for four tasks")
    street.set_defaults(action=_street)
    street.add_argument("out", type=Path, metavar="OUT", help="new folder")
    street.add_argument("--count", type=int, default=1000, help="number of images, training and validation together")
    street.add_argument("--seed", type=int, default=0)
    street.add_argument(
        "--size", type=parse_size, default=(256, 512), metavar="HxW", help="height x width (default: 256x512)"
    )
    street.add_argument("--validation", type=float, default=0.2, help="fraction of the images held out for validation")
    street.add_argument(
        "--video", type=float, metavar="SECONDS", help="render a video of a drive to OUT (.mp4) instead"
    )
    extract = kinds.add_parser("extract", help="unpack a downloaded archive safely")
    extract.set_defaults(action=_extract)
    extract.add_argument("archive", type=Path, metavar="ARCHIVE", help=".zip, .tar, .tar.gz, .tar.bz2 or .tar.xz")
    extract.add_argument(
        "folder", type=Path, metavar="FOLDER", help="target folder; existing files are not overwritten"
    )


def _doctor(parsed: argparse.Namespace) -> int:
    try:
        from perception import doctor
        from perception.report import doctor_page
    except ModuleNotFoundError as error:
        if not _is_installed(error.name or ""):
            raise  # the base installation does not include the doctor
        return _report_broken_install(error)
    except (ImportError, AttributeError) as error:
        return _report_broken_install(error)
    diagnosis = doctor.diagnose(
        parsed.config,
        parsed.overrides,
        parsed.tasks,
        max_images=parsed.max_images,
        workers=None if parsed.workers is None else max(0, parsed.workers),
        progress_bar=progress_bar,
        check_rest=_check_recipe,
    )
    print_lines(doctor.format_report(diagnosis))
    print_lines(
        [
            doctor_page.write_doctor_report(
                parsed.out or Path("doctor") / doctor_page.make_folder_name(diagnosis), diagnosis
            )
        ]
    )
    return diagnosis.exit_code


def _is_installed(module: str) -> bool:
    try:
        return util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _report_broken_install(error: Exception) -> int:
    """Report that numpy, cv2 or pydantic is broken or installed twice."""
    providers = metadata.packages_distributions()
    found = "; ".join(f"{m} from {', '.join(providers.get(m, ['nowhere']))}" for m in ("numpy", "cv2", "pydantic"))
    print(f"perception doctor: {error}. Reinstall what is broken: {found}.", file=sys.stderr)  # noqa: T201
    return 1


def _check_recipe(state: None, mapping: dict) -> dict[str, dict] | str:
    """The settings of a recipe's tasks with defaults, or the error text. The doctor runs this in a worker process."""
    from perception import config
    from perception.recipe import Recipe
    from perception.types import PerceptionError

    try:
        return {name: config.to_plain(task) for name, task in config.validate_config(Recipe, mapping).tasks.items()}
    except PerceptionError as error:
        return str(error)


def _street(parsed: argparse.Namespace) -> int:
    from perception.synthetic import write_dataset, write_video

    if parsed.video is not None:
        write_video(parsed.out, parsed.video, parsed.seed, parsed.size)
        return 0
    with progress_bar("street images", parsed.count) as advance_to:
        write_dataset(parsed.out, parsed.count, parsed.seed, parsed.size, parsed.validation, advance_to)
    return 0


def _extract(parsed: argparse.Namespace) -> int:
    from perception.files.archives import extract_archive

    bytes = parsed.archive.stat().st_size if parsed.archive.is_file() else 0
    with progress_bar("MB unpacked", max(1, bytes // 10**6)) as advance_to:
        files = extract_archive(parsed.archive, parsed.folder, progress=lambda done, total: advance_to(done // 10**6))
    print_lines([f"{files} files in {parsed.folder}"])
    return 0
