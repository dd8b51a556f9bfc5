"""Interleavings: every sequence of up to N events on two connections, none left out.

    python -m tests.interleavings --depth 4

The model (:mod:`tests.model`) draws its sequences by chance; here they are counted out, on the
same simulated network and against the same ledger. An event is a request, something that the
peer does, a cancel, a close, one turn of the loop, a jump of the clock.

**A turn of the loop is an event of its own**, one iteration, and nothing turns between two others.
So a sequence says at which of its places the watcher looks at its sockets, a timeout and the data
that it waits for may come to the same turn, and a cancel of the task that waits may fall between
the turn that completes an operation and the one that wakes the task.

Each sequence, of whatever length, is a run of its own on a new network: Python's state cannot be
copied at a branch. A run ends with the final check, so each prefix of a sequence has had it, too:
all happens that can, and nobody waits for what is there; the timeouts pass, and nothing is late;
the watcher is closed, each request has had its one result, and each byte arrived that was sent.
Before the check, a run says which events can follow, and the walk goes on with those:

- An event that would do nothing does not follow: a turn of a loop that has nothing to do, a
  cancel where nothing is pending, an event of a peer that has closed or whose connection is freed.
  The sequence is the same one as without it. Nor does a jump of the clock if no timeout is
  running: it would only end the time slice of a consumer who always finds results.
- The connections have no names before they are used: the first used is A, and is opened then, so
  that B, opened after A was freed, has A's number.

Nothing else is taken for equal. Events of A and of B between two turns are tried in both orders,
since that decides the order of epoll's list, of the watcher's queues and of the results.

Of each request there are a few kinds only, the more the smaller the depth (``events.ALPHABETS``).
``--after "wait, turn, turn"`` begins where a task waits already, and counts the depth from there.

- :mod:`events`: what can happen, and when.
- :mod:`walk`: one sequence, all that begin with it, and the shortest that fails likewise.
- ``python -m tests.interleavings``: the command.
"""
