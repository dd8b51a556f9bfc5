"""Build the reference of the package as web pages, from its docstrings: ``reference.py DIRECTORY``.

Needs the extra ``docs``. It is pdoc, and two things that it has to be told: what ``_typeshed`` is,
which only type checkers have, and that a watcher's calls are shown in one place, whichever of its
base classes they are written in (``template/module.html.jinja2``).
"""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path

try:
    import pdoc
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is not installed: pip install '.[docs]'")


def provide_typeshed() -> None:
    """Let annotations be read that name buffers and files."""
    module = types.ModuleType("_typeshed")
    for name in ("HasFileno", "ReadableBuffer", "WriteableBuffer"):
        setattr(module, name, type(name, (), {"__module__": "builtins"}))  # shown without a module
    sys.modules["_typeshed"] = module


def main() -> None:
    """Write the pages into the directory named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python docs/reference.py DIRECTORY")
    provide_typeshed()
    pdoc.render.configure(template_directory=Path(__file__).parent / "template", show_source=False)
    pages = Path(sys.argv[1]).resolve()
    try:
        pages.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"cannot write there: {error}")
    with contextlib.chdir(Path(__file__).parent):  # where no folder has the package's name
        pdoc.pdoc("aiogaio", "aiogaio.instruments", output_directory=pages)


if __name__ == "__main__":
    main()
