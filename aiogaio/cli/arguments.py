"""What may be asked for on the command line; whatever else is asked gets one clear line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from aiogaio import __version__
from aiogaio.cli import demo, echo, info, loops
from aiogaio.cli.demo import DemoOptions
from aiogaio.cli.echo import EchoOptions
from aiogaio.cli.info import InfoOptions

PROGRAM = "python -m aiogaio"
LARGEST_IN_FLIGHT = 1 << 30  # bytes: the clients keep one message for each connection


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """The complaint alone; argparse would print the usage before it."""
        self.exit(2, f"{self.prog}: {message} (--help tells more)\n")


def parse(arguments: Sequence[str] | None = None) -> Callable[[], int]:
    """The command to run. Wrong arguments end the process with status 2."""
    parser = Parser(prog=PROGRAM, description="Proactor networking for asyncio.")
    parser.set_defaults(command=partial(_help, parser))
    parser.add_argument("--version", action="version", version=f"aiogaio {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="demo|echo|info")
    _add_demo(commands.add_parser("demo", help="aiogaio and asyncio streams under the same load"))
    _add_echo(commands.add_parser("echo", help="an echo server, until Ctrl-C"))
    _add_info(commands.add_parser("info", help="loop, poller, versions and limits here"))
    given = vars(parser.parse_args(arguments))
    command: Callable[..., int] = given.pop("command")
    return partial(command, **given)


def _help(parser: Parser) -> int:
    """No command: wrong arguments too, but the whole help serves better than a complaint."""
    parser.print_help(sys.stderr)
    return 2


def _add_demo(parser: Parser) -> None:
    default = DemoOptions()
    parser.description = (
        "The same load on aiogaio and on asyncio streams, one after the other; every byte is "
        f"compared. It runs for twice --seconds: about {2 * default.seconds + 1:.0f} s by default."
    )
    parser.set_defaults(command=lambda **given: demo.run(_demo_options(parser, **given)))
    add = parser.add_argument
    add("--connections", metavar="N", type=_count, default=default.connections, help="open at once")
    add("--size", metavar="BYTES", type=_count, default=default.size, help="size of a message")
    add("--seconds", metavar="S", type=_seconds, default=default.seconds, help="on each server")
    _add_loop_and_poller(parser)


def _add_echo(parser: Parser) -> None:
    default = EchoOptions()
    parser.description = "An echo server that stays up until SIGINT or SIGTERM."
    parser.set_defaults(command=lambda **given: echo.run(EchoOptions(**given)))
    add = parser.add_argument
    add("--host", metavar="HOST", default=default.host, help="name or address to listen on")
    add("--port", metavar="PORT", type=_port, default=default.port, help="0: any that is free")
    _add_loop_and_poller(parser)


def _add_info(parser: Parser) -> None:
    parser.description = "What aiogaio runs on here."
    parser.set_defaults(command=lambda **given: info.run(InfoOptions(**given)))
    _add_loop_and_poller(parser)


def _add_loop_and_poller(parser: Parser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("--loop", choices=loops.LOOPS, default="asyncio", help="the event loop")
    add("--poller", choices=loops.POLLERS, default="auto", help="auto: epoll where there is one")


def _demo_options(parser: Parser, **given: Any) -> DemoOptions:
    options = DemoOptions(**given)
    if options.connections * options.size > LARGEST_IN_FLIGHT:
        parser.error(
            f"--connections {options.connections} times --size {options.size} is more than the "
            f"{LARGEST_IN_FLIGHT:,} bytes that may be under way at once: use less of one"
        )
    return options


def _count(text: str) -> int:
    return _whole_number(text, 1)


def _port(text: str) -> int:
    return _whole_number(text, 0, 65535)


def _whole_number(text: str, least: int, most: int | None = None) -> int:
    value = int(text) if text.isascii() and text.isdecimal() else -1
    if value < least or (most is not None and value > most):
        span = f"{least} to {most}" if most is not None else f"{least} or more"
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {span}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
