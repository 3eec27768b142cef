"""Where a Reference can stand in the R4 model: known places by type, and how to tell that an extension holds one."""

from __future__ import annotations

import re
from functools import cache

from fhirshield.fhir.definitions import Element, tables, type_of

Way = tuple[str, Element]


@cache
def _reach_set() -> frozenset[str]:
    """All types below which a Reference can stand: a least fixed point, since types recurse."""
    reach = {"Reference"}
    grown = True
    while grown:
        grown = False
        for name in tables()["types"]:
            if name in reach or name in _OPAQUE:
                continue
            kind = type_of(name)
            if kind and any(e.type in reach for key, e in kind.elements.items() if key not in _OPAQUE_ELEMENTS):
                reach.add(name)
                grown = True
    return frozenset(reach)


_OPAQUE = {"Extension", "Resource", "DomainResource"}
_OPAQUE_ELEMENTS = {"extension", "modifierExtension", "contained"}


@cache
def ways(name: str) -> tuple[Way, ...]:
    """The elements of a type at or below which a Reference can stand."""
    kind = type_of(name)
    if kind is None or kind.kind == "primitive":
        return ()
    reach = _reach_set()
    return tuple((k, e) for k, e in kind.elements.items() if e.type in reach and k not in _OPAQUE_ELEMENTS)


@cache
def _extension_pattern() -> re.Pattern[bytes]:
    kind = type_of("Extension")
    assert kind is not None
    holding = [name for name, e in kind.elements.items() if e.choice and e.type in _reach_set()]
    return re.compile(b'"value(?:' + "|".join(name.removeprefix("value") for name in holding).encode() + b')"')


_ESCAPE = re.compile(rb"\\u")


def extensions(body: bytes) -> tuple[bool, bool]:
    """Whether JSON text may hold modifier extensions, and extensions with a Reference in their value.

    Never False where it does: a name may be written with escapes, so text with any may hold both.
    """
    if _ESCAPE.search(body):
        return True, True
    if b"xtension" not in body:
        return False, False
    return b"modifierExtension" in body, _extension_pattern().search(body) is not None
