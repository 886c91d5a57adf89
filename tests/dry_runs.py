"""Runs Snakemake's command lines one after the other, each in a fork that has it imported already.

Reads a JSON list of argument lists from standard input and prints a list of [status, output].
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile

import snakemake.cli


def run(arguments: list[str]) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.argv = ["snakemake", *arguments]
            status: object = 0
            try:
                with contextlib.suppress(BrokenPipeError):
                    snakemake.cli.main(arguments)
            except SystemExit as ended:
                status = ended.code
                if isinstance(status, str):
                    print(status, file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status if isinstance(status, int) else int(bool(status)))
        _, ended_as = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(ended_as), said.read()


if __name__ == "__main__":
    print(json.dumps([run(arguments) for arguments in json.load(sys.stdin)]))
