"""``python -m aiogaio``: run one command; its failure is one line, its end an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from aiogaio import UnsupportedLoopError
from aiogaio.cli import arguments
from aiogaio.cli.failure import Failure, reason

INTERRUPTED = 128 + signal.SIGINT  # as shells count it


def main(argv: Sequence[str] | None = None) -> int:
    command = arguments.parse(argv)
    try:
        status = command()
        sys.stdout.flush()  # here, where a failure is still caught
        return status
    except (Failure, UnsupportedLoopError) as error:
        print(f"{arguments.PROGRAM}: {error}", file=sys.stderr)
        return getattr(error, "status", 1)
    except KeyboardInterrupt:
        away = "\n" if sys.stdout.isatty() else ""  # from the ^C and the line it stands on
        print(f"{away}interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # who reads no more need not be told
            print(f"{arguments.PROGRAM}: {reason(error)}", file=sys.stderr)
        # The interpreter flushes at exit: give it something that takes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
