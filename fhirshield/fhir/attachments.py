"""Where an Attachment can stand in a resource, as JSONPaths. Extensions, and items within items, are not followed."""

from __future__ import annotations

from functools import cache

from fhirshield.fhir.definitions import kind_of, type_of

_NOT = {"Extension", "Reference", "Identifier", "Resource"}
PARTS = ("data", "url", "hash", "size")
"""What of an Attachment is, leads to, or tells of its content."""


@cache
def attachments(resource_type: str) -> tuple[str, ...]:
    """``$.content[*].attachment`` and the like."""
    return tuple(_below(resource_type, "$", frozenset()))


def _below(name: str, path: str, seen: frozenset[str]) -> list[str]:
    known = type_of(name)
    found: list[str] = []
    for key, element in known.elements.items() if known else ():
        here = f"{path}.{key}" + ("[*]" if element.many else "")
        if element.type == "Attachment":
            found.append(here)
        elif kind_of(element.type) in {"backbone", "complex"} and element.type not in _NOT | seen:
            found += _below(element.type, here, seen | {element.type})
    return found
