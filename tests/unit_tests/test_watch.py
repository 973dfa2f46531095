"""What a tool prints and logs while it holds a token."""

from __future__ import annotations

import copy
import gc
import io
import logging
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from langchain_runtime_authz.credential import watch as module
from langchain_runtime_authz.credential.leak import REDACTED
from langchain_runtime_authz.credential.ticket import ticket_scope
from tests.unit_tests.test_ticket import a_ticket

TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9." + "c2lnbmF0dXJl" * 7


class Holder:
    def __init__(self, *tokens: str) -> None:
        self.tokens, self.accused = tokens or (TOKEN,), 0

    def minted_tokens(self) -> tuple[str, ...]:
        return self.tokens

    def accuse(self) -> None:
        self.accused += 1


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests left behind, in a thread or a traceback, is not among those who are searched for."""
    monkeypatch.setattr(module, "_alive", weakref.WeakValueDictionary())
    module.unwatch(Holder())


@pytest.fixture
def holder() -> Iterator[Holder]:
    made = Holder()
    module.watch(made)
    yield made
    module.unwatch(made)
    assert not module._alive


def test_what_is_printed_is_searched(capsys: pytest.CaptureFixture[str], holder: Holder) -> None:
    """On both streams, in parts and over lines; the rest of the text stays."""
    module.watch(holder)  # pytest puts streams of its own there between a fixture and its test
    print("sent", TOKEN, "off")
    print(TOKEN, file=sys.stderr)
    sys.stdout.writelines([TOKEN[:40] + "\n", TOKEN[40:] + "\n"])
    print("hello")
    out, err = capsys.readouterr()
    assert out.startswith(f"sent {REDACTED} off\n")
    assert out.endswith("hello\n")
    assert err == f"{REDACTED}\n"
    assert TOKEN[-20:] not in out + err
    assert holder.accused == 3


def test_what_is_logged_is_searched(holder: Holder, caplog: pytest.LogCaptureFixture) -> None:
    """Messages, arguments, exceptions with their notes, stack texts; a wrong format is the logger's own trouble."""
    log = logging.getLogger("a.tool")
    with caplog.at_level(logging.DEBUG):
        log.debug("headers: %s", {"Authorization": f"Bearer {TOKEN}"})
        log.info("plain %s", "text")
        try:
            raise ValueError(f"refused {TOKEN}")
        except ValueError:
            log.exception("failed")
        logging.raiseExceptions, before = False, logging.raiseExceptions
        try:
            log.info("%d", "x")
        finally:
            logging.raiseExceptions = before
    assert TOKEN[-20:] not in caplog.text
    assert "plain text" in caplog.text
    assert caplog.text.count(REDACTED) >= 2
    assert holder.accused == 2


def test_fields_that_are_added_to_a_record_are_searched(holder: Holder, caplog: pytest.LogCaptureFixture) -> None:
    """Some formatters write them all. Objects stay what they are, and so does a record on its way to another process."""
    caplog.set_level(logging.INFO)
    kept = object()
    logging.getLogger("a").info("hm", extra={"sent": {"Authorization": [TOKEN]}, "who": "bob", "by": kept, "raw": TOKEN.encode()})
    (record,) = caplog.records
    assert vars(record)["sent"] == {"Authorization": [REDACTED]}
    assert (record.who, record.by, record.raw) == ("bob", kept, REDACTED.encode())  # type: ignore[attr-defined]
    assert holder.accused == 2
    record.by = None
    for other in (copy.copy(record), pickle.loads(pickle.dumps(record)), logging.makeLogRecord(vars(record))):
        assert (other.who, other.getMessage()) == ("bob", "hm")
    assert type(vars(pickle.loads(pickle.dumps(record)))) is dict


def test_everything_is_as_it_was_afterwards() -> None:
    """Streams and record factory are the process's own again when the last token is dead, in any order."""
    streams, factory = (sys.stdout, sys.stderr), logging.getLogRecordFactory()
    one, two = Holder(), Holder("x.y." + "z" * 60)
    module.watch(one)
    module.watch(two)
    module.watch(one)
    assert sys.stdout is not streams[0]
    assert sys.stdout.isatty() == streams[0].isatty()
    assert sys.stdout.encoding == streams[0].encoding
    module.unwatch(one)
    assert sys.stdout is not streams[0]
    module.unwatch(two)
    module.unwatch(two)
    assert (sys.stdout, sys.stderr) == streams
    assert logging.getLogRecordFactory() is factory


def test_a_stream_that_was_put_there_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody else set is not taken away, and a wrapper that is left over only passes on."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    own = sys.stdout
    holder = Holder()
    module.watch(holder)
    left, other = sys.stdout, io.StringIO()
    sys.stdout = other
    module.unwatch(holder)
    assert sys.stdout is other
    sys.stdout = left
    print(TOKEN)
    assert TOKEN in own.getvalue()  # type: ignore[attr-defined]
    module.watch(holder)
    assert sys.stdout is left  # not wrapped twice
    print(TOKEN)
    module.unwatch(holder)
    assert sys.stdout is own
    assert own.getvalue() == f"{TOKEN}\n{REDACTED}\n"  # type: ignore[attr-defined]


def test_no_stream_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without standard streams (a service, pythonw) has none to search."""
    monkeypatch.setattr(sys, "stdout", None)
    holder = Holder()
    module.watch(holder)
    assert sys.stdout is None
    module.unwatch(holder)


def test_a_ticket_is_watched_from_its_mint_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Not before, not after, also from a thread that the tool started; the ticket knows that it happened."""
    from langchain_runtime_authz import current_call

    stream = sys.stdout
    with ticket_scope(a_ticket()) as ticket:
        ticket.redeem()
        assert sys.stdout is stream
        token = current_call().credential().token
        thread = threading.Thread(target=print, args=(token,))
        thread.start()
        thread.join()
        assert ticket.leaked
        ticket.conclude()
        assert sys.stdout is stream
    assert capsys.readouterr().out == f"{REDACTED}\n"


def test_a_token_minted_across_the_end_is_not_watched_for_ever() -> None:
    """When the call ends while the issuer signs, nothing is left behind."""

    def slow(audience: str, jkt: str | None) -> Any:
        from tests.unit_tests.test_ticket import minted

        ticket.conclude()
        return minted(audience, jkt)

    from langchain_runtime_authz import current_call
    from langchain_runtime_authz.errors import CredentialError

    with ticket_scope(a_ticket(mint=slow)) as ticket:
        ticket.redeem()
        with pytest.raises(CredentialError):
            current_call().credential()
    assert not module._alive


def test_a_call_that_is_never_concluded_is_forgotten() -> None:
    """With its ticket."""
    from langchain_runtime_authz import current_call

    with ticket_scope(a_ticket()) as ticket:
        ticket.redeem()
        current_call().credential()
    assert len(module._alive) == 1
    del ticket
    gc.collect()
    assert not module._alive
    module.unwatch(Holder())
