"""Profiles of tools: what a tool does, where it sends, which arguments matter.

Declare a profile by a mapping or YAML file in `RuntimeAuthz(profiles=...)`, by the `@profile(...)` decorator, or by a
`ToolProfile` under `tool.metadata["runtime_authz"]`. Plain data in a tool's metadata, like MCP annotations, may come
from a server. So it is only a hint, which can raise the tool's risk. `load_profiles("langchain")` loads shipped
profiles of common third-party tools.

A profile is pinned to a digest of the tool's name, description and schema. If the profile has no `digest`, the digest
is taken when the tool is first guarded. A tool that changes afterwards is unprofiled.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from langchain_runtime_authz._locks import cached_property
from langchain_runtime_authz._order_patterns import REST, items_in, name_in, split_item
from langchain_runtime_authz._validate import read_yaml
from langchain_runtime_authz.digest import as_json, digest
from langchain_runtime_authz.errors import Code, ConfigError, wrong_field

METADATA_KEY: Final = "runtime_authz"

Effect = Literal["compute", "read", "fetch", "write", "send", "pay", "delete", "admin"]
# Effects go from least to most harmful. A hint can only replace an effect by a more harmful one.
HARMLESS: Final = ("compute", "read", "fetch")
EFFECTS: Final[tuple[Effect, ...]] = get_args(Effect)
Verdict = Literal["permit", "ask", "deny"]
Sink = Literal["none", "internal", "external"]
SINKS: Final[tuple[Sink, ...]] = get_args(Sink)
FACTS: Final = ("effect", "sink", "data_class", "verdict")  # which a request contains
_ROLES: Final = ("critical", "when", "text", "free", "injected", "reaches", "audience", "token")
Kind = Literal["principal", "url", "object", "name", "channel", "amount", "place", "value"]
DESTINATIONS: Final = ("principal", "url", "channel")  # kinds of arguments to which a call sends something
Trust = Literal["system", "internal", "external"]


def as_tuple(value: object) -> object:
    """Turn a list into a tuple, because JSON and YAML have no tuples."""
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]

SHIPPED: Final[Mapping[str, Path]] = {p.stem: p for p in sorted((Path(__file__).parent / "profiles").glob("*.yaml"))}
"""The files of the package's own profiles, by the name that `load_profiles` takes."""

SWITCHES: Final[Mapping[str, Mapping[str, str]]] = {
    "allow": {"verdict": "permit"},
    "ask": {"verdict": "ask"},
    "deny": {"verdict": "deny"},
    "reads": {"effect": "read", "sink": "none"},
    "computes": {"effect": "compute"},
}
"""Profiles in one word."""

_T = TypeVar("_T")


class ToolProfile(BaseModel):
    """The facts about a tool on which policy decides.

    A *field* of the output is named by a dotted path without list indices: `sender`, `attachments.title`. The path `""`
    is the whole output. A statement about a field holds for everything below it.

    Attributes:
        effect: what a call does; `fetch` is a read whose address is visible outside. `compute` reads and changes
            nothing, and its arguments go nowhere.
        sink: where the call's arguments end up.
        verdict: `ask` asks about each call, and `deny` denies it. With `permit`, the policy asks no questions. Its
            denials still apply, and so does what the mandate forbids or wants confirmed.
        critical: argument → kind, for arguments that decide whom or what a call hits. A dotted path leads into an
            argument: `attachments.file_id`. Critical arguments are the request's `target` and are never shortened. The
            kinds `principal`, `url` and `channel` are destinations. An `object` exists already, a `name` is new.
        when: arguments that are dates or times.
        text: free-text arguments.
        free: arguments that decide nothing, like the language of an answer. All other arguments of a side effect are
            compared with the mandate (`mandate.call_matching`).
        injected: arguments that code may add. They are not part of the decision, unless the model wrote them.
        data_class: the class of the data that the tool returns or handles; `class` in a file.
        trust: who writes the output; for each field: `{"": external, id: system}`.
        prose: free-text fields. A value inside such a text is a mention, not an assertion.
        counterparty: fields whose value the other side of a transaction chose.
        author: the field that names a record's maker. If the maker is the subject
            (`Subject.properties["identifiers"]`), no outsider chose the record's other fields.
        intent: orders by which a user asks for the tool, with arguments in braces, like `book {room} [on {date}]`; or
            verbs, from which orders are derived. Only `mandate.words` reads them.
        synonyms: argument → words of users → the value that they stand for, like `{environment: {prod: production}}`.
        reaches: names of other declared tools that a call can start; the policy decides on the whole chain. Also URLs
            of services behind the tool: a call's token may be exchanged for a token with such an audience.
        resource: a name for what a read returns, with arguments in braces: `file:{path}`. `RuntimeAuthz.data_changed`
            takes this name.
        version: the output field that changes with the content, like an ETag. By default, the whole output is compared.
        question: the first line of a question to an approver, like `Pay {amount} to {recipient}?`.
        decisions: the answers that an approver may give: `approve` and `reject`, optionally `edit` and `respond`.
        audience: audiences for which a per-call token may be minted.
        token: how a token represents the call's arguments: `digest` hides their values, `plain` shows them.
        idempotent: True if a call whose outcome is unknown may run again.
        digest: the `tool_digest` of the reviewed tool. By default, its digest when it is first guarded.
        origin: the top-level package that holds the tool's code. The profile applies to tools of this package only.
        arguments: the names of all arguments of the tool. The profile does not apply to a tool with others.
        draft: True until somebody has reviewed the profile. Until then the tool counts as unprofiled.
    """

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")

    effect: Effect = "write"
    sink: Sink = "external"
    verdict: Verdict | None = None
    critical: dict[str, Kind] = {}
    when: Names = ()
    text: Names = ()
    free: Names = ()
    injected: Names = ()
    data_class: str = Field(default="internal", validation_alias=AliasChoices("data_class", "class"))
    trust: Trust | dict[str, Trust] = "external"
    prose: Names = ()
    counterparty: Names = ()
    author: str | None = None
    intent: Names = ()
    synonyms: dict[str, dict[str, str]] = {}
    reaches: Names = ()
    resource: str | None = None
    version: str | None = None
    question: str | None = None
    decisions: Names = ()
    audience: Names = ()
    token: Literal["digest", "plain"] = "digest"  # noqa: S105  (a mode)
    idempotent: bool = False
    digest: str | None = None
    origin: str | None = None
    arguments: Names | None = None
    draft: bool = False

    @model_validator(mode="before")
    @classmethod
    def _computes(cls, fields: Any) -> Any:
        """Give a `compute` tool its defaults: the sink `none` and the data class `public`."""
        if not isinstance(fields, Mapping) or fields.get("effect") != "compute":
            return fields
        named = {"data_class": "public"} if fields.keys().isdisjoint(("class", "data_class")) else {}
        return {"sink": "none", **named, **fields}

    @model_validator(mode="after")
    def _consistent(self) -> ToolProfile:
        if self.effect == "compute" and self.sink != "none":
            raise ValueError("the arguments of a `compute` tool go nowhere; leave out `sink`, or name another effect")
        for one, other in combinations(("critical", "when", "text", "free"), 2):
            if both := set(getattr(self, one)) & set(getattr(self, other)):
                raise ValueError(f"`{min(both)}` is in `{one}` and in `{other}`")
        if (d := {*self.decisions}) and not {"approve", "reject"} <= d <= {"approve", "edit", "reject", "respond"}:
            raise ValueError("`decisions` holds `approve` and `reject`, and if you like `edit` and `respond`")
        if self.author is not None and field_trust(self, self.author)[:2] != ("system", False):
            raise ValueError(f"`author` names `{self.author}`, which the system must write: say so in `trust`")
        if free := {*self.free}.intersection(self.named()["intent"]):
            raise ValueError(f"`{min(free)}` is in `free`, so no order in `intent` may name it")
        for item in items_in(*self.orders):
            name, mark, _ = split_item(item[1:-1])
            texts, others = self.text, (*self.when, *(n for n, k in self.critical.items() if k in ("amount", "url")))
            if item[0] == "{" and mark and ((mark == REST) != (name in texts) or name in others):
                raise ValueError(f"`{item}` in `intent`: `:rest` is for a `text`, others for a name, place or value")
        return self

    @cached_property
    def orders(self) -> tuple[str, ...]:
        """The entries of `intent` that are whole orders, not only verbs."""
        return tuple(said for said in self.intent if not {*"{}[]()|"}.isdisjoint(said))

    def _arguments_of(self, field: str) -> list[str]:
        names = []
        for _, name, spec, conversion in string.Formatter().parse(getattr(self, field) or ""):
            if name is not None and (spec or conversion or not name.isidentifier()):
                raise ValueError(f"`{field}` has `{{{name}…}}`; put only an argument's name in the braces")
            names += [name] if name is not None else []
        return names

    def named(self) -> dict[str, Sequence[str]]:
        """Return a mapping: profile field → paths of the arguments that it names."""
        worded = {field: self._arguments_of(field) for field in ("resource", "question")}
        ordered = {name_in(item) for item in items_in(*filter(str.strip, self.intent)) if item[0] == "{"}
        listed = {field: tuple(getattr(self, field)) for field in ("critical", "when", "text", "free")}
        return {"intent": tuple(ordered), "synonyms": tuple(self.synonyms), **listed, **worded}

    _chain: tuple[tuple[str, ToolProfile], ...] = ()

    def link(self, found: Mapping[str, ToolProfile]) -> None:
        """Look up the profiles of all tools that `reaches` names, directly or indirectly."""
        reached: dict[str, ToolProfile] = {}
        ahead = list(self.reaches)
        while ahead:
            name = ahead.pop(0)
            if name in found and name not in reached:  # otherwise `name` is an audience
                reached[name] = as_unprofiled(found[name]) if found[name].draft else found[name]
                ahead += found[name].reaches
        self._chain = tuple(reached.items())

    @property
    def exchange_audiences(self) -> tuple[str, ...]:
        """The audiences that `reaches` names, directly or through other tools."""
        return tuple(n for p in (self, *dict(self._chain).values()) for n in p.reaches if "://" in n)

    def chain(self) -> list[dict[str, Any]]:
        """Return name and facts of each tool that a call can start, also indirectly."""
        return [{"tool": n, **p.model_dump(include=set(FACTS), exclude_none=True)} for n, p in self._chain]

    def differs(self, told: Mapping[str, Any]) -> bool:
        """Return True if the facts in a request differ from those of this profile."""
        return any(told.get(name) != getattr(self, name) for name in FACTS)

    def unlike(self, other: ToolProfile) -> bool:
        """Return True if another profile has other facts or other roles of arguments."""
        return self is not other and any(getattr(self, name) != getattr(other, name) for name in (*FACTS, *_ROLES))

    @cached_property
    def side_effect(self) -> bool:
        """True if the effect is neither `compute`, `read` nor `fetch`."""
        return self.effect not in HARMLESS

    @cached_property
    def inside(self) -> bool:
        """True if the effect is `write` and the arguments stay inside the application."""
        return self.effect == "write" and self.sink != "external"

    @cached_property
    def needs_mandate(self) -> bool:
        """True if calls are compared with the mandate: all but `compute` and `read`."""
        return self.effect not in ("compute", "read")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy without cached values of the original."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied


UNPROFILED: Final = ToolProfile()
"""The profile of an undeclared tool: it writes, and its arguments leave the organisation."""


def as_unprofiled(declared: ToolProfile) -> ToolProfile:
    """Return `UNPROFILED`, with the declared verdict if it is `ask` or `deny`."""
    strict = declared.verdict in ("ask", "deny")
    return UNPROFILED.model_copy(update={"verdict": declared.verdict}) if strict else UNPROFILED


def profile(**fields: Any) -> Callable[[_T], _T]:
    """Declare a profile: `@profile(effect="pay", critical={"to": "principal"})`.

    Put the decorator above `@tool`, because it needs the tool object. Raises `ConfigError` if a field is wrong, or if
    the object has no `metadata`.
    """
    declared = _validate("the decorator", fields)

    def declare(tool: _T) -> _T:
        if not hasattr(tool, "metadata"):
            raise ConfigError("put `@profile(...)` above `@tool`; it needs the tool object", Code.PROFILE_INVALID)
        tool.metadata = {**(tool.metadata or {}), METADATA_KEY: declared}
        return tool

    return declare


Source = Mapping[str, Any] | str | Path


def load_profiles(source: Source | Sequence[Source] | None) -> dict[str, ToolProfile]:
    """Return profiles by tool name.

    `source` is a mapping, a YAML file `{tools: {name: {…}}}` (`runtime-authz init` adds `mandates` and `tests`), a name
    of `SHIPPED`, or a list of these. In a list the later profile of a tool replaces the earlier one. A word of `SWITCHES`
    stands for a whole profile. Raises `ConfigError` (`profile_invalid`) with the file, the tool and the field.
    """
    found: dict[str, ToolProfile] = {}
    of: dict[str, str] = {}
    for one in source if isinstance(source, list | tuple) else [] if source is None else [source]:
        where, stanzas = _stanzas(one)
        for name, fields in stanzas.items():
            if not isinstance(name, str):  # YAML reads `no:` and `1:` as something else
                raise ConfigError(f"{where}: `{name}` is not text; put the tool's name in quotes", Code.PROFILE_INVALID)
            found[name], of[name] = _validate(f"{where}: {name}", fields, name), where
    for name, declared in found.items():
        if unknown := sorted(n for n in set(declared.reaches) - found.keys() if "://" not in n):
            raise ConfigError(
                f"{of[name]}: {name}: `reaches` names `{unknown[0]}`, which has no profile here", Code.PROFILE_INVALID
            )
    for declared in found.values():
        declared.link(found)
    return found


def _stanzas(source: object) -> tuple[str, Mapping[Any, Any]]:
    if isinstance(source, Mapping):
        return "profiles", source
    if not isinstance(source, str | Path):
        msg = f"profiles must be a mapping, a path or a list of these, not {type(source).__name__}"
        raise ConfigError(msg, Code.PROFILE_INVALID)
    path = Path(SHIPPED.get(source, source) if isinstance(source, str) else source)
    if not path.suffix and not path.exists():
        close = get_close_matches(str(source), SHIPPED, 1) or [min(SHIPPED)]
        msg = f"`{source}` is neither a file nor a set of profiles; the sets are listed in docs/profiles.md, like `{close[0]}`"
        raise ConfigError(msg, Code.PROFILE_INVALID)
    loaded = read_yaml(path, Code.PROFILE_INVALID)
    stanzas = loaded.get("tools") if isinstance(loaded, dict) and loaded.keys() <= FILE_KEYS else None
    if not isinstance(stanzas, dict):
        raise ConfigError(f"{path.name} must hold one mapping named `tools`", Code.PROFILE_INVALID)
    return path.name, stanzas


FILE_KEYS: Final = frozenset({"tools", "mandates", "tests"})


def value_at(args: Mapping[str, Any], path: str) -> Any:
    """Return an argument's value; for a dotted path, a list of values; None if absent."""
    name, *inner = path.split(".")
    value = args.get(name)
    for step in inner:
        several = value if isinstance(value, list) else [value]
        value = [
            v[step] if isinstance(v, Mapping) else v
            for v in several
            if (step in v if isinstance(v, Mapping) else v is not None)
        ] or None
    return value


def kind_of(profile: ToolProfile, name: str) -> str:
    """Return an argument's kind: a critical kind of the profile, "when", "text" or ""."""
    if name in profile.when:
        return "when"
    return profile.critical.get(name, "text" if name in profile.text else "")


class FieldTrust(NamedTuple):
    """The trust in one field of the output. `origin`: who writes the field."""

    origin: Trust
    prose: bool
    counterparty: bool


def field_trust(profile: ToolProfile, path: str) -> FieldTrust:
    """Return the trust in an output field, as declared for it or a field above it."""
    if not isinstance(profile.trust, dict) and not (profile.prose or profile.counterparty):
        return FieldTrust(profile.trust, False, False)
    prefixes = [path]
    while path:
        path = path.rpartition(".")[0]
        prefixes.append(path)
    declared: dict[str, Trust] = {"": profile.trust} if isinstance(profile.trust, str) else profile.trust
    origin: Trust = next((declared[prefix] for prefix in prefixes if prefix in declared), "external")
    near = frozenset(prefixes)
    return FieldTrust(origin, not near.isdisjoint(profile.prose), not near.isdisjoint(profile.counterparty))


def _validate(where: str, fields: object, name: str = "") -> ToolProfile:
    if isinstance(fields, ToolProfile):
        return fields
    if isinstance(fields, str):
        if fields not in SWITCHES:
            near = "".join(f", perhaps `{one}`" for one in get_close_matches(fields, SWITCHES, 1))
            msg = f"{where}: `{fields}` is not one of {', '.join(SWITCHES)}{near}; use one, or a mapping of fields"
            raise ConfigError(msg, Code.PROFILE_INVALID)
        switched = ToolProfile.model_validate(SWITCHES[fields])
        return raise_by_hints(switched, None, name) if switched.verdict is not None else switched
    try:
        return ToolProfile.model_validate(fields)
    except ValidationError as exc:
        raise ConfigError(
            f"{where}: {wrong_field(exc, 'profile', ToolProfile.model_fields)}", Code.PROFILE_INVALID
        ) from exc


def raise_by_hints(base: ToolProfile, metadata: Mapping[str, Any] | None, name: str) -> ToolProfile:
    """Return `base`, with a riskier effect if the tool's name or metadata hints at it.

    Hints are verbs in the tool's name and the MCP annotation `destructiveHint`. `readOnlyHint` is ignored.
    """
    words = {w.lower() for w in _WORDS.findall(name)}
    hinted: list[Effect] = [effect for verbs, effect in _VERBS if words & verbs]
    if (metadata or {}).get("destructiveHint") is True:
        hinted.append("delete")
    effect = max((base.effect, *hinted), key=EFFECTS.index)
    return base if effect == base.effect else base.model_copy(update={"effect": effect})


_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_VERBS: Final[tuple[tuple[frozenset[str], Effect], ...]] = (
    (frozenset({"send", "post", "publish", "email", "share", "invite"}), "send"),
    (frozenset({"pay", "transfer", "purchase", "buy", "refund", "wire"}), "pay"),
    (frozenset({"delete", "remove", "drop", "purge", "destroy", "cancel"}), "delete"),
    (frozenset({"admin", "grant", "sudo", "exec", "execute", "shell", "password"}), "admin"),
)


def tool_digest(name: str, description: str, schema: Any) -> str:
    """Return the digest of name, description and schema, which a tool's reviewer sees."""
    return digest(as_json({"name": name, "description": description, "schema": schema}))
