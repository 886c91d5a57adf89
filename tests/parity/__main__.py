"""``python -m tests.parity --cases DIR``: a line for every case, then how many passed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from . import Cases, check_case


def main(arguments: list[str] | None = None) -> int:
    """Check a folder of cases; return 1 if any failed or there is none."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("--cases", type=Path, required=True, help="folder with a manifest.json")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu, or cuda")
    options = parser.parse_args(arguments)
    # As the scripts have it: float32 means float32.
    torch.backends.cudnn.allow_tf32 = False
    try:
        cases = Cases(options.cases, options.device)
    except (OSError, ValueError, KeyError) as error:
        print(f"cannot read {options.cases / 'manifest.json'}: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    failed = passed = 0
    for entry in cases.entries:
        if options.only in entry["name"]:
            outcome = check_case(cases, entry)
            print(outcome, flush=True)
            failed += bool(outcome.problems)
            passed += not outcome.problems
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
