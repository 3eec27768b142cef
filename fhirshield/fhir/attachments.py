"""Where an Attachment can stand in a resource, as JSONPaths. Extensions are not followed."""

from __future__ import annotations

from functools import cache
from typing import Any

from fhirshield.fhir.definitions import kind_of, type_of
from fhirshield.fhir.reference import Literal, literal

_NOT = {"Extension", "Reference", "Identifier", "Resource"}
PARTS = ("data", "url", "hash", "size")
"""What of an Attachment is, leads to, or tells of its content."""


DEEP = 3
"""Levels to which elements that hold elements of their own kind are followed."""


@cache
def attachments(resource_type: str) -> tuple[str, ...]:
    """``$.content[*].attachment`` and the like."""
    return tuple(_below(resource_type, "$", (), "Attachment"))


@cache
def bytes_of(resource_type: str) -> tuple[str, ...]:
    """``$.input[*].valueBase64Binary`` and the like: bytes that stand by themselves."""
    return tuple(path for path in _below(resource_type, "$", (), "base64Binary") if path.endswith(".valueBase64Binary"))


def _below(name: str, path: str, seen: tuple[str, ...], wanted: str) -> list[str]:
    known = type_of(name)
    found: list[str] = []
    for key, element in known.elements.items() if known else ():
        here = f"{path}.{key}" + ("[*]" if element.many else "")
        if element.type == wanted:
            found.append(here)
        elif kind_of(element.type) in {"backbone", "complex"} and element.type not in _NOT and seen.count(element.type) < DEEP:
            found += _below(element.type, here, (*seen, element.type), wanted)
    return found


def documents_of(document: Any, bases: tuple[str, ...]) -> set[Literal]:
    """What of a server the attachments of a DocumentReference lead to."""
    contents = document.get("content")
    found: set[Literal] = set()
    for content in contents if type(contents) is list else ():
        attachment = content.get("attachment") if type(content) is dict else None
        named = literal(attachment.get("url"), bases) if type(attachment) is dict else None
        if named is not None:
            found.add(named)
    return found
