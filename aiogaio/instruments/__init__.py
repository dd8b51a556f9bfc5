"""Instruments: look on while a watcher works. None of it costs anything unless one is passed.

``Watcher(instrument=...)`` takes any object with the methods of :class:`Instrument`. Two are here,
to be switched on explicitly: :class:`LoggingInstrument` and :class:`PrometheusInstrument`. What
the second needs, the ``prometheus-client`` package, is imported when one is made.

>>> watched = Watcher(instrument=LoggingInstrument())
>>> op = watched.write(peer, b"hello")  # logged, at DEBUG
"""

from aiogaio.instruments.instrument import Instrument
from aiogaio.instruments.logs import LoggingInstrument
from aiogaio.instruments.prometheus import PrometheusInstrument

__docformat__ = "restructuredtext"

__all__ = ["Instrument", "LoggingInstrument", "PrometheusInstrument"]
