"""Turn the words that led to an approved call into an order for a profile."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_runtime_authz._order_patterns import REST, WORD, WORDS
from langchain_runtime_authz.cli._profile_proposal import names_other
from langchain_runtime_authz.mandate.argument_matching import CallFacts
from langchain_runtime_authz.mandate.call_matching import match_call
from langchain_runtime_authz.mandate.languages import NUMBER, Language, Token, languages, read_number, words_of
from langchain_runtime_authz.mandate.order_matching import token_cuts
from langchain_runtime_authz.mandate.read_outputs import Outputs
from langchain_runtime_authz.mandate.step_places import RISKY
from langchain_runtime_authz.mandate.value_matching import is_same
from langchain_runtime_authz.mandate.words import MAX_TEXT, compile_words, follows
from langchain_runtime_authz.tool_profile import ToolProfile, kind_of

_SENTENCE: Final = re.compile(r"(?:[.!?;]+(?=\s|$)|\n)+")
_SENTENCES: Final = 20  # number of the newest sentences that are tried
_WIDE: Final = 4  # words of one value
_TELLING: Final = ("that", "about", "saying")
_PARTICLES: Final = {*_TELLING, "off", "up", "down", "out", "back", "over"}


def proposed_order(name: str, profiles: Mapping[str, ToolProfile], said: str, args: Mapping[str, Any]) -> str | None:
    """Return an order with which the words `said` order exactly this call, or `None`.

    The order is the newest sentence that names the call's values, with `{argument}` in place of each value. It fits
    other values too, so a person reviews it. A sentence that orders another tool is not used. For a tool that deletes,
    pays or grants rights, the verb must say so: "Open a.txt" deletes nothing.
    """
    profile = profiles[name]
    schemas: dict[str, Any] = {name: {"properties": {argument: {} for argument in args}}}
    for sentence in [*filter(str.strip, _SENTENCE.split(said))][: -_SENTENCES - 1 : -1]:
        known = [(la, [*la.tokens(sentence)]) for la in languages()] if len(sentence) <= MAX_TEXT else []
        # A date with a time is read as one value, then as two.
        for language, tokens in ((la, cut) for la, all_ in known for cut in sorted(token_cuts(all_), key=len)):
            order = " ".join(_items(language, tokens, name, profile, sentence, args))
            if not order or order in profile.intent:
                continue
            try:
                ordering = ToolProfile.model_validate({**profile.model_dump(), "intent": (*profile.orders, order)})
            except ValueError:
                continue
            mandate = compile_words([sentence], {**profiles, name: ordering}, schemas).mandate
            call = CallFacts(name, ordering, args, frozenset(args), (), sentence)
            if match_call(mandate, call, {name: ordering}, Outputs()).standing({}).standing == "covered":
                return order
    return None


def _items(
    language: Language, tokens: list[Token], name: str, profile: ToolProfile, sentence: str, args: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the words and `{arguments}` of an order; nothing if the sentence is unfit."""
    tokens = [token for token in tokens if token.kind != "end"]
    verbs = language.verbs.union(words_of(name))
    verb_at = (n for n, t in enumerate(tokens) if t.lower in verbs and follows(language, "ahead", sentence, tokens[:n]))
    tokens = tokens[next(verb_at, 0) :]
    end = next((n for n in range(1, len(tokens)) if follows(language, "behind", sentence, tokens[n:])), len(tokens))
    tokens, found, left = tokens[:end], list[str](), dict(args)
    verb = tokens[0].lower if tokens and tokens[0].kind in {"word", "name"} else ""
    if verb not in verbs or (verb not in words_of(name) and names_other(verb, profile.effect)):
        return
    at = 0
    while at < len(tokens):
        token = tokens[at]
        value, wide = _value(language, profile, sentence, tokens[at : at + _WIDE] if at else (), left)
        if value:
            plain = any(t.kind == "word" for t in tokens[at : at + wide])
            if plain and profile.effect in RISKY:  # "Delete drafts" may be a remark of the next user
                return
            found.append(f"{{{value}{(WORD if wide == 1 else WORDS) if plain else ''}}}")
            left.pop(value)
        elif found and found[-1] in _TELLING and (texts := [n for n in left if n in profile.text]):
            found.append(f"{{{texts[-1]}{REST}}}")
            break
        elif (
            token.kind not in {"word", "name", "sep", "colon"}
            or (at and token.text[:1].isupper())
            or language.stopped(token.lower)
            or (at and token.lower in language.vague - _PARTICLES)  # "monthly", "everything"
        ):
            return
        elif token.lower not in language.determiners and token.text not in ",:":
            found.append(token.lower)
        at += wide or 1
    yield from found if any(item[0] == "{" for item in found) else ()


def _value(
    language: Language, profile: ToolProfile, sentence: str, tokens: Sequence[Token], left: Mapping[str, Any]
) -> tuple[str, int]:
    """Return (name, n): the first n tokens say this argument of `left`; or ("", 0)."""
    for wide in range(len(tokens), 0, -1):
        if {tokens[0].text, tokens[wide - 1].text} & {*language.data["prepositions"]}:  # "on 2 May" says no more
            continue
        said: Any = sentence[tokens[0].start : tokens[wide - 1].end]
        if wide == 1 and tokens[0].kind in {"number", "money"} and (number := re.search(NUMBER, said)):
            said = read_number(number[0], money=tokens[0].kind == "money")
        for name, given in left.items():
            value = given[0] if isinstance(given, list) and len(given) == 1 else given
            plain = isinstance(value, str | int | float) and said is not None
            if plain and is_same(value, said, kind_of(profile, name)):
                return name, wide
    return "", 0
