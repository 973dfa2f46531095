"""Shared by every tier: how many examples the property tests draw, and whether they are new ones.

By default, the profile `ci`, they are the same each time and a fifth of what a test says, or twelve: what a tier says of a
commit is true of it tomorrow too. The search is the long tier's: `HYPOTHESIS_PROFILE=new` draws new ones, all that a test says;
`HYPOTHESIS_PROFILE=long` draws ten times as many. Of cases that are each sync and async, CI plays the one of the first case, the
other of the second, and so on: in a test of four cases or more, and over a file of attacks or properties. The long tier plays both.

No property fails for its time: a machine may be slow, or do other things too.

What hosts compute again at each call is kept for the process: typer's commands, what pydantic asks of a default factory for
each field of each message that is shown, the schema of a mandate, that of a tool that is defined again by the same code, and
what LangGraph looks for in the code of each node of each graph. Which characters UTF-8 has is not tried out.
The tests of a file share a worker, so what a file keeps is made once.
"""

import dis
import gc
import os
import sys
from collections import Counter
from copy import deepcopy
from functools import cache, wraps
from types import SimpleNamespace
from typing import Any

import pytest
import typer.testing
from hypothesis import HealthCheck, settings
from hypothesis.internal import charmap
from hypothesis.internal.intervalsets import IntervalSet
from langchain_core.tools import base, structured
from langgraph.pregel import _utils
from pydantic import fields

from langchain_runtime_authz.ledger import sqlite
from langchain_runtime_authz.mandate import mandate_file
from tests.tier import PROFILE

gc.set_threshold(0)  # until all is collected: what is made until then stays
# Many tests start processes, which would compile the package again and again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_FACTORS = {"ci": 1 / 5, "new": 1, "long": 10}

for _name in _FACTORS:
    settings.register_profile(_name, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=_name == "ci")
settings.load_profile(PROFILE)

typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]
fields._fields.takes_validated_data_argument = cache(fields._fields.takes_validated_data_argument)  # type: ignore[attr-defined]

_utf8, _characters = (IntervalSet(((0, 0xD7FF), (0xE000, sys.maxunicode))), IntervalSet(())), charmap.intervals_from_codec
charmap.intervals_from_codec = lambda codec: _utf8 if codec == "utf-8" else _characters(codec)

_schemas: dict[Any, Any] = {}


def _schema(name: str, func: Any, _make: Any = base.create_schema_from_function, **options: Any) -> Any:
    """Return the schema of a tool's function: functions of one code object and equal annotations share it."""
    code, told = getattr(func, "__code__", func), getattr(func, "__annotations__", {})
    key = (name, code, func.__doc__, repr([getattr(func, "__defaults__", None), options]), *told.items())
    try:
        known = key in _schemas
    except TypeError:  # an annotation that is not hashable
        return _make(name, func, **options)
    if not known:
        _schemas[key] = _make(name, func, **options)
    return _schemas[key]


structured.create_schema_from_function = _schema

_utils.dis = SimpleNamespace(get_instructions=cache(lambda code: tuple(dis.get_instructions(code))))  # type: ignore[attr-defined]

_mandates = cache(mandate_file.Mandate.model_json_schema)
mandate_file.Mandate.model_json_schema = lambda *args, **options: deepcopy(_mandates(*args, **options))  # type: ignore[method-assign]


@wraps(sqlite._connect)
def _connect(*where: Any, _made: Any = sqlite._connect) -> Any:
    """Connect to a ledger's file without waiting for the disk at each commit: no test cuts the power."""
    conn = _made(*where)
    conn.execute("PRAGMA synchronous = OFF")
    return conn


sqlite._connect = _connect


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Start one worker more than there are cores: a third of a test's time is spent on waiting."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out whole files, in the order of collection."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


_FORMS = {"sync": "sync", "async": "sync", "invoke": "invoke", "ainvoke": "invoke"}


def _in_turn(items: list[Any]) -> list[Any]:
    """Leave out the one or the other form of each case, in turn."""
    tests: dict[str, dict[str, list[Any]]] = {}
    for item in items:
        test, _, ids = item.nodeid.partition("[")
        case = "-".join(_FORMS.get(each, each) for each in ids.rstrip("]").split("-"))
        tests.setdefault(test, {}).setdefault(case, []).append(item)
    turns: Counter[str] = Counter()
    left = set()
    for test, cases in tests.items():
        many, over_all = len(cases) >= 4, test.startswith(("tests/attack/", "tests/property/"))
        for both in cases.values():
            if len(both) == 2 and (many or over_all):
                turn = test.partition("::")[0] if over_all else test
                left.add(both[turns[turn] % 2])
                turns[turn] += 1
    return [item for item in items if item not in left]


def pytest_collection_modifyitems(items):
    """Multiply each test's own number of examples, and put the longest files first."""
    # By function: all items of a parametrized test share one.
    tests = {id(test): test for test in (getattr(item, "obj", None) for item in items)}
    for test in tests.values():
        inner = getattr(test, "_hypothesis_internal_use_settings", None)
        if inner is not None:
            said = inner.max_examples
            number = max(round(said * _FACTORS[PROFILE]), min(said, 12))
            test._hypothesis_internal_use_settings = settings(inner, max_examples=number)
    if PROFILE == "ci":
        items[:] = _in_turn(items)
    lengths: dict[Any, float] = {}
    for item in items:
        examples = getattr(getattr(item.obj, "_hypothesis_internal_use_settings", None), "max_examples", 0)
        slow = 500 if item.get_closest_marker("timeout") else 20 if item.get_closest_marker("integration") else 1
        lengths[item.path] = lengths.get(item.path, 0) + slow + examples
    items.sort(key=lambda item: -lengths[item.path])  # stable, so that a file's tests stay in their order


def pytest_collection_finish():
    """Leave what was collected out of every collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # graphs are built from thousands of objects, which stay for as long as their test
