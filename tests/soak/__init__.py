"""The soak: large and long loads against the library, each figure in a process of its own.

``python -m tests.soak --minutes 30`` prints what was asked, what was run, what was measured, and
whether it was kept. One noun per file:

- ``figures``: the loads, one file each, with what is asked of them.
- ``variant``, ``budget``: on which loop and poller, and how much of each figure is run.
- ``stage``: what every figure stands on: a watcher, a ledger, and peers; it ends with the checks
  that are common to all.
- ``ledger``: each request and each result is entered, so that none can be lost or come twice.
- ``footprint``: what is open and alive before and after.
- ``server``, ``peers``: the two ends of the loads; the peers know nothing of the library.
- ``process``: the children, and how they are talked to. ``child``: what runs in them.
- ``result``, ``report``, ``progress``: what came of it, as a table, and how far it is.
"""
