"""Where the correction matrix is played: over a ledger that several processes share.

`python -m tests.attack.correction_places` is the other process. It reads one JSON line per request and
answers each with one: it plays the part of a cell that it is asked for, on files or a database that it
opens by itself, and shares no memory with whoever asks.
"""

import logging
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver

from langchain_runtime_authz.ledger.postgres import PostgresLedger

from ._kit import *
from .corrections import KINDS, ROADS, Desk, Kind, Road, human, verify

ROOT = Path(__file__).parents[2]


class _Threaded:
    """A synchronous checkpointer for event loops that come and go: each call in a thread."""

    async def aget_tuple(self: Any, config: Any) -> Any:
        return await asyncio.to_thread(self.get_tuple, config)

    async def alist(self: Any, config: Any, **options: Any) -> AsyncIterator[Any]:
        for found in await asyncio.to_thread(lambda: list(self.list(config, **options))):
            yield found

    async def aput(self: Any, *args: Any) -> Any:
        return await asyncio.to_thread(self.put, *args)

    async def aput_writes(self: Any, *args: Any) -> None:
        await asyncio.to_thread(self.put_writes, *args)


class Sqlite(_Threaded, SqliteSaver):
    """On a file."""


class Postgres(_Threaded, PostgresSaver):
    """In a database."""


@contextmanager
def opened(place: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Ledger and checkpointer of a place, by connections of this process's own."""
    with ExitStack() as stack:
        opening: AbstractContextManager[Any]
        if "file" in place:
            opening = Sqlite.from_conn_string(place["file"] + ".graph")
            ledger: Any = SqliteLedger(place["file"])
            stack.callback(ledger.close)
        else:
            opening = Postgres.from_conn_string(f"{place['dsn']} options='-c search_path={place['schema']}_graphs'")
            ledger = stack.enter_context(PostgresLedger(place["dsn"], schema=place["schema"], max_size=4))
        saver = stack.enter_context(opening)
        saver.setup()
        yield {"ledger": ledger, "saver": saver}


class Elsewhere:
    """The other process, as seen from here."""

    def __init__(self, place: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.attack.correction_places", json.dumps(place)], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def does(self, part: str, desk: Desk, road: Road) -> None:
        """Let it play `part` of a cell; take over what was paid there, and the leases that it had."""
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = {
            "part": part, "road": road.slug, "kind": desk.kind.name, "mode": desk.mode, "protected": desk.protected,
            "thread": desk.thread,
        }
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "the other process is gone"}')
        assert "error" not in answer, answer["error"]
        desk.ran += [tuple(paid) for paid in answer["ran"]]
        desk.thread = answer["thread"]
        if part == "plan":
            desk.jtis |= set(answer["jtis"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


def planned_elsewhere(road: Road, kind: Kind, mode: str, held: dict[str, Any], other: Elsewhere, *, protected: bool) -> Desk:
    """The other process plans and pauses; this one, which is new to the thread, corrects and goes on."""
    desk = _desk(road, kind, mode, held, protected=protected)
    if protected or road.waits == "question":
        other.does("plan", desk, road)
        road.act(desk)
    else:
        desk.go(human())
    return desk


def corrected_elsewhere(road: Road, kind: Kind, mode: str, held: dict[str, Any], other: Elsewhere, *, protected: bool) -> Desk:
    """This process plans, and is still at it or waits; the other one corrects."""
    desk = _desk(road, kind, mode, held, protected=protected)
    if road.correct is not None:
        desk.thinks = lambda desk: other.does("correct", desk, road)
        desk.go(human())
    elif road.waits == "approval" and not protected:  # without us nobody is asked
        desk.go(human())
    else:
        if road.waits:
            desk.thinks = road.meanwhile
            desk.go(human())
        other.does("act", desk, road)
    desk.jtis |= {r.context.lease.jti for r in desk.pdp.requests if r.context.task.epoch == 1}
    return desk


def _desk(road: Road, kind: Kind, mode: str, held: dict[str, Any], *, protected: bool) -> Desk:
    return Desk(kind, mode, protected, road.waits, thread=uuid.uuid4().hex, **held)


def check(road: Road, desk: Desk) -> None:
    """As in one process."""
    verify(road, desk)


def _serve(requests: Sequence[str] | Any, held: dict[str, Any]) -> Iterator[dict[str, Any]]:
    roads = {r.slug: r for r in ROADS.values()}
    for line in requests:
        asked = json.loads(line)
        road = roads[asked["road"]]
        desk = Desk(KINDS[asked["kind"]], asked["mode"], asked["protected"], road.waits, thread=asked["thread"], **held)
        try:
            if asked["part"] == "plan":
                desk.thinks = road.meanwhile
                desk.go(human())
            elif asked["part"] == "correct":
                assert road.correct is not None
                road.correct(desk)
            else:
                road.act(desk)
        except Exception as exc:
            yield {"error": f"{type(exc).__name__}: {exc}"}
            continue
        jtis = [r.context.lease.jti for r in desk.pdp.requests]
        yield {"ran": desk.ran, "thread": desk.thread, "jtis": jtis}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    with opened(json.loads(sys.argv[1])) as parts:
        for answer in _serve(sys.stdin, parts):
            print(json.dumps(answer), flush=True)
