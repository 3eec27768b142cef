"""JSONPath over FHIR: parse (jsonpath-ng), check against the R4 model, compile filters.

The accepted language is the part of RFC 9535 that names elements of a resource: ``$``, names, ``[*]``, ``[?filter]``.
Left out on purpose, each with an error that says so: descendants and wildcards over members (they hide which elements
are meant), indices and slices (``coding[0]`` misses the second coding), functions. jsonpath-ng is the parser only; what
it accepts beyond RFC 9535 is refused here.

One deviation from RFC 9535, decided in docs/architecture.md: a *comparison* that meets a missing or ill-typed operand
matches, because a filter chooses what to hide.
"""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from jsonpath_ng import Child, Descendants, Fields, Index, Root, Slice, This
from jsonpath_ng.exceptions import JSONPathError
from jsonpath_ng.ext.filter import And as _And
from jsonpath_ng.ext.filter import Expression, Filter
from jsonpath_ng.ext.filter import Or as _Or
from jsonpath_ng.ext.parser import parse as _parse_jsonpath
from jsonpath_ng.jsonpath import Wildcard

from fhirshield.errors import PathError
from fhirshield.fhir.definitions import Element, codes_of, type_of

Predicate = Callable[[Any, Any], bool]
"""(node, root) -> does the filter select this node?"""


@dataclass(frozen=True, slots=True)
class Name:
    """``.name`` or ``['a','b']``."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Each:
    """``[*]``: every entry of a repeating element."""


@dataclass(frozen=True, slots=True)
class Where:
    """``[?expression]``: the entries of a repeating element for which the expression holds."""

    expression: Any_Expression


@dataclass(frozen=True, slots=True)
class Query:
    """A path inside a filter, from ``@`` (relative) or from ``$``."""

    relative: bool
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    items: tuple[Any_Expression, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    items: tuple[Any_Expression, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    query: Query
    negated: bool


@dataclass(frozen=True, slots=True)
class Compare:
    operator: str
    left: Query
    right: Query | str | int | Decimal | bool


Any_Expression = AnyOf | AllOf | Exists | Compare
Segment = Name | Each | Where


@dataclass(frozen=True, slots=True)
class Path:
    """A parsed path; ``text`` is what the operator wrote."""

    text: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """One place in the model that a path selects: the chain of elements from the resource down, and what ends it."""

    chain: tuple[Element, ...]
    owners: tuple[str, ...]
    whole_array: bool
    """The path ends at a repeating element itself, not at its entries."""

    @property
    def element(self) -> Element:
        return self.chain[-1]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(element.name for element in self.chain)


# --- parsing ----------------------------------------------------------------------------------------------------

_QUOTED = re.compile(r"'(?:[^'\\]|\\['\\])*'|\"(?:[^\"\\]|\\[\"\\])*\"")
_OUTSIDE = (
    (re.compile(r"[\"'\\]"), "an escape other than of a quote or a backslash", "write the character itself"),
    (re.compile(r"\.\."), "a descendant segment", "name the elements from the resource down"),
    (re.compile(r"`|~|\bwhere(not)?\b"), "an operator that RFC 9535 does not have", "use a filter: `[?@.field=='x']`"),
    (re.compile(r"(?<![|])\|(?![|])|(?<!&)&(?!&)"), "`|` or `&`", "inside a filter write `||` or `&&`"),
    (re.compile(r"(?<![=!<>])=(?!=)"), "a single `=`", "write `==`"),
    (re.compile(r"\[\s*[A-Za-z_]"), "an unquoted name in brackets", "write `['name']` or `.name`"),
    (re.compile(r"\bnull\b"), "a comparison with null", "FHIR has no null; `@.field` tests that it exists"),
)


@lru_cache(maxsize=4096)
def parse(text: str) -> Path:
    """Parse one path. Raises PathError with a remedy."""
    skeleton = _QUOTED.sub("''", text)
    for pattern, what, remedy in _OUTSIDE:
        if pattern.search(skeleton.replace("''", "")):
            raise PathError(f"`{text}` has {what}", remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = _parse_jsonpath(text)
    except (JSONPathError, Warning, RecursionError, ValueError) as error:
        raise PathError(f"`{text}` is not JSONPath (RFC 9535): {error}", "start with `$.` and an element name") from None
    query = _query(tree, text)
    if query.relative:
        raise PathError(f"`{text}` does not start at the resource", "start with `$`")
    if not query.segments:
        raise PathError(f"`{text}` is the whole resource", "to hide resources use a `deny` rule")
    return Path(text, query.segments)


def _query(tree: Any, text: str) -> Query:
    if isinstance(tree, Root | This):
        return Query(isinstance(tree, This), ())
    if isinstance(tree, Descendants):
        raise PathError(f"`{text}` has a descendant segment", "name the elements from the resource down")
    if not isinstance(tree, Child):
        raise PathError(f"`{text}` does not start with `$` or `@`", "start with `$` (or `@` inside a filter)")
    head = _query(tree.left, text)
    return Query(head.relative, (*head.segments, _segment(tree.right, text)))


def _segment(node: Any, text: str) -> Segment:
    if isinstance(node, Wildcard):
        return Each()
    if isinstance(node, Fields):
        return Name(tuple(str(name) for name in node.fields))
    if isinstance(node, Index | Slice):
        raise PathError(f"`{text}` picks entries by position", "positions differ between resources: use `[*]` or a filter")
    if isinstance(node, Filter):
        return Where(_conjunction(node.expressions, text))
    raise PathError(f"`{text}` uses `{type(node).__name__}`, which is not part of RFC 9535", "use names and filters")


def _conjunction(items: list[Any], text: str) -> Any_Expression:
    parts = tuple(_expression(item, text) for item in items)
    return parts[0] if len(parts) == 1 else AllOf(parts)


def _expression(node: Any, text: str) -> Any_Expression:
    if isinstance(node, _Or):
        return AnyOf(tuple(_expression(item, text) for item in node.operands))
    if isinstance(node, _And):
        return _conjunction(node.operands, text)
    if not isinstance(node, Expression):
        raise PathError(f"`{text}` has a filter that is not understood", "compare with `==`, join with `&&` and `||`")
    if node.op is None or node.op == "!":
        return Exists(_query(node.target, text), node.op == "!")
    if node.op not in _COMPARE:
        raise PathError(f"`{text}` compares with `{node.op}`", "use == != < <= > >=")
    if not isinstance(node.target, Child | This | Root):
        raise PathError(f"`{text}` has no path on the left of `{node.op}`", "write `@.field == 'value'`")
    return Compare(node.op, _query(node.target, text), _operand(node.value, text))


def _operand(value: Any, text: str) -> Query | str | int | Decimal | bool:
    if isinstance(value, Child | This | Root):
        return _query(value, text)
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, str | int):
        return value
    raise PathError(f"`{text}` compares with something that is not a string, number or boolean")


# --- checking against the model -----------------------------------------------------------------------------------


def targets(path: Path, resource_type: str) -> list[Target]:
    """Where the path leads in the model of that resource type. Raises PathError when it can lead nowhere."""
    found = _walk(path.segments, resource_type, path.text)
    for target in found:
        if target.element.name in {"id", "resourceType", "div", "contained"} or (
            target.element.name == "url" and target.owners[-1] == "Extension"
        ):
            raise PathError(f"`{path.text}` names `{target.element.name}`, which cannot be redacted")
    return found


def _walk(segments: tuple[Segment, ...], start: str, text: str, *, singular: bool = False) -> list[Target]:
    heads: list[tuple[tuple[Element, ...], tuple[str, ...], bool]] = [((), (), False)]
    for index, segment in enumerate(segments):
        following: list[tuple[tuple[Element, ...], tuple[str, ...], bool]] = []
        for chain, owners, array in heads:
            current = chain[-1].type if chain else start
            if isinstance(segment, Name):
                if array:
                    last = chain[-1].name
                    raise PathError(
                        f"`{text}` looks for `{segment.names[0]}` on `{last}`, which repeats",
                        f"write `{last}[*].{segment.names[0]}`",
                    )
                for name in segment.names:
                    element = _child(current, name, text)
                    if singular and element.many and (index < len(segments) - 1 or element.many):
                        raise PathError(f"`{text}` compares `{name}`, which repeats", f"test an entry: `@.{name}[?@.x=='y']`")
                    following.append(((*chain, element), (*owners, current), element.many))
            else:
                if not array:
                    what = chain[-1].name if chain else "the resource"
                    raise PathError(f"`{text}` treats `{what}` as repeating, which it is not", "drop the brackets")
                if isinstance(segment, Where):
                    _check(segment.expression, current, start, text)
                following.append((chain, owners, False))
        heads = following
    return [Target(chain, owners, array) for chain, owners, array in heads]


def _child(owner: str, name: str, text: str) -> Element:
    kind = type_of(owner)
    if owner == "Resource":
        raise PathError(f"`{text}` goes into another resource", "write a rule for that resource's type")
    assert kind is not None
    if kind.kind == "primitive":
        raise PathError(
            f"`{text}` looks for `{name}` on a primitive value", "its extensions stand beside it: `._name.extension[*]`"
        )
    element = kind.elements.get(name)
    if element is None and name.startswith("_") and (base := kind.elements.get(name[1:])) and base.primitive:
        return Element(name, "Element", 0, base.many, False, base.summary, base.choice, (), "")
    if element is None:
        near = [key for key in kind.elements if key.lower().startswith(name.lower()[:4])]
        hint = f"`{owner}` has {', '.join(f'`{key}`' for key in near)}" if near else f"see the elements of `{owner}`"
        raise PathError(f"`{text}`: `{owner}` has no element `{name}`", hint)
    return element


def _check(expression: Any_Expression, current: str, root: str, text: str) -> None:
    if isinstance(expression, AnyOf | AllOf):
        for item in expression.items:
            _check(item, current, root, text)
    elif isinstance(expression, Exists):
        _walk(expression.query.segments, current if expression.query.relative else root, text)
    else:
        left = _operand_type(expression.left, current, root, text)
        right = _operand_type(expression.right, current, root, text)
        if left != right:
            raise PathError(f"`{text}` compares a {left} with a {right}", "compare like with like")
        _check_code(expression, current, root, text)


def _check_code(expression: Compare, current: str, root: str, text: str) -> None:
    """A literal that the element's required value set does not have would never match what was meant."""
    if isinstance(expression.right, str) and expression.left.segments:
        start = current if expression.left.relative else root
        (target,) = _walk(expression.left.segments, start, text, singular=True)
        codes = codes_of(target.element.binding)
        if codes and expression.right not in codes:
            known = ", ".join(sorted(codes)[:10])
            raise PathError(f"`{text}`: `{target.element.name}` is never `{expression.right}`", f"it is one of: {known}")


def _operand_type(operand: Any, current: str, root: str, text: str) -> str:
    if isinstance(operand, Query):
        start = current if operand.relative else root
        if any(isinstance(s, Name) and len(s.names) > 1 for s in operand.segments):
            raise PathError(f"`{text}` compares several elements at once", "compare one, and join with `||`")
        found = _walk(operand.segments, start, text, singular=True)
        kinds = {_json_type(t.element.type) for t in found} if operand.segments else {_json_type(start)}
        if len(kinds) != 1 or "object" in kinds:
            raise PathError(f"`{text}` compares something that is not one value", "compare a primitive element")
        return kinds.pop()
    return "boolean" if isinstance(operand, bool) else "string" if isinstance(operand, str) else "number"


def _json_type(name: str) -> str:
    kind = type_of(name)
    if kind is None or kind.kind != "primitive":
        return "object"
    if name == "boolean":
        return "boolean"
    return "number" if name in {"decimal", "integer", "positiveInt", "unsignedInt"} else "string"


def reads(expression: Any_Expression) -> tuple[frozenset[str], frozenset[str]]:
    """The first names that a filter reads: of the entry that it tests, and of the resource."""
    if isinstance(expression, AnyOf | AllOf):
        parts = [reads(item) for item in expression.items]
        return frozenset().union(*(p[0] for p in parts)), frozenset().union(*(p[1] for p in parts))
    queries = [expression.query] if isinstance(expression, Exists) else [expression.left, expression.right]
    entry: set[str] = set()
    root: set[str] = set()
    for query in queries:
        first = query.segments[0] if isinstance(query, Query) and query.segments else None
        if isinstance(query, Query) and isinstance(first, Name):
            (entry if query.relative else root).update(first.names)
    return frozenset(entry), frozenset(root)


# --- filters as predicates ------------------------------------------------------------------------------------------

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MISSING = object()


def predicate(expression: Any_Expression) -> Predicate:
    """The filter as a function. Comparisons with a missing or ill-typed operand are true (see the module's text)."""
    if isinstance(expression, AnyOf):
        return _joined([predicate(item) for item in expression.items], ends_at=True)
    if isinstance(expression, AllOf):
        return _joined([predicate(item) for item in expression.items], ends_at=False)
    if isinstance(expression, Exists):
        return _existence(expression)
    return _comparison(expression)


def _joined(parts: list[Predicate], *, ends_at: bool) -> Predicate:
    """``||`` ends at the first that holds, ``&&`` at the first that does not."""

    def joined(node: Any, root: Any) -> bool:
        for part in parts:
            if part(node, root) is ends_at:
                return ends_at
        return not ends_at

    return joined


def _existence(expression: Exists) -> Predicate:
    query, negated = expression.query, expression.negated
    steps = _steps(query.segments)

    def exists(node: Any, root: Any) -> bool:
        found = next(select(node if query.relative else root, root, steps), _MISSING) is not _MISSING
        return found is not negated

    return exists


def _comparison(expression: Compare) -> Predicate:
    test = _COMPARE[expression.operator]
    left, right = _value(expression.left), _value(expression.right)

    def compare(node: Any, root: Any) -> bool:
        first, second = left(node, root), right(node, root)
        one, other = _kind(first), _kind(second)
        return one is None or one != other or test(first, second)

    return compare


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | Decimal) else None


def _value(operand: Any) -> Callable[[Any, Any], Any]:
    if not isinstance(operand, Query):
        return lambda node, root: operand
    names = [segment.names[0] for segment in operand.segments if isinstance(segment, Name)]
    relative = operand.relative

    def value(node: Any, root: Any) -> Any:
        found = node if relative else root
        for name in names:
            found = found.get(name, _MISSING) if isinstance(found, dict) else _MISSING
        return found

    return value


Step = tuple[str, ...] | Predicate | None
"""Names, a filter, or None for every entry."""


def _steps(segments: tuple[Segment, ...]) -> tuple[Step, ...]:
    return tuple(s.names if isinstance(s, Name) else predicate(s.expression) if isinstance(s, Where) else None for s in segments)


def select(node: Any, root: Any, steps: tuple[Step, ...]) -> Iterator[Any]:
    """The nodes that the steps lead to (RFC 9535 §2.1.2), in document order."""
    if not steps:
        yield node
        return
    step, rest = steps[0], steps[1:]
    if isinstance(step, tuple):
        if isinstance(node, dict):
            for name in step:
                if name in node:
                    yield from select(node[name], root, rest)
    elif isinstance(node, list):
        for entry in node:
            if step is None or step(entry, root):
                yield from select(entry, root, rest)
