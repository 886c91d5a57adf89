"""What the scripts share: common arguments, log, and errors as one sentence."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ciss import distributed
from ciss.datasets import BACKGROUNDS, Dataset, open_dataset
from ciss.download import Sources
from ciss.errors import CissError
from ciss.flags import from_flags, values_from
from ciss.runtime import Runtime, StopRequest, check_devices, log, start_logging

if TYPE_CHECKING:
    from ciss.image_cache import ImageCache


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every script has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--log", type=Path, help="file for a copy of what is printed")
    made.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return made


def add_dataset_flags(made: argparse.ArgumentParser) -> None:
    """Add the arguments from which ``dataset_from`` makes a ``Dataset``."""
    group = made.add_argument_group("dataset")
    group.add_argument("--dataset", required=True, help="its name")
    group.add_argument("--kind", required=True, help="its layout: voc, ade, shapes …")
    group.add_argument("--root", type=Path, required=True, help="the folder it lies in")
    group.add_argument("--classes", nargs="+", help="classes in learning order (default: all)")
    group.add_argument("--order", default="", help="letter of a class order")
    group.add_argument(
        "--background",
        choices=BACKGROUNDS,
        help="what pixels without a class are (default: the kind's)",
    )
    group.add_argument(
        "--values",
        nargs="+",
        metavar="NAME=1,2",
        help="raw mask values of classes, for kinds without classes of their own",
    )
    group.add_argument("--void", nargs="*", type=int, help="raw mask values that do not count")


def add_files_flag(made: argparse.ArgumentParser) -> None:
    """Add ``--files``, which only a script that lists a dataset's files needs."""
    made.add_argument(
        "--files", type=json.loads, help="where images and masks lie, as JSON (kind folders)"
    )


def dataset_from(arguments: argparse.Namespace) -> Dataset:
    """Make the dataset that the arguments describe."""
    return open_dataset(
        arguments.dataset,
        arguments.kind,
        arguments.root,
        arguments.classes,
        arguments.order,
        background=arguments.background,
        values=None if arguments.values is None else values_from(arguments.values),
        void=arguments.void,
        files=getattr(arguments, "files", None),
    )


def add_reading_flags(made: argparse.ArgumentParser) -> None:
    """Add the arguments of a script that reads training images many times, and keeps progress."""
    made.add_argument(
        "--data-state", default="", help="fingerprint of the data: progress is of these files only"
    )
    made.add_argument("--cache", help="folder of decoded images: reading them takes less time")
    made.add_argument("--index", type=Path, help="index of the data set, for --cache")
    made.add_argument("--progress", type=Path, help="file that keeps the progress")


def cache_from(arguments: argparse.Namespace, workers: int, stop: StopRequest) -> ImageCache | None:
    """Open the cache of decoded images that ``--cache`` asks for, if any; see ``open_cache``."""
    # With pandas, which most scripts do without.
    from ciss.image_cache import open_cache

    if arguments.cache is None:
        return None
    return open_cache(
        arguments.cache,
        arguments.index,
        arguments.dataset,
        arguments.root,
        workers=workers,
        stopped=lambda: stop.reason,
    )


def add_source_flags(made: argparse.ArgumentParser) -> None:
    """Add the arguments from which ``sources_from`` makes ``Sources``."""
    group = made.add_argument_group("downloads")
    group.add_argument(
        "--archives",
        type=Path,
        default=Path("data/archives"),
        help="folder of archives, and of files fetched by hand (default: %(default)s)",
    )
    group.add_argument("--mirror", default="", help="address or folder in place of the servers")
    group.add_argument(
        "--checksums",
        type=_checksum,
        nargs="*",
        default=[],
        metavar="FILE=SHA256",
        help="digests to expect in place of the published ones",
    )


def sources_from(arguments: argparse.Namespace) -> Sources:
    """Make the ``Sources`` that the arguments describe."""
    return Sources(arguments.archives, arguments.mirror, dict(arguments.checksums))


def _checksum(text: str) -> tuple[str, str]:
    name, _, digest = text.rpartition("=")
    if not name or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise argparse.ArgumentTypeError(f"'{text}' is not FILE=SHA256 with 64 hexadecimal digits")
    return name, digest.lower()


#: flags that must be at least 1; other numbers at least 0
_AT_LEAST_1 = ("accumulate", "batch", "crop", "epochs", "new_classes", "processes", "threads")
#: largest seed that all generators take
_LARGEST_SEED = 2**32 - 1


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Refuse numbers that cannot be meant; Snakemake checked the configuration's when planning."""
    for name, value in vars(arguments).items():
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float):
                continue
            least = int(name in _AT_LEAST_1)
            most = _LARGEST_SEED if name == "seed" else math.inf
            if not least <= number <= most or number == math.inf:
                limits = f"from {least} to {most}" if name == "seed" else f"of at least {least}"
                flag = name.replace("_", "-")
                raise CissError(f"--{flag} is {number}; give a finite number {limits}")


def run(
    main: Callable[[argparse.Namespace], None],
    made: argparse.ArgumentParser,
    *,
    shared: bool = False,
) -> None:
    """Parse the command line and run ``main``; an expected error becomes one line and status 1.

    Where several processes are asked for, each of them runs ``main``, which must be ``shared``:
    made to do its part of the work.
    """
    arguments = made.parse_args()
    start_logging(arguments.log)
    try:
        _check_numbers(arguments)
        several = getattr(arguments, "processes", 1) > 1 or distributed.is_launched()
        if several and not shared:
            raise CissError(f"{made.prog} does its work in one process; start it without others")
        if several and not distributed.is_launched():
            check_devices(from_flags(arguments, Runtime))
            sys.exit(distributed.launch(arguments.processes, [sys.executable, *sys.argv]))
        main(arguments)
        distributed.stop()
    except (CissError, OSError) as error:
        # The system's refusals (a full disk, a missing file) are no defects of the code either.
        if arguments.traceback:
            raise
        message = _sentence(error)
        distributed.leave(1, lambda: log.error("error: %s", message))
    except Exception as error:
        if distributed.is_lost_connection(error):
            distributed.leave(1, lambda: log.error("error: another process of this job has ended"))
        distributed.leave(
            70, lambda: log.exception("unexpected error; please report it with this log")
        )


def _sentence(error: CissError | OSError) -> str:
    """Say what a refusal of the system is about, without its number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
