"""Builds the C programs of this package with the system's compiler, into ``bench/build``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / "build"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")


class NoCompilerError(RuntimeError):
    """There is no C compiler on this machine."""


def compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return path
    raise NoCompilerError(
        "No C compiler found (looked for $CC, cc, gcc and clang). The load generator and the "
        "floor server are C programs that are built on the spot; install one, for example with "
        "`apt install gcc libc6-dev`, or name it in CC."
    )


def build(name: str) -> Path:
    """The executable of ``NAME.c``; compiled only if a source is newer."""
    program = BUILD / name
    sources = [HERE / f"{name}.c", *HERE.glob("*.h")]
    if program.exists() and program.stat().st_mtime > max(s.stat().st_mtime for s in sources):
        return program
    BUILD.mkdir(exist_ok=True)
    draft = BUILD / f"{name}.{os.getpid()}"  # renamed when whole: two benches may start at once
    subprocess.run([compiler(), *FLAGS, "-o", draft, sources[0], "-lm"], check=True)
    draft.replace(program)
    return program
