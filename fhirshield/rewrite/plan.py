"""The upstream request of a permit. What the client asked and what the permit narrows to are ANDed, never merged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.fhir.json import encode
from fhirshield.model import Permit, Plan, Situation, Together, Total

LONGEST = 2000
"""Characters of a query in a URL; a longer one goes by POST ``_search``."""
MOST_VERSIONS = 100
"""Entries of a history that are judged at once."""
MOST_AT_ONCE = 500
"""Matches that are asked for beyond what the caller asked for."""


def rewrite(interaction: Interaction, permit: Permit) -> Plan:
    """The plan for one permitted interaction."""
    if interaction.kind is Kind.READ:
        return Plan(permit, "GET", (interaction.type, interaction.id), (), form=False)
    if interaction.kind is Kind.VREAD:
        segments = (interaction.type, interaction.id, "_history", interaction.version)
        return Plan(permit, "GET", segments, (), form=False)
    if interaction.writes:
        return _write(interaction, permit)
    if interaction.page is not None:
        page = interaction.page
        method = "DELETE" if interaction.ends else "POST" if page.form else "GET"
        return Plan(permit, method, page.segments, page.query, form=page.form)
    if interaction.kind is Kind.OPERATION:
        return _operation(interaction, permit)
    if interaction.recalls:
        asked = tuple((p.name, _fewer(p.value) if p.name == "_count" and permit.thins else p.value) for p in permit.sent)
        return Plan(permit, "GET", interaction.place, asked, form=False)
    return _search(interaction, permit)


def onward(plan: Plan, segments: tuple[str, ...], query: tuple[tuple[str, str], ...]) -> Plan:
    """The plan for a further page of the upstream's, where one of ours is not full yet."""
    return Plan(plan.permit, "GET", segments, query, form=False, headers=plan.headers)


def fresh(plan: Plan) -> Plan:
    """The plan of a search that a decision rests on: whole, and not from a cache, from which HAPI answers others."""
    query = (*(pair for pair in plan.query if pair[0] != "_count"), ("_count", str(MOST_AT_ONCE)))
    return replace(plan, query=query, headers=(("Cache-Control", "no-cache"),))


def _write(interaction: Interaction, permit: Permit) -> Plan:
    """What was judged, as it was judged: a patch goes as the update that it comes to, bound to the version it was made of."""
    writing = permit.writing
    assert writing is not None
    headers: list[tuple[str, str]] = [("X-Request-Id", permit.situation.decision)]
    if writing.guarded:
        headers.append(("If-Match", f'W/"{writing.version}"'))
    if interaction.kind is Kind.DELETE:
        return Plan(permit, "DELETE", (interaction.type, interaction.id), (), form=False, headers=tuple(headers))
    headers.append(("Prefer", "return=representation"))
    body = encode(writing.image)
    if interaction.condition:  # nothing that matched was there a moment ago; the upstream makes sure of it
        pairs = [(f"{p.name}:{p.modifier}" if p.modifier else p.name, p.value) for p in interaction.condition]
        headers.append(("If-None-Exist", urlencode(pairs, quote_via=quote, safe="")))
    if interaction.kind is Kind.CREATE:
        return Plan(permit, "POST", (interaction.type,), (), form=False, body=body, headers=tuple(headers))
    segments = (interaction.type, interaction.id)
    return Plan(permit, "PUT", segments, (), form=False, body=body, headers=tuple(headers))


def together(plans: list[Plan], situation: Situation) -> Together:
    """One transaction of writes that were planned each (FHIR R4 §3.1.0.11.2)."""
    entries = [_entry(plan) for plan in plans]
    body = encode({"resourceType": "Bundle", "type": "transaction", "entry": entries})
    return Together(tuple(plans), body, (("X-Request-Id", situation.decision), ("Prefer", "return=representation")))


_OF_ENTRIES = {"If-Match": "ifMatch", "If-None-Exist": "ifNoneExist"}


def _entry(plan: Plan) -> dict[str, Any]:
    request = {"method": plan.method, "url": "/".join(plan.segments)}
    request |= {_OF_ENTRIES[name]: value for name, value in plan.headers if name in _OF_ENTRIES}
    name = plan.permit.interaction.name if plan.method == "POST" else ""
    entry: dict[str, Any] = {"fullUrl": name} if name else {}
    return entry | ({"resource": msgspec.Raw(plan.body)} if plan.body else {}) | {"request": request}


def _operation(interaction: Interaction, permit: Permit) -> Plan:
    """What an operation is given, written anew: simple parameters in the query, a resource in Parameters or by itself."""
    name, given = interaction.operation, {p.name: p.value for p in permit.sent}
    headers: tuple[tuple[str, str], ...] = (("X-Request-Id", permit.situation.decision),) if permit.affects else ()
    headers += (("Prefer", "respond-async"),) if permit.asynchronous else ()
    if name == "$everything":
        rest = tuple((key, value) for key, value in given.items() if key != "_count")
        return Plan(permit, "GET", interaction.place, (*rest, ("_count", str(MOST_AT_ONCE))), form=False)
    place = (interaction.type, name) if name == "$validate" else interaction.place
    if name in {"$validate", "$match"}:
        rows: list[dict[str, Any]] = [{"name": "resource", "resource": interaction.content}]
        kinds = {"mode": "valueCode", "profile": "valueUri"}
        rows += [{"name": key, kinds[key]: value} for key, value in given.items() if key in kinds]
        if name == "$match":
            rows += [{"name": "count", "valueInteger": MOST_AT_ONCE}]
            rows += [{"name": key, "valueBoolean": value == "true"} for key, value in given.items() if key == "onlyCertainMatches"]
        return Plan(permit, "POST", place, (), form=False, body=encode({"resourceType": "Parameters", "parameter": rows}))
    query = tuple((p.name, p.value) for p in permit.sent)
    if not interaction.by_post or (interaction.content is None and not permit.affects):
        return Plan(permit, "GET", place, query, form=False, headers=headers)
    content = interaction.content if interaction.content is not None else {"resourceType": "Parameters"}
    return Plan(permit, "POST", place, query, form=False, body=encode(content), headers=headers)


def _more(count: str) -> str:
    """Of what may be thinned more is asked for at once: what may be shown, one more, and some that may not."""
    size = int(count[:9])
    return str(max(size, min(max(2 * size, size + 10), MOST_AT_ONCE)))


def _fewer(count: str) -> str:
    """Of a history that may be thinned, in which every resource is judged by all its versions."""
    return str(min(int(_more(count)), MOST_VERSIONS))


def _search(interaction: Interaction, permit: Permit) -> Plan:
    asked = [(f"{p.name}:{p.modifier}" if p.modifier else p.name, p.value) for p in permit.sent]
    if permit.shape.total is not Total.NONE:
        asked = [(name, value) for name, value in asked if name != "_count"] + [("_count", str(MOST_AT_ONCE))]
    elif permit.thins:
        asked = [(name, _more(value) if name == "_count" else value) for name, value in asked]
    query = (*asked, *(criterion.query() for criterion in permit.narrow))
    if interaction.by_post or sum(len(name) + len(value) for name, value in query) > LONGEST:
        return Plan(permit, "POST", (interaction.type, "_search"), query, form=True)
    return Plan(permit, "GET", (interaction.type,), query, form=False)
