"""The examples under real load tools, beside the usual way to do the same.

``python -m bench.applications`` measures all, ``python -m bench.applications http kv`` these two.
Each module here that has an ``APPLICATION`` is one that can be measured. To add one, write such a
module: its servers, its rivals, its loads, its targets (see ``model``). Nothing else has to know of
it.

From the bottom up:

    model.py          servers, loads, targets, rows of figures
    rivals/           the usual ways, where nobody has one to install
    loads/            loads that no tool at hand makes; datagrams.c and bench/load.c are in C
    cpu.py            CPU time of processes
    tools.py          the loads that several applications use, and what they print
    http.py ...       the applications
    runner.py         processes, each pinned to its core; taking samples in turns
    report.py         what is printed
"""
