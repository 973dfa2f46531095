"""A host for Rego compiled to Wasm (OPA's Wasm ABI 1.2 and later), on wasmtime.

One `Program` is a compiled policy with one data document and a pool of instances. The parsed data stays in an
instance's memory. As in OPA's own hosts (openpolicyagent.org/docs/wasm, "Fast path"), an evaluation writes its input
after the data, calls `opa_eval` once, and reads one text.

A policy cannot call Python: a second Wasm module provides the functions that it imports, and they trap.
"""

# ruff: noqa: SLF001  (wasmtime's private names; a test pins them)

from __future__ import annotations

import atexit
import ctypes
import json
import math
import os
import struct
import threading
import time
import weakref
from collections import deque
from ctypes import byref
from functools import partial
from hashlib import sha256
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

import wasmtime
from wasmtime import _ffi

from langchain_runtime_authz._flow import running_loop
from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.errors import Code, PDPError
from langchain_runtime_authz.pdp.base import PolicyFailed

TICK: Final = 0.05  # seconds: how exactly an evaluation is stopped
MAX_PAGES: Final = 4096  # of 64 KiB: memory of one instance
MAX_RESULT: Final = 1024 * 1024
MAX_POOL: Final = 1024
MAX_MODULES: Final = 8  # compiled modules that are kept for the next program of the same code
_PAGE: Final = 65536
_CHUNK: Final = 4096
_WHY: Final = 200  # characters of a policy's own error
_ABI: Final = (1, 2)
_EXPORTS: Final = (
    "opa_malloc",
    "opa_json_parse",
    "opa_json_dump",
    "opa_heap_ptr_get",
    "opa_eval",
    "entrypoints",
    "builtins",
)
# The host functions are Wasm, because `wasmtime` keeps Python callbacks in a table that threads may not share.
_HOST: Final = f"""(module
  (global $why (export "why") (mut i32) (i32.const 0))
  (func (export "opa_abort") (param i32) (global.set $why (local.get 0)) unreachable)
  (func (export "opa_println") (param i32))
  {
    "".join(
        f'(func (export "opa_builtin{n}") (param {" ".join(["i32"] * (n + 2))}) (result i32) unreachable)'
        for n in range(5)
    )
})"""
# Passing seven numbers through `wasmtime`'s Python calls, and one back, costs more than parsing a request.
# So a Wasm function reads the numbers from the memory, where they stand before the input. It calls `opa_eval`,
# and writes the address of the answer over the first number.
_BEGIN, _END = b'[{"result":', b"}]"  # around the answer in the result set that OPA returns
_ARGUMENTS: Final = struct.Struct("<5i")  # entrypoint, data, input, its length, heap
_CALL: Final = """(module
  (import "env" "memory" (memory 0))
  (import "env" "at" (global $at i32))
  (import "env" "opa_eval" (func $eval (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (func (export "eval")
    (i32.store (global.get $at) (call $eval
      (i32.const 0)
      (i32.load offset=0 (global.get $at))
      (i32.load offset=4 (global.get $at))
      (i32.load offset=8 (global.get $at))
      (i32.load offset=12 (global.get $at))
      (i32.load offset=16 (global.get $at))
      (i32.const 0)))))"""


# Wasmtime's C functions, as its Python package declares them: its own wrappers of these four make fifty calls.
_C: Final = _ffi.dll
_TRAP: Final = ctypes.POINTER(_ffi.wasm_trap_t)
_set_late: Final = _C.wasmtime_store_epoch_deadline_callback
_Late, _Freed = _set_late.argtypes[1], _set_late.argtypes[3]
_own = threading.local()  # `until`: the thread's CPU time at which its evaluation must end


@_Late  # type: ignore[untyped-decorator]
def _late(_context: Any, _data: Any, more: Any, _kind: Any) -> int:
    """Stop an evaluation that has used up its CPU time; else wait for the rest of it."""
    left = _own.until - time.thread_time()
    if left <= 0:
        return int(ctypes.cast(_C.wasmtime_error_new(b"out of time"), ctypes.c_void_p).value or 0)
    more[0] = math.ceil(left / TICK)
    return 0


class _Clock:
    """The thread that stops runaway evaluations, one for all programs."""

    def __init__(self) -> None:
        config = wasmtime.Config()
        config.epoch_interruption = True
        # Compilation threads do not exist in a fork's child, which would wait for them for ever.
        config.parallel_compilation = False
        self.engine = wasmtime.Engine(config)
        self.host = wasmtime.Module(self.engine, _HOST)
        self.call = wasmtime.Module(self.engine, _CALL)
        self.programs: weakref.WeakSet[Program] = weakref.WeakSet()  # while one of them is open, the thread ticks
        self.forked()

    def forked(self) -> None:
        """Forget the parent's thread and locks, in a forked child."""
        self._lock = threading.RLock()  # reentrant: a finaliser may run at any time
        self._thread: threading.Thread | None = None

    def serve(self, program: Program) -> None:
        """Let the thread run until `program` is closed."""
        with self._lock:
            self.programs.add(program)
            if self._thread is None:
                self._thread = threading.Thread(target=self._tick, name="runtime-authz-wasm", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Wait for the thread's end if every program is closed."""
        with self._lock:
            thread = None if any(not p.closed for p in self.programs) else self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _tick(self) -> None:
        while True:
            time.sleep(TICK)
            self.engine.increment_epoch()
            with self._lock:
                if all(p.closed for p in self.programs):
                    self._thread = None
                    return


_clock: _Clock | None = None
_clock_lock = threading.Lock()


def _the_clock() -> _Clock:
    global _clock  # noqa: PLW0603  (one engine per process: `increment_epoch` is for all of its stores)
    with _clock_lock:
        if _clock is None:
            _clock = _Clock()
        return _clock


class _Compiled(NamedTuple):
    module: wasmtime.Module
    pages: int  # initial memory: what the module demands, plus the length of its code


_modules: dict[bytes, _Compiled] = {}
_compiling = forkable_lock()


def _compiled(code: bytes) -> _Compiled:
    key = sha256(code).digest()
    with _compiling:
        if (known := _modules.pop(key, None)) is None:
            try:
                module = wasmtime.Module(_the_clock().engine, code)
            except wasmtime.WasmtimeError as exc:
                raise PolicyFailed("not a Wasm module") from exc
            asked = [w.type for w in module.imports if (w.module, w.name) == ("env", "memory")]
            if not asked or not isinstance(asked[0], wasmtime.MemoryType):
                raise PolicyFailed("it imports no memory")
            known = _Compiled(module, int(asked[0].limits.min) + -(-len(code) // _PAGE))
        _modules[key] = known  # the most recently used is dropped last
        if len(_modules) > MAX_MODULES:
            del _modules[next(iter(_modules))]
        return known


class Program:
    """A compiled policy and its data. Thread-safe, and usable in a fork's child.

    Programs of the same code share its compiled form. `pool_size` does not count evaluations on event loops. `timeout`:
    CPU seconds of one evaluation; waiting for a CPU or an instance does not count. `entrypoints`: ids by name.
    `builtins`: host functions that the policy would call. Raises `PolicyFailed` if OPA did not compile `code`.
    """

    def __init__(self, code: bytes, data: bytes, *, pool_size: int, timeout: float) -> None:
        self.clock = _the_clock()
        self.data = data
        self._size, self.timeout = min(pool_size, MAX_POOL), timeout
        self.ticks = max(1, math.ceil(timeout / TICK))
        self.closed = False
        self.module, self.pages = _compiled(code)
        self.forked()
        self.clock.serve(self)
        try:
            first = _Instance(self)
            self.entrypoints: dict[str, int] = first.table("entrypoints")
            self.builtins = frozenset(first.table("builtins"))
        except BaseException:
            self.close()
            raise
        self._free.append(first)

    def forked(self) -> None:
        """Begin with an empty pool: another thread may have held its contents at the fork."""
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._size):
            self._places.put(None)
        self._free: deque[_Instance] = deque(maxlen=self._size)

    def evaluate(self, body: bytes, entrypoint: str) -> bytes:
        """Return the answer as JSON. Raises `TimeoutError`, `PDPError` or `PolicyFailed`.

        On an event loop, it does not wait for a free instance of the pool but uses an additional one.
        """
        if self.closed:
            raise PolicyFailed("closed")
        places: SimpleQueue[None] | None = self._places
        try:
            self._places.get(block=False)
        except Empty:
            places = self._waited()
        try:
            try:
                instance = self._free.pop()
            except IndexError:
                instance = _Instance(self)
            text = instance.evaluate(self.entrypoints[entrypoint], body, self)
            defined = text.startswith(_BEGIN) and text.endswith(_END)
            if not defined and text != b"[]":
                raise PolicyFailed("the answer is not a result set")
            if not self.closed:  # an instance is not used again after a failure, because its memory may be corrupt
                self._free.append(instance)
        finally:
            if places is not None:
                places.put(None)
        if not defined:
            raise PDPError(Code.PDP_UNDEFINED)
        return text[len(_BEGIN) : -len(_END)]

    def _waited(self) -> SimpleQueue[None] | None:
        if running_loop() is not None:
            return None
        places = self._places
        places.get()
        if self.closed:
            places.put(None)
            raise PolicyFailed("closed")
        return places

    def close(self) -> None:
        """Free the instances; later evaluations raise `PolicyFailed`. Idempotent."""
        self.closed = True
        self._free.clear()
        self.clock.wait()


class _Instance:
    """A Wasm store with the data in its memory, for one thread at a time."""

    def __init__(self, program: Program) -> None:
        clock = program.clock
        self._store = wasmtime.Store(clock.engine)
        self._store.set_limits(memory_size=MAX_PAGES * _PAGE)
        self._store.set_epoch_deadline(program.ticks)
        _set_late(self._store.ptr(), _late, None, _Freed())
        _own.until = time.thread_time() + program.timeout
        linker = wasmtime.Linker(clock.engine)
        try:
            self._memory = wasmtime.Memory(self._store, wasmtime.MemoryType(wasmtime.Limits(program.pages, MAX_PAGES)))
            self._context, memory = self._store._context(), byref(self._memory._memory)
            self._pointer = partial(_C.wasmtime_memory_data, self._context, memory)
            self._size = partial(_C.wasmtime_memory_data_size, self._context, memory)
            linker.define(self._store, "env", "memory", self._memory)
            host = linker.instantiate(self._store, clock.host)
            for name, given in host.exports(self._store).items():
                linker.define(self._store, "env", name, given)
            self._why: Any = host.exports(self._store)["why"]
            exports: Any = linker.instantiate(self._store, program.module).exports(self._store)
            self._call: dict[str, Any] = {name: exports[name] for name in _EXPORTS}
            version = [exports[f"opa_wasm_abi_{part}version"].value(self._store) for part in ("", "minor_")]
            if not (version[0] == _ABI[0] and version[1] >= _ABI[1]):
                raise PolicyFailed(f"ABI {version[0]}.{version[1]} is not supported")
            at = self._do("opa_malloc", len(program.data))
            self._write(at, program.data)
            self._data = self._do("opa_json_parse", at, len(program.data))
            self._heap = self._do("opa_heap_ptr_get")
            place = wasmtime.GlobalType(wasmtime.ValType.i32(), mutable=False)
            linker.define(self._store, "env", "at", wasmtime.Global(self._store, place, self._heap))
            linker.define(self._store, "env", "opa_eval", self._call["opa_eval"])
            evaluator: Any = linker.instantiate(self._store, clock.call).exports(self._store)["eval"]
            self._evaluate = partial(_C.wasmtime_func_call, self._context, byref(evaluator._func), None, 0, None, 0)
        except (wasmtime.WasmtimeError, wasmtime.Trap, KeyError, AttributeError, TypeError) as exc:
            raise PolicyFailed("no policy compiled by OPA, or its data does not fit into its memory") from exc
        if not self._data:
            raise PolicyFailed("the data is not JSON to OPA")

    def evaluate(self, entrypoint: int, body: bytes, program: Program) -> bytes:
        given = self._heap + _ARGUMENTS.size
        end = given + len(body)
        try:
            _own.until = time.thread_time() + program.timeout
            _C.wasmtime_context_set_epoch_deadline(self._context, program.ticks)
            self._write(self._heap, _ARGUMENTS.pack(entrypoint, self._data, given, len(body), end) + body)
            trap = _TRAP()
            if error := self._evaluate(byref(trap)):
                raise wasmtime.WasmtimeError._from_ptr(error)
            if trap:
                raise wasmtime.Trap._from_ptr(trap)
            answer = ctypes.string_at(self._base() + self._heap, 4)
            return self._text(int.from_bytes(answer, "little", signed=True))
        except wasmtime.Trap as exc:
            # OPA writes why it stops, like `own.rego:3:1: var assignment conflict`. Above the heap's start lies the
            # input, which an error must not quote.
            at = self._why.value(self._store)
            why = self._text(at)[:_WHY].decode("ascii", "replace") if 0 < at < self._heap else exc.trap_code
            raise PolicyFailed(f"the evaluation trapped: {why}") from exc
        except wasmtime.WasmtimeError as exc:
            if time.thread_time() >= _own.until:
                raise TimeoutError from exc
            raise PolicyFailed("the evaluation failed") from exc
        except struct.error as exc:  # the policy returned an address that is not a number of 32 bits
            raise PolicyFailed("an address outside the memory") from exc

    def table(self, name: str) -> dict[str, int]:
        """Return the ids of the policy's `entrypoints` or `builtins`, by name."""
        try:
            found = json.loads(self._text(self._do("opa_json_dump", self._do(name))))
            return {str(k): int(v) for k, v in found.items()}
        except (ValueError, AttributeError, TypeError, wasmtime.WasmtimeError, wasmtime.Trap) as exc:
            raise PolicyFailed(f"its table of {name} cannot be read") from exc

    def _do(self, name: str, *arguments: int) -> int:
        return int(self._call[name](self._store, *arguments))

    def _base(self) -> int:
        return ctypes.addressof(self._pointer().contents)

    def _write(self, at: int, data: bytes) -> None:
        if at <= 0:  # the policy's own code chose the address
            raise PolicyFailed("an address outside the memory")
        missing = at + len(data) - self._size()
        if missing > 0:
            self._memory.grow(self._store, -(-missing // _PAGE))
        ctypes.memmove(self._base() + at, data, len(data))

    def _text(self, at: int) -> bytes:
        """Return the bytes up to NUL, never beyond the memory's end."""
        if at <= 0:
            raise PolicyFailed("an address outside the memory")
        end = min(self._size(), at + MAX_RESULT)
        base, size = self._base(), _CHUNK
        while at < end:
            seen = ctypes.string_at(base + at, min(size, end - at))
            if (stop := seen.find(b"\0")) >= 0:
                return seen[:stop]
            if size >= end - at:
                break
            size *= 8
        raise PolicyFailed("the answer has no end")


def _forked() -> None:
    global _clock_lock  # noqa: PLW0603  (another thread may have held it)
    _clock_lock = threading.Lock()
    if _clock is not None:
        _clock.forked()
        for program in [p for p in _clock.programs if not p.closed]:
            program.forked()
            _clock.serve(program)


def _ended() -> None:
    # `wasmtime` cannot free its objects after the interpreter's end, so free them before.
    for program in list(_clock.programs) if _clock is not None else ():
        program.close()
        program.module.close()
    for known in _modules.values():
        known.module.close()
    if _clock is not None:
        _clock.wait()
        _clock.host.close()
        _clock.call.close()
        _clock.engine.close()


atexit.register(_ended)
os.register_at_fork(after_in_child=_forked)
