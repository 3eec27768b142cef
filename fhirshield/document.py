"""A YAML file that an operator wrote: its value, the line of each key, and every fault against its JSON Schema at once.

Values are JSON's (YAML 1.2 core): ``no`` and ``2020-01-01`` stay strings. Repeated keys and aliases are faults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import yaml

from fhirshield.errors import Fault, OperatorError, printable

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """``value`` is plain JSON; ``lines`` maps the path of each key to its line (from 1)."""

    file: str
    value: Any
    lines: Mapping[Key, int]

    def where(self, key: Key = ()) -> str:
        """``file:line`` of a key, or of the nearest key above it."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.file}:{self.lines.get(key, 1)}"

    def fault(self, key: Key, message: str, remedy: str = "") -> Fault:
        """A Fault at that key."""
        return Fault(self.where(key), dotted(key), message, remedy)


def dotted(key: Key) -> str:
    """``rules[0].redact[1].path``"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def read(path: Path, schema: str) -> tuple[Document, list[Fault]]:
    """Read and validate one file. Raises OperatorError when it is not YAML at all; else all faults are returned."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError([Fault(str(path), "", f"cannot be read: {error}", "give a readable UTF-8 file")]) from None
    return parse(text, str(path), schema)


def parse(text: str, name: str, schema: str) -> tuple[Document, list[Fault]]:
    """The same for text at hand; ``name`` stands for the file in messages."""
    lines: dict[Key, int] = {}
    repeated: list[Key] = []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = _value(node, (), lines, repeated) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or "not YAML"
        raise OperatorError([Fault(where, "", f"not YAML: {problem}", "check indentation, quotes and brackets")]) from None
    except (TypeError, ValueError, RecursionError) as error:
        what = f"keys or values that settings and rules cannot have ({type(error).__name__})"
        raise OperatorError([Fault(name, "", what, "write plain keys; `{{ }}` of a template was not filled in?")]) from None
    document = Document(name, value, lines)
    faults = [document.fault(key, "written twice", "keep one of them") for key in repeated]
    return document, faults + [_fault(document, error) for error in _validator(schema).iter_errors(value)]


def _value(node: Any, key: Key, lines: dict[Key, int], repeated: list[Key]) -> Any:
    lines[key] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for name, child in node.value:
            path = (*key, str(name.value))
            if name.value in result:
                repeated.append(path)
            result[str(name.value)] = _value(child, path, lines, repeated)
            lines[path] = name.start_mark.line + 1
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*key, index), lines, repeated) for index, child in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: Any) -> Any:
    text = str(node.value)
    if node.style in {"'", '"', "|", ">"}:
        return text
    if text in {"true", "false"}:
        return text == "true"
    if text in {"", "~", "null"}:
        return None
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+", text) else text


# --- JSON Schema ----------------------------------------------------------------------------------------------------


@cache
def schema_of(name: str) -> dict[str, Any]:
    """A JSON Schema that ships with the package: ``settings``, ``rules``, ``tests``."""
    text = files("fhirshield").joinpath(f"schemas/{name}.json").read_bytes()
    result: dict[str, Any] = msgspec.json.decode(text)
    return result


@cache
def _validator(schema: str) -> Any:
    return jsonschema.Draft202012Validator(schema_of(schema))


def _fault(document: Document, error: Any) -> Fault:
    key = tuple(error.absolute_path)
    kind, wanted = error.validator, error.validator_value
    if kind == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = [name for name in error.instance if name not in known]
        first = (*key, unknown[0]) if unknown else key
        names = ", ".join(f"`{name}`" for name in unknown)
        return document.fault(first, f"unknown key {names}", "known here: " + ", ".join(known))
    if kind == "not" or kind is False or error.schema is False:
        return document.fault(key, "is not accepted here")
    if kind == "required":
        missing = [name for name in wanted if name not in error.instance]
        return document.fault(key, "is missing " + ", ".join(f"`{name}`" for name in missing), "add it")
    if kind in {"type", "enum", "const"}:
        said = error.schema.get("description", "") or _WRITTEN.get(wanted if isinstance(wanted, str) else "", "write one of these")
        return document.fault(key, f"must be {_wanted(kind, wanted)}", said)
    if kind == "pattern":
        remedy = error.schema.get("description", "") or f"write it as {wanted}"
        return document.fault(key, f"`{printable(error.instance)}` does not look right", remedy)
    return document.fault(key, error.message, error.schema.get("description", ""))


_WRITTEN = {
    "array": "write it in [brackets], one entry or more",
    "object": "write it as `key: value`",
    "string": "put it in quotes",
    "integer": "write a whole number, without quotes",
    "boolean": "write true or false, without quotes",
}


def _wanted(kind: str, wanted: Any) -> str:
    if kind == "type":
        return " or ".join(wanted) if isinstance(wanted, list) else f"{'an' if wanted[0] in 'aio' else 'a'} {wanted}"
    return "one of " + ", ".join(f"`{item}`" for item in (wanted if isinstance(wanted, list) else [wanted]))
