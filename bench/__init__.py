"""The side-by-side: aiogaio and its rivals, measured in one run on this machine.

    python -m bench                     all of it, under an hour
    python -m bench --quick             five servers, three scenarios, under a minute
    python -m bench core                the targets, each with what was measured
    python -m bench compare A B         what changed between two runs
    python -m bench micro               the hot calls alone, with pyperf

From the bottom up:

    floor.c, load.c   the least a server can cost, and the load (built by native.py)
    servers/          every rival, as its experts would write it
    machine.py        the machine's facts; which core is whose
    process.py        a server as a process
    load.py           the load as a process
    scenarios.py      how one sample is taken
    deadlines.py, imports.py, micro.py      figures that need no load
    results.py        rows of samples, and their file
    plan.py           which scenarios, which servers
    rounds.py         taking samples in turns (progress.py shows how far)
    flags.py          what makes a figure worth less than it looks
    regression.py, charts.py, report.py, core.py, compare.py      what to make of it
"""
