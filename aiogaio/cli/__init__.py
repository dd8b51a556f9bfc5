"""The command line, ``python -m aiogaio``. It uses the package's public names; nothing imports it.

arguments  what may be asked for, and the one-line complaints
demo       a Watcher and asyncio streams under the same load, side by side
echo       an echo server that stays up
info       what this machine offers: loop, poller, versions, limits
server     the echo servers that demo and echo run
load       the demo's clients, a process of their own
measurement, progress, summary   the demo's figures: what they are, while it runs, at its end
failure, limits, loops           what the commands share
"""
