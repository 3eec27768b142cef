"""May this operation be invoked? Those served by name come to what they read or search; any other is opened by a rule alone.

A rule that opens an operation says where it is invoked, what it may be given, what it may answer and which types it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fhirshield.authorize.resource import denies
from fhirshield.authorize.standing import RuleRow, Standing, TypeStanding
from fhirshield.fhir.content import Misfit, named, primitives
from fhirshield.fhir.definitions import resource_types
from fhirshield.fhir.glance import Page
from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.operations import NEVER, OPERATIONS, TERMINOLOGY, known
from fhirshield.fhir.path import Name
from fhirshield.fhir.reference import Literal, literal
from fhirshield.model import Denial, Judge, Reason, Verdict, misfit
from fhirshield.policy.rule import Operation

Asked = Callable[[TypeStanding, Interaction], Denial | None]
"""What scopes and rules say of an interaction with a type."""


def may_invoke(stand: Standing, interaction: Interaction, asked: Asked) -> tuple[Operation, Denial | None]:
    """The operation as it is opened to this caller, or why it is not."""
    name, kind = interaction.operation, interaction.type
    served = known(name, kind, interaction.id)
    if served is None:
        return _by_rule(stand, interaction, asked)
    found = _of(stand, kind)
    opened = Operation(name, frozenset({kind}), served.output, frozenset())
    if name == "$everything":
        denial = asked(found, replace(interaction, kind=Kind.READ)) or _since(stand, interaction)
    elif name == "$match":
        denial = asked(found, replace(interaction, kind=Kind.SEARCH_TYPE)) or _certain(stand, interaction)
        denial = denial or _matched(found, interaction.content) or _number(interaction, "count")
    elif name == "$validate":
        opened = replace(opened, input=frozenset({kind}))
        create, update = (asked(found, replace(interaction, kind=k, id="")) for k in (Kind.CREATE, Kind.UPDATE))
        denial = (create if create and update else None) or _is_of(kind, interaction.content) or _profiled(stand, interaction)
    elif kind in TERMINOLOGY:
        denial = asked(found, replace(interaction, kind=Kind.READ))
        denial = denial or next((no for one in sorted(TERMINOLOGY) if (no := _whole(_of(stand, one), name))), None)
    else:
        denial = _not_served(name)
    return opened, denial


def _of(stand: Standing, name: str) -> TypeStanding:
    found = stand.of(name)
    assert found is not None
    return found


def _not_served(name: str) -> Denial:
    return Denial(405, Reason.NOT_SERVED, "not-supported", f"`{name}` is not served here")


def _since(stand: Standing, interaction: Interaction) -> Denial | None:
    """Dates and times may not be asked about where any could be hidden."""
    names = {p.name for p in interaction.parameters}
    wanted = [t for p in interaction.parameters if p.name == "_type" for t in p.value.split(",")]
    if set(wanted) - resource_types():
        return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", "`_type` takes resource types of R4")
    asked = sorted(names & {"start", "end", "_since"})
    if asked and stand.applied.hides:
        text = f"parameter `{asked[0]}` of `$everything` asks about elements that are hidden from this caller"
        return Denial(403, Reason.REVEALING_PARAMETER, "forbidden", text)
    return _number(interaction, "_count")


def _number(interaction: Interaction, name: str) -> Denial | None:
    for value in (p.value for p in interaction.parameters if p.name == name):
        if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
            return Denial(400, Reason.UNKNOWN_PARAMETER, "not-supported", f"`{name}` takes a number from 1")
    return None


def _is_of(name: str, content: Any) -> Denial | None:
    if content.get("resourceType") == name:
        return None
    return Denial(400, Reason.MALFORMED_REQUEST, "invalid", f"the resource is no {name}")


def _matched(found: TypeStanding, content: Any) -> Denial | None:
    """A patient may not be matched by what is hidden of patients."""
    first = [o.path.segments[0] for o in found.view.obligations]
    hidden = {name.removeprefix("_") for step in first if isinstance(step, Name) for name in step.names}
    every = any(not isinstance(step, Name) for step in first)
    asked = sorted(name for name in content if name != "resourceType" and (every or name.removeprefix("_") in hidden))
    if asked:
        text = f"`{asked[0]}` of a Patient to match asks about elements that are hidden from this caller"
        return Denial(403, Reason.REVEALING_PARAMETER, "forbidden", text, expression=(f"Patient.{asked[0]}",))
    return _is_of("Patient", content)


def _profiled(stand: Standing, interaction: Interaction) -> Denial | None:
    """Whether a profile is there shows in what is found by it."""
    meta = interaction.content.get("meta")
    named = any(p.name == "profile" for p in interaction.parameters) or (type(meta) is dict and "profile" in meta)
    found = _of(stand, "StructureDefinition")
    if not named or (found.whole and not found.view.marked):
        return None
    text = "`$validate` by a profile is not served to a caller who may not see all of StructureDefinition"
    return Denial(403, Reason.NOT_SERVED, "not-supported", text)


def _certain(stand: Standing, interaction: Interaction) -> Denial | None:
    """Which match is certain may turn on one that is hidden."""
    if stand.naming.all_open and not stand.applied.hides:
        return None
    if any(p.name == "onlyCertainMatches" and p.value == "true" for p in interaction.parameters):
        text = "parameter `onlyCertainMatches` of `$match` asks about patients who may be hidden from this caller"
        return Denial(403, Reason.REVEALING_PARAMETER, "forbidden", text)
    return None


def _whole(found: TypeStanding, name: str) -> Denial | None:
    """What answers by a code system or a value set tells of all of it."""
    if found.whole and not found.view.marked:
        return None
    return Denial(
        403, Reason.NOT_SERVED, "not-supported", f"`{name}` is not served to a caller who may not see all of {found.type}"
    )


# --- operations that rules open -------------------------------------------------------------------------------------------


def _by_rule(stand: Standing, interaction: Interaction, asked: Asked) -> tuple[Operation, Denial | None]:
    name = interaction.operation
    none = Operation(name, frozenset(), frozenset(), frozenset())
    if name in NEVER or name in OPERATIONS:
        return none, _not_served(name)
    rows = [row for row in _rows(stand, interaction) if row[1].name == name]
    if not rows:
        return none, _not_served(name)
    opened = rows[0][1]
    for _, other in rows[1:]:
        opened = Operation(name, opened.input & other.input, opened.output & other.output, opened.affects | other.affects)
    return opened, _scoped(stand, interaction, opened, asked) or _given(interaction, opened)


def _rows(stand: Standing, interaction: Interaction) -> list[tuple[RuleRow, Operation]]:
    """The rows that may open operations here; without a type, those of every type."""
    rows = _of(stand, interaction.type or "Parameters").allows
    if not interaction.type:
        rows = tuple(row for row in rows if row.selector.type == "*")
    if not interaction.id:
        rows = tuple(row for row in rows if row.judge is None)
    return [(row, operation) for row in rows if row.rule.allow for operation in row.rule.allow.operations]


def _scoped(stand: Standing, interaction: Interaction, opened: Operation, asked: Asked) -> Denial | None:
    """Scope ``r`` where it is invoked, without limits unless on one resource; scope and rule to update all that it changes."""
    found = _of(stand, interaction.type or "Parameters")
    denied = found.withheld_by or any(row.judge is None for row in found.denies)
    scopes = [row for row in found.scopes if "r" in row.letters]
    if not interaction.id:
        scopes = [row for row in scopes if row.judge is None and not row.limited]
    if denied or not scopes:
        where = interaction.type or "the server"
        return Denial(403, Reason.NO_SCOPE, "forbidden", f"no scope of the token grants `{opened.name}` on {where}")
    if opened.affects and not interaction.by_post:
        return Denial(405, Reason.NOT_SERVED, "not-supported", f"`{opened.name}` changes what is stored: it is invoked by POST")
    for name in sorted(opened.affects):
        found = _of(stand, name)
        denial = asked(found, Interaction(Kind.UPDATE, type=name))
        if denial:
            return denial
        if found.denies or not any("u" in row.letters and row.judge is None and not row.limited for row in found.scopes):
            text = f"`{opened.name}` may change any {name}, and this caller may not"
            return Denial(403, Reason.NO_SCOPE, "forbidden", text)
    return None


def _given(interaction: Interaction, opened: Operation) -> Denial | None:
    """What comes with it, and all that stands within, is of the types that the rule names."""
    waiting = [interaction.content]
    while waiting:
        node = waiting.pop()
        if type(node) is dict:
            if "resourceType" in node and not (type(node["resourceType"]) is str and node["resourceType"] in opened.input):
                text = f"no rule lets `{opened.name}` be given what is in the body"
                return Denial(403, Reason.NO_RULE, "forbidden", text)
            waiting.extend(node.values())
        elif type(node) is list:
            waiting.extend(node)
    return None


def may_invoke_on(stand: Standing, interaction: Interaction, resource: Any) -> bool:
    """Whether a rule opens the operation on this very resource; what is served by name asks for a read alone."""
    if known(interaction.operation, interaction.type, interaction.id) is not None:
        return True
    rows = _rows(stand, interaction)
    denied = any(denies(row, "r", resource) for row in _of(stand, interaction.type).denies)
    opened = [row for row, operation in rows if operation.name == interaction.operation]
    return not denied and any(row.judge is None or row.judge(resource) is True for row in opened)


def only(judge: Judge, types: frozenset[str]) -> Judge:
    """A judge that withholds what the operation is not to answer; envelopes are judged by denies alone."""

    def judged(resource: Any, letter: str, careful: bool, page: Page | None = None) -> Verdict:
        name = resource.get("resourceType") if type(resource) is dict else None
        if name not in types and letter != "c":
            return Verdict(False, Reason.NO_RULE)
        return judge(resource, "c" if name in ENVELOPES else letter, careful, page)

    return judged


ENVELOPES = frozenset({"Parameters", "Bundle", "OperationOutcome"})


def refers(interaction: Interaction, bases: tuple[str, ...]) -> dict[Literal, str] | Denial:
    """What the body of an operation refers to, and where."""
    found: dict[Literal, str] = {}
    if known(interaction.operation, interaction.type, interaction.id) is None:
        texts = [text for p in interaction.parameters for text in p.value.split(",")]
        found |= {one: "parameter" for text in texts if (one := literal(text, bases))}
    if interaction.content is None:
        return found
    try:
        if interaction.content["resourceType"] == "Parameters":
            for _, place, _, value in primitives(interaction.content):
                if (one := literal(value, bases)) is not None:
                    found.setdefault(one, place)
        for plain, place, named_there in named(interaction.content, bases):
            if isinstance(named_there, str):
                text = f"`{plain}` refers to nothing that this caller can see"
                return Denial(422, Reason.REFERENCE_NOT_VISIBLE, "not-found", text, expression=(place,))
            found.setdefault(named_there, place)
    except Misfit as error:
        return misfit(str(error.args[0]))
    return found
