"""Attempts: the system calls that move bytes, and all but one of the package's.

Each function makes one non-blocking system call for one operation, writes down what came of it
and returns whether the operation is done. They know nothing of queues, watchers or loops. The
readiness bits of the record are kept here, since only an attempt can prove that there is nothing
left: EAGAIN does, and on TCP a receive or send that was shorter than it could have been.

Errors are delivered without their traceback: its frames would keep alive all that stood in the
watcher's own calls, for as long as the program keeps the result.
"""

from aiogaio.attempts.connecting import connect, forgo_linger, hung_up, is_uncertain, shut_down
from aiogaio.attempts.files import send_file
from aiogaio.attempts.frames import receive_rest, receive_until, rest_shot
from aiogaio.attempts.messages import message_shot, receive_message, send_message
from aiogaio.attempts.streams import (
    ACCEPT_SHORTAGE,
    CHUNK,
    SHORTAGE,
    accept,
    receive,
    receive_full,
    receive_into,
    receive_shot,
    send,
)
from aiogaio.attempts.urgent import expect_marks, look_for_marks
from aiogaio.attempts.vectors import keep_rest, send_parts, send_queued, send_whole

__all__ = [
    "ACCEPT_SHORTAGE",
    "CHUNK",
    "SHORTAGE",
    "accept",
    "connect",
    "expect_marks",
    "forgo_linger",
    "hung_up",
    "is_uncertain",
    "keep_rest",
    "look_for_marks",
    "message_shot",
    "receive",
    "receive_full",
    "receive_into",
    "receive_message",
    "receive_rest",
    "receive_shot",
    "receive_until",
    "rest_shot",
    "send",
    "send_file",
    "send_message",
    "send_parts",
    "send_queued",
    "send_whole",
    "shut_down",
]
