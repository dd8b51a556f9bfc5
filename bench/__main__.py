"""``python -m bench``: how fast is it, beside the others, on this machine?"""

from __future__ import annotations

import argparse
import datetime
import signal
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from bench import core, native, plan
from bench.charts import draw
from bench.compare import compare
from bench.progress import progress_display
from bench.report import markdown
from bench.results import Results
from bench.rounds import run_rounds

RESULTS = Path(__file__).parent / "results"
INTERRUPTED = 128 + signal.SIGINT


def _compare_servers(options: argparse.Namespace) -> int:
    """The main thing: measure, and write JSON, a page of Markdown and charts."""
    chosen = plan.quick() if options.quick else plan.full()
    rounds = options.rounds or (plan.QUICK_ROUNDS if options.quick else plan.FULL_ROUNDS)
    chosen = [scenario for scenario in chosen if fnmatch(scenario.name, options.only)]
    if not chosen:
        print(f"no scenario matches {options.only!r}", file=sys.stderr)
        return 2
    name = options.name or ("quick" if options.quick else "full")
    stem = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{name}"
    partial = RESULTS / f"{stem}-partial.json"
    results = run_rounds(chosen, rounds, progress_display(), lambda results: results.save(partial))
    if results.interrupted:
        stem = partial.stem
    else:
        partial.unlink()
    results.save(RESULTS / f"{stem}.json")
    _write_report(results, stem)
    return INTERRUPTED if results.interrupted else 0 if results.rows else 1


def _report(options: argparse.Namespace) -> int:
    file, results = options.json
    _write_report(results, file.stem)
    return 0


def _write_report(results: Results, stem: str) -> None:
    for old in RESULTS.glob(f"{stem}-*.png"):  # of an earlier run by this name
        old.unlink()
    try:
        charts = draw(results, RESULTS, stem)
    except ImportError:
        charts = []
        print("matplotlib is not installed: no charts", file=sys.stderr)
    page = markdown(results, charts)
    (RESULTS / f"{stem}.md").write_text(page)
    print(page)
    for file in (f"{stem}.json", f"{stem}.md", *charts):
        print(f"written: bench/results/{file}", file=sys.stderr)


def _compare_files(options: argparse.Namespace) -> int:
    print(compare(options.before[1], options.after[1]))
    return 0


def _micro(options: argparse.Namespace) -> int:
    return subprocess.call([sys.executable, "-m", "bench.micro", *options.rest])


def _core(options: argparse.Namespace) -> int:
    chosen = core.scenarios(options.seconds, options.only)
    if not chosen:
        print(f"no scenario matches {options.only!r}", file=sys.stderr)
        return 2
    results = run_rounds(chosen, options.rounds, progress_display())
    if options.json and not results.interrupted:
        results.save(options.json)
    good = core.print_lines(results)
    core.print_rows(results)
    for server, reason in results.missing.items():
        print(f"{server}: {reason}")
    return INTERRUPTED if results.interrupted else 0 if good else 1


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"must be from 0.1 to 3600, not {text}")
    return value


def _file_name(text: str) -> str:
    if Path(text).name != text:
        raise argparse.ArgumentTypeError(f"must be a name, not a path: {text}")
    return text


def _new_file(text: str) -> Path:
    file = Path(text)
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"no such folder: {file.parent}")
    return file


def _results(text: str) -> tuple[Path, Results]:
    try:
        return Path(text), Results.load(Path(text))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise argparse.ArgumentTypeError(f"{text} is no result of this bench") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five servers, under a minute")
    parser.add_argument("--rounds", type=_at_least_one, help="instead of 5, or 2 with --quick")
    parser.add_argument("--only", default="*", help="scenarios, such as '64 x *'")
    parser.add_argument(
        "--name", type=_file_name, help="of the results: bench/results/DATE-NAME.json"
    )
    parser.set_defaults(run=_compare_servers)
    commands = parser.add_subparsers(title="other commands")
    command = commands.add_parser("core", help="the targets, each with what was measured")
    command.add_argument("--rounds", type=_at_least_one, default=5)
    command.add_argument("--seconds", type=_seconds, default=1.0, help="per server and round")
    command.add_argument("--only", default="*", help="scenarios, such as '64 *'")
    command.add_argument("--json", type=_new_file, help="keep the samples in this file")
    command.set_defaults(run=_core)
    command = commands.add_parser("compare", help="what changed between two runs")
    command.add_argument("before", type=_results)
    command.add_argument("after", type=_results)
    command.set_defaults(run=_compare_files)
    command = commands.add_parser("report", help="write page and charts of a run anew")
    command.add_argument("json", type=_results)
    command.set_defaults(run=_report)
    command = commands.add_parser("micro", help="the hot calls alone, with pyperf", add_help=False)
    command.set_defaults(run=_micro)
    return parser


def main() -> int:
    parser = _parser()
    options, rest = parser.parse_known_args()
    if rest and options.run is not _micro:  # whose options are pyperf's
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        return int(options.run(options))
    except native.NoCompilerError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
