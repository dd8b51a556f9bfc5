"""The fuzz target: any bytes are a session on a watcher, and no session may break a rule.

    python -m tests.fuzz --minutes 60

The sessions are those of :mod:`tests.model`, on its simulated network and with its ledger, and
with steps that the model has not: wrong arguments of every kind, objects that are no connections,
connections of other watchers, buffers that are resized meanwhile, waits that are given up. Nothing
may come of these but the exceptions that the calls document, and nothing may be left behind.

- :mod:`steps`: bytes as a list of steps, and back.
- :mod:`values`: what programs pass that they should not, or seldom.
- :mod:`requests`: a request with such arguments, and what may become of it.
- :mod:`session`: the steps.
- :mod:`target`: one input, and what is a crash.
- :mod:`reach`: which lines and branches of aiogaio were reached.
- :mod:`engine`: inputs that reach more are kept and mutated; crashes are made small.
- :mod:`job`, :mod:`count`: processes that do so, and how far they are.
- ``python -m tests.fuzz``: as long as one likes, or one crash once more.
"""
