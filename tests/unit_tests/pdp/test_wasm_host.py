"""The host of compiled Rego against modules that misbehave: each fails, none is believed, none harms the next."""

import asyncio
import ctypes
import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import wasmtime
from wasmtime import _ffi

from langchain_runtime_authz.pdp import _wasm_host
from langchain_runtime_authz.pdp._wasm_host import Program
from langchain_runtime_authz.pdp.base import Evaluator, PolicyFailed
from langchain_runtime_authz.pdp.wasm import WasmPDP

PERMIT = b'{"decision":true}'
GOOD = f'[{{"result":{PERMIT.decode()}}}]'


def module(
    evaluate: str = "(i32.const 4096)",
    *,
    text: str = GOOD,
    pages: int = 2,
    version: str = "3",
    extra: str = "",
    malloc: str = "60000",
    heap: str = "100000",
    parsed: str = "(local.get 0)",
    tables: str = "8",
) -> bytes:
    """The smallest policy of OPA's ABI. Local 4 of `opa_eval` is the input's length, 3 its address."""
    held = "".join(f"\\{byte:02x}" for byte in text.encode() + b"\0")
    return bytes(
        wasmtime.wat2wasm(f"""(module
          (import "env" "memory" (memory {pages}))
          (import "env" "opa_abort" (func $abort (param i32)))
          (import "env" "opa_println" (func $println (param i32)))
          (import "env" "opa_builtin1" (func $builtin1 (param i32 i32 i32) (result i32)))
          {extra}
          (global (export "opa_wasm_abi_version") i32 (i32.const 1))
          (global (export "opa_wasm_abi_minor_version") i32 (i32.const {version}))
          (global $calls (mut i32) (i32.const 0))
          (data (i32.const 8) "{{\\22a/b\\22: 0}}\\00")
          (data (i32.const 64) "{{}}\\00")
          (data (i32.const 4096) "{held}")
          (func (export "opa_malloc") (param i32) (result i32) (i32.const {malloc}))
          (func (export "opa_json_parse") (param i32 i32) (result i32) {parsed})
          (func (export "opa_json_dump") (param i32) (result i32) (local.get 0))
          (func (export "opa_heap_ptr_get") (result i32) (i32.const {heap}))
          (func (export "entrypoints") (result i32) (i32.const {tables}))
          (func (export "builtins") (result i32) (i32.const 64))
          (func (export "opa_eval") (param i32 i32 i32 i32 i32 i32 i32) (result i32) {evaluate}))"""),
    )


def program(code: bytes, **options) -> Program:
    """Loaded, with no data."""
    return Program(code, b"{}", **{"pool_size": 1, "timeout": 1.0, **options})


@pytest.mark.parametrize("evaluate", [
    "unreachable", "(call $abort (i32.const 8)) (i32.const 4096)",
    "(call $builtin1 (i32.const 0) (i32.const 0) (i32.const 0))", "(i32.const 0)", "(i32.const -1)", "(i32.const 2147483647)",
    "(i32.const 131072)",  # where the memory ends
    "(i32.load (i32.const 2147483647))",
    "(memory.fill (i32.const 0) (i32.const 32) (i32.const 196576)) (i32.const 16)",  # no end anywhere
    "(i32.const 64)",  # `{}`
    "(i32.const 70)",  # an empty text
    "(i32.store8 (i32.const 4096) (i32.const 255)) (i32.const 4096)",  # no UTF-8
    "(call $deep) (i32.const 4096)",
])
def test_what_goes_wrong_fails_that_evaluation_only(evaluate: str) -> None:
    """Traps, host calls, addresses outside, texts without an end: a failure, and the next one is answered."""
    once = f"""(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (if (result i32) (i32.eq (local.get 4) (i32.const 3)) (then {evaluate}) (else (i32.const 4096)))"""
    policy = program(module(once, extra="(func $deep (call $deep))"))
    for _ in range(3):
        with pytest.raises(PolicyFailed):
            policy.evaluate(b"bad", "a/b")
        assert policy.evaluate(b"good", "a/b") == PERMIT
    policy.close()


@pytest.mark.parametrize(("at", "says"), [("64", "{}"), ("(local.get 3)", "UNREACHABLE"), ("0", "UNREACHABLE"), ("-1", "UNREACHABLE")])
def test_a_policy_says_why_it_stops_and_never_by_its_input(at: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    """The message goes to the log, so that a policy's author reads the file and line of a conflict."""
    at = at if at.startswith("(") else f"(i32.const {at})"
    policy = program(module(f"(call $abort {at}) (i32.const 4096)"))
    with pytest.raises(PolicyFailed, match=says):
        policy.evaluate(b"secret", "a/b")
    policy.close()
    pdp = WasmPDP()
    pdp.program.evaluate = policy.evaluate
    assert Evaluator(pdp).evaluate([b"{}"])[0].reasons == ("pdp_error",) and "PolicyFailed: closed" in caplog.text
    pdp.close()


def test_an_answer_is_found_where_the_memory_grew() -> None:
    """It may lie elsewhere in this process after an evaluation than before."""
    policy = program(module("(drop (memory.grow (i32.const 600))) (i32.const 4096)"))
    for _ in range(3):
        assert policy.evaluate(b"x", "a/b") == PERMIT
    policy.close()


def test_what_opa_is_handed() -> None:
    """`opa_eval`'s seven numbers: reserved, entrypoint, data, the input's address and length, the heap behind it, JSON."""
    given = " ".join(f"(i32.store offset={4 * i} (i32.const 9000) (local.get {i}))" for i in range(7))
    held = """(i32.and (i32.and
        (i32.eq (i32.load (i32.const 9000)) (i32.load offset=24 (i32.const 9000)))
        (i32.eq (i32.load offset=20 (i32.const 9000))
                (i32.add (i32.load offset=12 (i32.const 9000)) (i32.load offset=16 (i32.const 9000)))))
      (i32.and
        (i32.eq (i32.load8_u (i32.load offset=12 (i32.const 9000))) (i32.const 120))
        (i32.eq (i32.load offset=8 (i32.const 9000)) (i32.const 60000))))"""
    policy = program(module(f"{given} (if (result i32) {held} (then (i32.const 4096)) (else unreachable))"))
    assert policy.evaluate(b"xyz", "a/b") == PERMIT
    policy.close()


@pytest.mark.parametrize("odd", [
    *({"heap": end} for end in ("-1", "0", "2147483647", "-2147483648")),  # no input is written outside
    *({"text": text} for text in ("", "null", "{}", "[1]", '[{"value": 1}]', '[{"result": 1}', "[" * 3000)),  # only one result is one
], ids=lambda odd: str(odd)[:30])  # fmt: skip
def test_what_a_policy_says_of_itself_is_not_believed(odd: dict[str, str]) -> None:
    policy = program(module(**odd))
    with pytest.raises(PolicyFailed):
        policy.evaluate(b"x", "a/b")
    policy.close()


def test_two_results_are_no_answer() -> None:
    """Their text is not JSON."""
    policy = program(module(text='[{"result": 1}, {"result": 2}]'))
    with pytest.raises(ValueError, match="Extra data"):
        json.loads(policy.evaluate(b"x", "a/b"))
    policy.close()


def test_an_event_loop_waits_for_no_instance() -> None:
    """It gets one of its own while threads hold the pool; a thread waits for the evaluations before it."""
    policy = program(module())

    async def inline() -> bytes:
        return policy.evaluate(b"x", "a/b")

    policy._places.get()  # as another thread would
    for _ in range(3):
        assert asyncio.run(inline()) == PERMIT
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(policy.evaluate, b"x", "a/b") for _ in range(2)]
        assert not any(answer.done() for answer in waiting)
        policy._places.put(None)
        assert [answer.result(60) for answer in waiting] == [PERMIT] * 2
        policy._places.get()
        waiting = [pool.submit(policy.evaluate, b"x", "a/b") for _ in range(2)]
        policy.close()
        policy._places.put(None)
        for answer in waiting:
            with pytest.raises(PolicyFailed):
                answer.result(60)


def test_memory_is_bounded() -> None:
    """A policy that takes ever more gets no more than its share, and large inputs fit."""
    bomb = """(block (loop (br_if 1 (i32.eq (memory.grow (i32.const 256)) (i32.const -1))) (br 0)))
        (if (result i32) (i32.gt_u (memory.size) (i32.const 4096)) (then (i32.const 4096)) (else unreachable))"""
    policy = program(module(bomb))
    with pytest.raises(PolicyFailed):
        policy.evaluate(b"x", "a/b")
    policy.close()
    policy = program(module())
    assert policy.evaluate(b"x" * 5_000_000, "a/b") == PERMIT
    policy.close()


COUNTED = "(loop (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))) (br_if 0 {})) (i32.const 4096)"
LONG = COUNTED.format("(i32.lt_u (i32.load (i32.const 0)) (i32.const 20000000))")


@pytest.mark.parametrize("rushing", [False, True])
def test_a_runaway_is_stopped_by_its_work(rushing: bool) -> None:
    """So are several at once, and the next of them gets an instance. What only took long in the world is not stopped."""
    endless = program(module(COUNTED.format("(i32.const 1)")), pool_size=2, timeout=0.1)
    long = program(module(LONG), pool_size=2, timeout=60.0)
    over = threading.Event()

    def rush() -> None:  # as a clock goes for a process that gets no CPU
        while not over.wait(0.0001):
            for _ in range(10_000):
                long.clock.engine.increment_epoch()

    clock = threading.Thread(target=rush)
    if rushing:
        clock.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(endless.evaluate, b"x", "a/b") for _ in range(3)]
            done = pool.submit(long.evaluate, b"x", "a/b")
            for answer in answers:
                with pytest.raises(TimeoutError):
                    answer.result(120)
            assert done.result(120) == PERMIT
    finally:
        over.set()
        if rushing:
            clock.join()
    endless.close()
    long.close()


@pytest.mark.parametrize(
    "code",
    [
        module(version="1"), b"\0asm\1\0\0\0", bytes(wasmtime.wat2wasm('(module (import "env" "memory" (memory 2)))')),
        bytes(wasmtime.wat2wasm('(module (import "env" "memory" (memory 2)) (import "wasi" "f" (func)))')),
        module(extra='(import "env" "secret" (func))'), module(pages=5000), module(malloc="-1"), module(malloc="0"),
        module(malloc="2147483647"), module(parsed="(i32.const 0)"), module(parsed="unreachable"),
        module(parsed="(loop (br 0)) unreachable"), module(tables="-1"), module(tables="2147483647"), module(tables="64001"),
    ],
    ids=[
        "old ABI", "no memory", "no exports", "another host", "an unknown import", "too much memory", "malloc below",
        "malloc nowhere", "malloc beyond", "data refused", "data traps", "data loops", "table below", "table beyond",
        "table empty",
    ],
)
def test_what_is_no_policy_is_refused(code: bytes) -> None:
    """At load, and nothing keeps running."""
    before = set(threading.enumerate())
    with pytest.raises((PolicyFailed, TimeoutError)):
        program(code, timeout=0.2)
    assert set(threading.enumerate()) <= before


def test_one_thread_watches_all_and_ends_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed or forgotten. The clock and the modules are the test's own: others may hold the process's."""
    monkeypatch.setattr(_wasm_host, "_clock", None)
    monkeypatch.setattr(_wasm_host, "_modules", {})
    before = set(threading.enumerate())
    first, second = program(module()), program(module())
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "runtime-authz-wasm"
    first.close()
    first.close()
    assert second.evaluate(b"x", "a/b") == PERMIT
    del second
    with threading._active_limbo_lock:
        gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_code_is_shared_and_data_is_not() -> None:
    """Programs of the same code share its compiled form, and go on when another one is closed."""
    first = program(module())
    second = Program(module(), b"[]", pool_size=1, timeout=1.0)
    assert second.module is first.module
    first.close()
    assert second.evaluate(b"x", "a/b") == PERMIT
    with pytest.raises(PolicyFailed):
        first.evaluate(b"x", "a/b")
    second.close()


def test_the_private_names_of_wasmtime_are_there() -> None:
    """Some C functions are called without their wrappers, with the types that the package declares."""
    assert _ffi.wasmtime_func_call and _ffi.wasm_trap_t
    for name, arguments in (
        ("wasmtime_func_call", 7), ("wasmtime_memory_data", 2), ("wasmtime_memory_data_size", 2),
        ("wasmtime_context_set_epoch_deadline", 2), ("wasmtime_store_epoch_deadline_callback", 4), ("wasmtime_error_new", 1),
    ):
        assert len(getattr(_ffi.dll, name).argtypes) == arguments, name
    policy = program(module())
    instance = policy._free[0]
    assert instance._size() == instance._memory.data_len(instance._store)
    assert instance._base() == ctypes.addressof(instance._memory.data_ptr(instance._store).contents)
    policy.close()
