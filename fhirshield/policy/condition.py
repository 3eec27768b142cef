"""Conditions in CEL (https://cel.dev), over ``principal`` and ``env``; compiled once, three-valued.

``principal`` has ``roles``, ``purposes``, ``organizations`` and ``amr`` (lists), ``client``, ``issuer``, ``acr`` and the claims
that settings map (``country`` too, where settings say an issuer's); ``env`` has ``hour``, ``minute``, ``weekday`` (Monday is 1) and
``date`` (``2026-01-31``) in the configured zone, ``address``, ``auth_age`` (seconds since the person authenticated, missing where
nobody says) and ``country`` (of the upstream's data).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cel

from fhirshield.errors import ShieldError

ENVIRONMENT = ("hour", "minute", "weekday", "date", "address", "auth_age", "country")
PRINCIPAL = ("roles", "purposes", "client", "issuer", "organizations", "acr", "amr")
_MEMBER = re.compile(r"\b(principal|env)\s*\.\s*([A-Za-z_][A-Za-z0-9_]*)")
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*([A-Za-z_][A-Za-z0-9_]*)\s*,")
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")


class ConditionError(ShieldError):
    """Text that is not CEL, or that names what conditions cannot know."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled condition; equal when its text is."""

    text: str
    attributes: tuple[str, ...]
    """Mapped claims that it reads."""
    environment: tuple[str, ...]
    """Members of ``env`` that it reads."""
    program: Any = field(compare=False, repr=False)

    def holds(self, principal: Mapping[str, Any], env: Mapping[str, Any]) -> bool | None:
        """True or False; None when it errs (an attribute is missing, types differ) or is no boolean."""
        try:
            result = self.program.execute({"principal": dict(principal), "env": dict(env)})
        except Exception:  # noqa: BLE001 - whatever the library raises, the condition is unknown; callers deny on None
            return None
        return result if isinstance(result, bool) else None


def compile_condition(text: str) -> Condition:
    """Compile CEL. Raises ConditionError."""
    if "//" in _STRING.sub("''", text):
        raise ConditionError("comments are not accepted in conditions")
    try:
        program = cel.compile(text)
        roots = set(program.variables())
    except (ValueError, RuntimeError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise ConditionError(f"not a CEL condition: {first}") from None
    bound = set(_MACRO.findall(_STRING.sub("''", text)))
    if strange := sorted(roots - {"principal", "env"} - bound):
        raise ConditionError(f"`{strange[0]}` is unknown; conditions know `principal` and `env`")
    members = _MEMBER.findall(_STRING.sub("''", text))
    env = tuple(sorted({name for root, name in members if root == "env"}))
    if strange := [name for name in env if name not in ENVIRONMENT]:
        raise ConditionError(f"`env.{strange[0]}` is unknown; env has {', '.join(ENVIRONMENT)}")
    if re.search(r"\benv\b(?!\s*\.)", _STRING.sub("''", text)):
        raise ConditionError("`env` is read member by member: `env.hour`")
    attributes = tuple(sorted({name for root, name in members if root == "principal"} - set(PRINCIPAL)))
    return Condition(text, attributes, env, program)
