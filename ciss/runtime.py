"""How a job runs: device, threads, precision, log, and leaving early without losing work."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType

import torch

import ciss
from ciss import distributed
from ciss.errors import INSTALL, CissError

log = logging.getLogger("ciss")

#: pyproject.toml says the same
OLDEST_TORCH = "2.11"

#: how long before its time limit a job saves and leaves
_MARGIN_SECONDS = 120

#: a signal that comes again within this time is the same request: a launcher passes on what a
#: batch system sends to every process already
_SAME_SECONDS = 5

#: options of glibc's allocator (mallopt)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

#: how CUDA, its libraries and PyTorch's allocator on the CPU say that memory is full
_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")

_TIME_LIMIT = "the time limit"
_REASONS = (_TIME_LIMIT, *(number.name for number in distributed.STOP_SIGNALS))

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Settings of a job that do not change its result beyond rounding."""

    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N"})
    processes: int = field(
        default=1,
        metadata={"help": "processes that share the work, each on its own GPU", "least": 1},
    )
    workers: int = field(
        default=0,
        metadata={"help": "threads that read images ahead, in each process", "least": 0},
    )
    threads: int = field(
        default=2, metadata={"help": "CPU threads of PyTorch, all processes'", "least": 1}
    )
    minutes: float = field(
        default=0,
        metadata={"help": "the job's time limit: training saves and leaves before it", "least": 0},
    )
    deterministic: bool = field(
        default=False, metadata={"help": "the same bits in every run on a GPU, more slowly"}
    )


def start_logging(path: Path | None) -> None:
    """Send log lines to standard error, and to ``path`` where one is given.

    The file is appended to: by hand, what an interrupted attempt wrote stays (Snakemake removes a
    job's log before each attempt). Of several processes only the main one reports; the others
    write errors.
    """
    log.setLevel(logging.INFO if distributed.is_main() else logging.ERROR)
    log.propagate = False
    # Another script may have run in this process before.
    for handler in log.handlers[:]:
        log.removeHandler(handler)
    _log_to(logging.StreamHandler(sys.stderr))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _log_to(logging.FileHandler(path, mode="a", encoding="utf-8"))


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    log.addHandler(handler)


def check_torch() -> None:
    """Raise ``CissError`` where PyTorch is older than this code needs."""
    if torch.__version__ < OLDEST_TORCH:
        raise CissError(
            f"PyTorch {torch.__version__} is installed, {OLDEST_TORCH} or newer is needed; "
            f"{INSTALL}"
        )


def start_torch(runtime: Runtime, *, same_sizes: bool = False) -> torch.device:
    """Set the number of threads, join the other processes of the job, and return the device.

    With ``same_sizes`` the job's batches are of one shape, but for the last: cuDNN then tries out
    its algorithms. It does so for every shape anew, which takes long where each image has its own.
    Raises ``CissError`` when a GPU is asked for and there is none.
    """
    torch.set_num_threads(max(runtime.threads // distributed.local_size(), 1))
    device = _device(runtime, distributed.local_rank(), distributed.local_size())
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = same_sizes and not runtime.deterministic
        # float32 means float32; the default rounds convolutions to ten bits of mantissa.
        torch.backends.cudnn.allow_tf32 = False
    else:
        keep_memory()
    if runtime.deterministic:
        # cuBLAS reads this when it starts, which is later.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    distributed.start(device)
    return device


def keep_memory() -> None:
    """Let this process keep what it frees: on a CPU a batch's forward pass is a fifth faster.

    The C library gives large blocks back to the system, which then has to find, map and clear the
    pages of the next one. The largest memory in use stays what it was.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, 2**30)
        set_option(_TRIM_THRESHOLD, 2**31 - 1)


def check_devices(runtime: Runtime) -> None:
    """Raise ``CissError`` where ``runtime.processes`` processes have no device each."""
    _device(runtime, runtime.processes - 1, runtime.processes)


def _device(runtime: Runtime, number: int, processes: int) -> torch.device:
    """The device of process ``number`` (from 0) of ``processes`` on this machine."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = runtime.device
    if name == "auto":
        name = "cuda" if found or processes > 1 else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CissError(f"runtime.device is '{name}'; choose auto, cpu, cuda or cuda:N") from None
    if device.type != "cuda":
        return device
    if processes > 1 and device.index is not None:
        raise CissError(
            f"runtime.device is '{name}', one GPU, but {processes} processes shall share the work, "
            "each on a GPU of its own; set runtime.device to auto"
        )
    if processes > max(found, 1):
        raise CissError(
            f"{processes} GPUs are asked for, but PyTorch sees {found} here; set runtime.gpus to "
            "what there is (processes on a CPU need runtime.device: cpu)"
        )
    if (device.index or 0) >= found:
        raise CissError(
            f"runtime.device is '{name}', but PyTorch sees {found} GPUs here; set "
            "runtime.device to auto or cpu, or run the job where a GPU is"
        )
    return torch.device("cuda", number) if processes > 1 else device


def precision_for(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the networks' forward pass for ``auto``, ``fp32``, ``bf16``, ``fp16``."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name not in PRECISIONS:
        raise CissError(f"recipe.precision is '{name}'; choose auto, {', '.join(PRECISIONS)}")
    if PRECISIONS[name] is torch.float16 and device.type != "cuda":
        raise CissError("recipe.precision fp16 needs a GPU; on a CPU choose auto, fp32 or bf16")
    return PRECISIONS[name]


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far in MB: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means a full memory, of a GPU or of the machine."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in _NO_MEMORY)
    )


@cache
def source_revision() -> str:
    """Return the version and, in a git checkout, the commit ('+' after it: with local changes)."""
    folder = Path(ciss.__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        return f"{ciss.__version__} {git('rev-parse', '--short=12', 'HEAD')}{changed}"
    except (OSError, subprocess.CalledProcessError):
        return ciss.__version__


class StopRequest:
    """Why the job should save its progress and leave, once there is a reason."""

    def __init__(self, minutes: float = 0) -> None:
        self.signal: str | None = None
        self._signalled: dict[int, float] = {}
        # The job began before this process did, and saving takes time too.
        seconds = 60 * minutes - min(_MARGIN_SECONDS, 30 * minutes)
        self._deadline = time.monotonic() + seconds if minutes else float("inf")

    @property
    def reason(self) -> str | None:
        """A signal's name, or that the time limit is near; ``None`` while all is well."""
        if self.signal is None and time.monotonic() > self._deadline:
            return _TIME_LIMIT
        return self.signal

    def agreed(self) -> str | None:
        """The reason that any of the job's processes has; all of them must ask together.

        One may have got a signal that the others have not, and clocks differ.
        """
        reason = self.reason
        known = 0 if reason is None else 1 + _REASONS.index(reason)
        agreed = int(distributed.largest(known))
        return _REASONS[agreed - 1] if agreed else None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; one of the same kind some seconds later ends the process at once."""
        del frame
        first = self._signalled.setdefault(number, time.monotonic())
        if time.monotonic() > first + _SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = signal.Signals(number).name


@contextmanager
def stop_request(minutes: float = 0) -> Iterator[StopRequest]:
    """Within the block, SIGTERM, SIGINT and SIGUSR1 ask to stop instead of ending the process.

    So does a time limit of ``minutes``, shortly before it: batch systems kill without warning.
    """
    request = StopRequest(minutes)
    with distributed.stop_signals_to(request):
        yield request
