"""What is wrong with a policy that OPA would not say: found in its text, nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["lint_rego"]

_NEGATED: Final = re.compile(r"\bnot\s+[^\n{]*?(?:[^=:<>!]|\b)(==|!=|<=|>=|<|>)(?!=)")
_CALL: Final = re.compile(r"\b([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)\(")
# Not native to Wasm (openpolicyagent.org/docs/policy-reference, "Wasm Support"): they would need a host function.
_HOSTED: Final = re.compile(
    r"^(http|io\.jwt|crypto|time|opa|rego|rand|uuid|net\.lookup_ip_addr|graphql|semver|units|yaml|providers|"
    r"json\.(match_schema|verify_schema|patch)|strings\.(any_prefix_match|any_suffix_match|render_template)|"
    r"glob\.quote_meta|regex\.(globs_match|split|template_match|replace)|urlquery|hex|print|trace|sprintf)(\.|$)"
)
_STRING: Final = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`')


def lint_rego(files: Mapping[str, str]) -> Iterator[str]:
    """`file:line: what is wrong`, for each finding."""
    for name, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            code = _STRING.sub('""', line).partition("#")[0]
            if _NEGATED.search(code):
                yield (
                    f"{name}:{number}: a negated comparison is undefined, not true, where an operand is missing; "
                    "write the condition as a rule and negate that"
                )
            for called in _CALL.findall(code):
                if _HOSTED.match(called):
                    yield f"{name}:{number}: `{called}` is not native to Wasm; compute it before the request is made"
