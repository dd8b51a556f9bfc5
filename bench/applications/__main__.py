"""Measure the examples: ``python -m bench.applications [NAME ...]``; all without a name."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import pkgutil
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import bench.applications
from bench.applications.model import Application
from bench.applications.report import markdown, table, verdict
from bench.applications.runner import measure
from bench.machine import choose_cores, facts
from bench.native import NoCompilerError
from bench.progress import progress_display


def known() -> dict[str, Application]:
    """The applications, one for each module of the package that has one."""
    found = {}
    for module in pkgutil.iter_modules(bench.applications.__path__):
        if module.name != "__main__" and not module.ispkg:
            path = f"bench.applications.{module.name}"
            application = getattr(importlib.import_module(path), "APPLICATION", None)
            if application is not None:
                found[application.name] = application
    return found


def at_least(least: float, kind: type[int] | type[float], text: str) -> float:
    value = kind(text)
    if not value >= least:
        raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return value


def seconds(text: str) -> float:
    return at_least(0.1, float, text)


def rounds(text: str) -> int:
    return int(at_least(1, int, text))


def versions(applications: list[Application]) -> dict[str, str]:
    """Of the modules that the servers need and have."""
    servers = [server for application in applications for server in application.servers]
    names = sorted({name for server in servers for name in server.modules})
    return {n: importlib.metadata.version(n) for n in names if importlib.util.find_spec(n)}


def main() -> None:
    applications = known()
    parser = argparse.ArgumentParser(prog="python -m bench.applications", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(sorted(applications))}"
    )
    parser.add_argument("--seconds", type=seconds, default=3.0, help="of load; default: 3")
    parser.add_argument("--rounds", type=rounds, default=5, help="default: 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    parser.add_argument("--markdown", action="store_true", help="a row for each example, at last")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - applications.keys()):
        parser.error(f"no application {unknown[0]!r}: choose of {', '.join(sorted(applications))}")
    if shutil.which("taskset") is None:
        sys.exit("taskset is not installed: it is in the package util-linux")
    if options.json is not None and not options.json.parent.is_dir():
        sys.exit(f"no such folder: {options.json.parent}")
    chosen = [applications[name] for name in options.names or sorted(applications)]
    cores = choose_cores()
    if cores.shared:
        print("one core only: servers and load share it", file=sys.stderr)
    try:
        machine = facts(cores) | {"modules": versions(chosen)} if options.json is not None else {}
    except NoCompilerError as error:  # its version is one of the facts
        sys.exit(str(error))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: servers end, too
    rows, whole = measure(chosen, options.rounds, options.seconds, cores, progress_display())
    print("\n".join(table(rows)))
    targets = [target for application in chosen for target in application.targets]
    if targets:
        print()
    for target in targets:
        print(verdict(target, rows))
    if options.markdown:
        print("\n".join(["", *markdown(chosen, rows)]))
    if not whole:
        sys.exit(128 + signal.SIGINT)  # and no file, which would look like that of a whole run
    if options.json is not None:
        data = {"machine": machine, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if not any(row.rates for row in rows):
        sys.exit("nothing was measured")


if __name__ == "__main__":
    main()
