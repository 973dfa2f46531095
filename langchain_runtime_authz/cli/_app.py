"""Groups of commands, with `--json`, common answers and common errors."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, cleandoc, signature
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar, get_type_hints

import typer
from typer import Option
from typer.core import TyperGroup

from langchain_runtime_authz._display import one_line, printable
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError, sentence, unreadable

FINDING: Final = 1
UNUSABLE: Final = 2
MAX_HELP: Final = 200  # characters
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_YAML_WORDS: Final = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
UsageError: Any = typer.BadParameter.__mro__[1]  # the class of Click, or of the copy of Click in typer
Run = TypeVar("Run", bound=Callable[..., Any])
Json = Annotated[bool, Option("--json", help="Print JSON.")]
Keys = list[Path] | None
Key = Annotated[Keys, Option("--key", metavar="PEM", help="A private key to which the log was sealed; name each one.")]


@dataclass(frozen=True, slots=True)
class Printout:
    """The output of a command: with `--json` its `document`, otherwise its `text`.

    `text`: by default, a line for each member of `document` that has a value. `finding`: exit with 1; print an error.
    """

    document: Any
    text: str | Iterable[str] | None = None
    finding: bool | AuthzError = False

    def show(self, as_json: bool) -> None:
        text = lines(self.document) if self.text is None else self.text
        text = json.dumps(self.document, indent=2) if as_json else text if isinstance(text, str) else "\n".join(text)
        if text:
            echo(text)


def echo(text: str, *, err: bool = False) -> None:
    """Print a text without escape sequences, because it may quote hostile input."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def iso_time(at: float) -> str:
    """Return epoch seconds as an ISO 8601 time in UTC."""
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="seconds")


def parse_time(text: str, zone: dt.tzinfo = dt.UTC) -> float:
    """Return epoch seconds of an ISO 8601 time, in `zone` if it names none."""
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"`{one_line(text[:60])}` is not a time; write it like 2026-11-27 18:30") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=zone)).timestamp()


def lines(document: Mapping[str, Any]) -> list[str]:
    """Return a line for each member of `document` that has a value."""
    return [f"{name:<8} {value}" for name, value in document.items() if value is not None]


def yaml_scalar(text: str) -> str:
    """Return a text as a YAML scalar, in quotes if YAML needs them."""
    import yaml

    if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    quoted: str = yaml.safe_dump(text, default_style='"', width=math.inf, allow_unicode=text.isprintable())
    return quoted.rstrip("\n")


def yaml_flow(value: Any) -> str:
    """Return a value as YAML on one line, even if its texts have line breaks."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{yaml_scalar(k)}: {yaml_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(yaml_flow(v) for v in value) + "]"
    return yaml_scalar(value) if isinstance(value, str) else json.dumps(value)


class _Group(TyperGroup):
    """A group of commands. For a command of another group, the error names that group."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _usage():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _usage():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        root, name = ctx.find_root(), args[0]
        if name not in self.commands:
            groups = {"": root.command, **{f"{path} ": group for path, group in root.command.commands.items()}}
            named = [path + name for path, group in groups.items() if name in getattr(group, "commands", ())]
            if named:
                ctx.fail(f"No such command {name!r}; there is `{root.info_name} {'`, `'.join(named)}`.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands with their whole first sentences, which Click would cut."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(MAX_HELP)) for name in self.commands])


@contextmanager
def _usage() -> Iterator[None]:
    """Print the command's usage before a usage error, and exit."""
    try:
        yield
    except UsageError as exc:
        if type(exc).show is not UsageError.show:  # a group without a command shows its help
            raise
        if exc.ctx is not None:  # `None` if Click's parser raised the error
            echo(f"{exc.ctx.get_usage()}\nTry '{exc.ctx.command_path} --help' for help.", err=True)
        fail(ConfigError(exc.format_message().rstrip(".")))


class App(typer.Typer):
    """A group of commands.

    A command that returns a `Printout` has `--json`. The fields of a `NamedTuple` parameter become options.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, no_args_is_help=True, rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Run], Run]:
        """Add a command, and put the examples of its docstring under a heading."""

        def add(run: Run) -> Run:
            text, mark, examples = cleandoc(run.__doc__ or "").partition("\n\nruntime-authz ")
            text += (mark + examples).replace("\n\n", "\n\n\b\nExamples:\n", 1).replace("\nruntime", "\n  runtime")
            typer.Typer.command(self, name, help=text, **options)(_command(run))
            return run

        return add


def _command(run: Callable[..., Printout | None]) -> Callable[..., None]:
    hints = get_type_hints(run, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if hasattr(kind, "_fields")}
    options: dict[str, tuple[Any, Any]] = {}
    for name, own in signature(run).parameters.items():
        if name in groups:
            defaults = groups[name]._field_defaults
            found = get_type_hints(groups[name], include_extras=True).items()
            options |= {field: (hint, defaults.get(field, Parameter.empty)) for field, hint in found}
        else:
            options[name] = hints[name], own.default
    if hints["return"] is Printout:
        options["as_json"] = Json, False

    @wraps(run)
    def command(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field: given.pop(field) for field in group._fields})
        as_json = given["as_json"] if "as_json" in hints else given.pop("as_json", False)
        with reporting():
            answer = run(**given)
            if answer is None:
                return
            answer.show(as_json)
            if isinstance(answer.finding, AuthzError):
                fail(answer.finding, FINDING)
            if answer.finding:
                raise typer.Exit(FINDING)

    told = {name: Parameter(name, Parameter.KEYWORD_ONLY, default=d, annotation=h) for name, (h, d) in options.items()}
    command.__signature__ = Signature(list(told.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: hint for name, (hint, _) in options.items()}
    return command


@contextmanager
def reporting() -> Iterator[None]:
    """Print an expected error in one line, and exit with code 2."""
    try:
        yield
    except AuthzError as exc:
        fail(exc)
    except BrokenPipeError:  # the reader closed the pipe (`| head`); click exits quietly
        raise
    except (UnicodeError, RecursionError) as exc:
        fail(ConfigError(f"what was given cannot be read: {unreadable(exc)}"))
    except OSError as exc:
        fail(ConfigError(f"{exc.filename or 'a file'}: {unreadable(exc)}"))


@contextmanager
def reading(file: Path, line: int) -> Iterator[None]:
    """Report `line` of `file` as malformed if reading its record fails."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as exc:
        raise ConfigError(f"{file.name}: line {line} is not of an audit log or a trace; name such a file") from exc


def fail(exc: AuthzError, code: int = UNUSABLE) -> NoReturn:
    """Print `error: <stable code>: …` on one line and leave with `code`."""
    text = str(exc).removesuffix(f": {sentence(Code.CONFIG)}")  # this general sentence says less than the detail
    echo(f"error: {' '.join(text.split())}", err=True)
    raise typer.Exit(code)
