"""The model: what may come of any sequence of requests, deadlines, cancels, ends and resets.

A session makes steps on a watcher and on the other ends of its connections, and keeps a ledger:
each request has one result, in its order, with an error only if something brought it about, and
with the bytes that the other end has sent. When all is quiet it looks whether somebody waits for
what is there already: a lost wake-up.

The same steps run on the simulated network, where a failure can be repeated to the last system
call, and on real sockets.

- :mod:`requests`: one request, and what may become of it.
- :mod:`lines`: one connection, its bytes and its other end.
- :mod:`worlds`: the simulated network and the real one.
- :mod:`session`: the steps.
- :mod:`machine`: hypothesis, which chooses and shrinks them.
- :mod:`runs`: many sessions, and what to print when one fails.
- :mod:`breaks`: what is done to a watcher on purpose, to see that it is found.
- ``python -m tests.model``: many seeds, or one failure once more.
"""
