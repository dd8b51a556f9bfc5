"""What is said in the rooms of chat_server.py, between its processes: Redis publish/subscribe."""

import asyncio
from typing import TYPE_CHECKING, Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aiogaio import Connection

if TYPE_CHECKING:
    from chat_server import Chat

AGAIN = 2.0  # seconds from one attempt to reach the bus to the next
PREFIX = "chat:"  # of the channels, one for each room


class Bus:
    """What is said goes to Redis, and comes back from there to all processes (PUBLISH)."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        self.redis.set_retry(Retry(NoBackoff(), 0))  # who loses the bus has to know
        self.up = False
        self.outbox: list[tuple[str, str]] = []
        self.held: list[Connection] = []  # not read again until what they have said is out
        self.filled = asyncio.Event()

    async def aclose(self) -> None:
        """Leave."""
        await self.redis.aclose()

    def take(self, room: str, text: str) -> bool:
        """Take a message, if the bus is there."""
        if self.up:
            self.outbox.append((room, text))
            self.filled.set()
        return self.up

    def holds(self, conn: Connection) -> bool:
        """Whether this connection is read later: the bus sets the pace."""
        if self.outbox:
            self.held.append(conn)
        return bool(self.outbox)

    async def run(self, chat: "Chat") -> None:
        """Connect; and again after each loss."""
        reported = False
        while True:
            try:
                async with self.redis.pubsub() as channel, asyncio.TaskGroup() as tasks:
                    # All rooms: that scales with the members, but each process hears everything.
                    await channel.psubscribe(f"{PREFIX}*")
                    tasks.create_task(self.listen(channel, chat))
                    tasks.create_task(self.publish(chat))
            except* (OSError, redis.RedisError) as group:
                if self.up or not reported:
                    reported = True
                    why = str(group.exceptions[0]).rstrip(".")
                    print(f"bus: {why}; rooms are local, next try each {AGAIN:g} s", flush=True)
            self.up = False
            for room, text in self.outbox:  # perhaps for the second time; never lost here
                chat.deliver(room, text)
            self.outbox = []
            self.release(chat)
            await self.redis.connection_pool.disconnect()  # what it keeps is dead as well
            await asyncio.sleep(AGAIN)

    async def listen(self, channel: Any, chat: "Chat") -> None:
        """What comes from the bus."""
        while True:
            message = await channel.get_message(timeout=None)
            if message is None:
                continue
            if message["type"] == "psubscribe":
                self.up = True
                print("bus: connected", flush=True)
            elif message["type"] == "pmessage":
                room = message["channel"].decode(errors="replace").removeprefix(PREFIX)
                chat.deliver(room, message["data"].decode(errors="replace"))

    async def publish(self, chat: "Chat") -> None:
        """What goes to the bus: all that was said since the last time, at once."""
        while True:
            await self.filled.wait()
            self.filled.clear()
            count = len(self.outbox)
            async with self.redis.pipeline(transaction=False) as pipe:
                for room, text in self.outbox:
                    pipe.publish(PREFIX + room, text)
                await pipe.execute()
            del self.outbox[:count]
            self.release(chat)

    def release(self, chat: "Chat") -> None:
        """Read on from those who have waited."""
        held, self.held = self.held, []
        for conn in held:
            if not conn.closed:
                chat.read(conn)
