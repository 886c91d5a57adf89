"""What the scripts share: common arguments, log, and errors as one sentence."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ciss import distributed
from ciss.datasets import BACKGROUNDS, Dataset, open_dataset
from ciss.download import Sources
from ciss.errors import CissError, import_error
from ciss.flags import at_least, from_flags, values_from
from ciss.runtime import (
    Runtime,
    StopRequest,
    check_devices,
    check_torch,
    is_out_of_memory,
    log,
    start_logging,
)

if TYPE_CHECKING:
    from ciss.image_cache import ImageCache

#: arguments that are files to write
_WRITTEN = ("history", "importances_out", "log", "manifest", "output", "progress", "ridge_out")
#: what to do about a refusal of the system
_ADVICE = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, or write to another place"
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "change the permissions, or choose another place",
    ),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST), "a part of the path is a file; choose another path"
    ),
    errno.EISDIR: "give the path of a file",
    errno.ENOENT: "check the path",
}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every script has."""
    made = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--log", type=output_file, help="file for a copy of what is printed")
    made.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return made


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments, and does not print all that there are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help lists all arguments\n")


def output_file(text: str) -> Path:
    """Read the path of a file to write, for ``add_argument``: refused before any work is done.

    Folders that are not there are no hindrance: they are made when the file is.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; give the path of a file")
    _check_place(path)
    return path


def output_folder(text: str) -> Path:
    """Read the path of a folder to write into, as ``output_file`` does."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a file; give the path of a folder")
    _check_place(path / "a file")
    return path


def _check_place(path: Path) -> None:
    """Raise an error unless a file could be written: in the nearest folder above that is there."""
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise argparse.ArgumentTypeError(
            f"{path} cannot be written: {above} is a file and no folder; choose another path"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(
            f"{path} cannot be written: you may not write in {above}; change its permissions, or "
            "choose another path"
        )


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
        "--files", type=_json, help="where images and masks lie, as JSON (kind folders)"
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not JSON ({error})") from None


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


def add_crop_flag(made: argparse.ArgumentParser, what: str = "side of the centre crop") -> None:
    """Add ``--crop``, for a script that has no recipe."""
    made.add_argument("--crop", type=at_least(16), required=True, help=f"{what}, pixels")


def add_reading_flags(made: argparse.ArgumentParser) -> None:
    """Add the arguments of a script that reads training images many times, and keeps progress."""
    made.add_argument(
        "--data-state", default="", help="fingerprint of the data: progress is of these files only"
    )
    made.add_argument("--cache", help="folder of decoded images: reading them takes less time")
    made.add_argument("--index", type=Path, help="index of the data set, for --cache")
    made.add_argument("--progress", type=output_file, help="file that keeps the progress")


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
    try:
        start_logging(None)
        _check_written(arguments)
        start_logging(arguments.log)
        check_torch()
        several = getattr(arguments, "processes", 1) > 1 or distributed.is_launched()
        if several and not shared:
            raise CissError(f"{made.prog} does its work in one process; start it without others")
        if several and not distributed.is_launched():
            check_devices(from_flags(arguments, Runtime))
            sys.exit(distributed.launch(arguments.processes, [sys.executable, *sys.argv]))
        main(arguments)
        distributed.stop()
    except KeyboardInterrupt:
        distributed.leave(130, lambda: log.error("error: stopped by Ctrl-C; start it again"))
    except Exception as error:
        message = _sentence(error, arguments)
        if message is None:
            distributed.leave(
                70, lambda: log.exception("unexpected error; please report it with this log")
            )
        if arguments.traceback:
            raise
        distributed.leave(1, lambda: log.error("error: %s", message))


def _check_written(arguments: argparse.Namespace) -> None:
    """Raise ``CissError`` where a script would write over what it reads, or writes as well."""
    seen: dict[Path, str] = {}
    for name, value in sorted(vars(arguments).items(), key=lambda one: one[0] in _WRITTEN):
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, Path) or path.is_dir():
                continue
            other = seen.setdefault(path.absolute(), name)
            if name in _WRITTEN and other != name:
                raise CissError(
                    f"--{other.replace('_', '-')} and --{name.replace('_', '-')} are one file, "
                    f"{path}, of which something would be lost; give another path"
                )


def _sentence(error: Exception, arguments: argparse.Namespace) -> str | None:
    """Say what an error means to the user; ``None`` for a defect of the code."""
    if is_out_of_memory(error):
        return _full_memory(error, arguments)
    if isinstance(error, CissError):
        return str(error)
    if isinstance(error, OSError):
        # The system's refusals (a full disk, a missing file) are no defects of the code either.
        if error.strerror is None:
            return str(error)
        where = f"{error.filename}: " if error.filename else ""
        advice = _ADVICE.get(error.errno or 0, "look at the path and the disk, then start again")
        return f"{where}{error.strerror}; {advice}"
    if isinstance(error, ImportError) and not (error.name or "").startswith("ciss"):
        return import_error(error)
    if distributed.is_lost_connection(error):
        return "another process of this job has ended"
    return None


def _full_memory(error: Exception, arguments: argparse.Namespace) -> str:
    """Say which settings of a script to lower, so that it needs less memory."""
    on_gpu = isinstance(error, torch.OutOfMemoryError) or "CU" in str(error)
    needed = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    wanted = f" ({needed[1]} more were needed)" if needed else ""
    full = f"the {'GPU' if on_gpu else 'machine'}'s memory is full{wanted}"
    given = vars(arguments)
    if "accumulate" in given:
        batch, now = arguments.batch, arguments.accumulate
        more = next((n for n in range(now + 1, batch // 2 + 1) if batch % n == 0), now)
        return (
            f"{full}: set recipe.accumulate to {more}, or lower recipe.batch "
            f"({arguments.batch}) or recipe.crop ({arguments.crop}); or share the batch, which "
            "changes no result, among more GPUs (runtime.gpus). Earlier steps are kept, and this "
            "step's progress for as long as the recipe stays (docs/gpus.md)"
        )
    if given.get("mode") == "full":
        return f"{full}: images are evaluated whole, one by one; set evaluation.mode to crop"
    if "checkpoint" in given and "batch" in given:
        return f"{full}: lower prediction.batch ({arguments.batch}), and start again to go on"
    if "batch" in given:
        return (
            f"{full}: lower evaluation.batch ({arguments.batch}), which changes no result, or "
            f"recipe.crop ({arguments.crop})"
        )
    if "workers" in given:
        return f"{full}: use fewer workers ({arguments.workers} now; runtime.threads)"
    return f"{full}: end other programs, or run this where there is more"
