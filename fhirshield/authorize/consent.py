"""What a patient's Consents say of one resource to one caller (FHIR R4 §6.2 and R5 Consent, IHE PCF 1.1).

A nested provision is an exception of the one that it stands in; one of the same kind as that is a further one beside it, which
has its attributes where it says nothing else (IHE PCF, *Advanced*). Among siblings, and among Consents, a deny goes before a
permit. Attributes match narrowly for permits and widely for denies. What cannot be known leaves both answers open; of all that
may then come out, the one that shows the least counts (``Decision`` is ordered so), which is why unknown never permits.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from fhirshield.authorize.about import About
from fhirshield.authorize.asking import Answer, Asking, any_of
from fhirshield.authorize.provision import matches_resource
from fhirshield.fhir.consent import R5, Actor, Code, Consent, Provision
from fhirshield.fhir.ordered import EARLIEST, LATEST
from fhirshield.fhir.v3 import ACT_REASON, is_a
from fhirshield.policy.consent import ConsentPolicy, Decision, base, plain

DENY, SILENT, PERMIT = Decision.DENY, Decision.SILENT, Decision.PERMIT


class Said(NamedTuple):
    """A decision, and what made it: a Consent's name and the path of a provision."""

    decision: Decision
    why: str = ""
    unsupported: bool = False
    """It is a Consent that cannot be enforced."""


NOTHING = Said(SILENT)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A provision with what it has from those around it, and its exceptions."""

    provision: Provision
    permits: bool
    of_resource: bool
    """Some of its attributes, or of its exceptions', ask about the resource."""
    exceptions: tuple[Node, ...]
    elements: frozenset[Code | str] = frozenset()
    """What it denies are these elements (``ConsentElement.names``), not resources."""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a Consent says, ready to be asked; whose it is and since when it holds aside, so that many patients' are one."""

    nodes: tuple[Node, ...]
    meanings: tuple[str, ...]
    fault: str
    """Why it cannot be enforced; empty where it can."""
    of_resource: bool
    of_labels: bool
    """What it asks of the resource are its type and labels alone."""
    verified: bool
    grantees: tuple[Actor, ...]
    elements: bool
    """Some of its provisions deny elements."""


MOST_TERMS = 4096
"""Different terms that are kept."""
_terms: dict[Hashable, Terms] = {}


@lru_cache(maxsize=65_536)
def compiled(consent: Consent, policy: ConsentPolicy) -> Terms:
    """The terms of a Consent under the operator's reading of policies: the same for all who say the same."""
    said = (policy, consent.release, consent.policies, consent.verified, consent.grantees, _value(consent.root))
    found = _terms.get(said)
    if found is None:
        if len(_terms) >= MOST_TERMS:
            _terms.clear()
        found = _terms[said] = _compiled(consent, policy)
    return found


def _value(provision: Provision | None) -> Hashable:
    """All that a provision says, as a value."""
    if provision is None:
        return None
    own = tuple(getattr(provision, name) for name in ("path", "permits", *_ATTRIBUTES, "beyond", "expression", "vague"))
    return (*own, tuple(map(_value, provision.inner)))


def _compiled(consent: Consent, policy: ConsentPolicy) -> Terms:
    meanings, fault = [], ""
    for named in consent.policies:
        meaning = policy.meaning(named)
        if meaning is None:
            fault = fault or "its policy is not mapped in `consent.policies`"
        else:
            meanings.append(meaning)
    root = consent.root
    nodes: tuple[Node, ...] = ()
    if root is not None and not fault:
        try:
            nodes = tuple(_nodes(root, _kind(root, consent, meanings), (), policy.elements))
        except _Untyped as untyped:
            fault = f"`{untyped.args[0]}` says neither permit nor deny"
    silent = root is None or (root.permits is None and not root.inner)
    if silent and all(meaning == "ignore" for meaning in meanings):
        fault = fault or "it has neither a provision nor a policy that decides"
    every = list(_every(nodes))
    labels = all(_asks_labels(one.provision) for one in every)
    of_resource = any(node.of_resource for node in nodes)
    elements = any(one.elements for one in every)
    return Terms(nodes, tuple(meanings), fault, of_resource, labels, consent.verified, consent.grantees, elements)


def _every(nodes: Iterable[Node]) -> Iterator[Node]:
    """Nodes with all that are exceptions of them, each once."""
    waiting, seen = list(nodes), set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += node.exceptions


class _Untyped(Exception):
    """A provision of which it cannot be said whether it permits or denies; carries its path."""


def _kind(root: Provision, consent: Consent, meanings: list[str]) -> bool | None:
    """What the outermost provision does: what it says, else what the policy means; None where only what is in it speaks."""
    if root.permits is not None:
        return root.permits
    said = {meaning for meaning in meanings if meaning != "ignore"}
    if said:
        return said == {"permit"}
    if consent.release == R5 and root.inner:
        raise _Untyped("Consent.decision")
    return None


def _nodes(provision: Provision, permits: bool | None, more: tuple[Node, ...], elements: frozenset[Code | str]) -> Iterator[Node]:
    """A provision and those of its kind in it, side by side; ``more`` are exceptions that it has besides its own.

    Exceptions are shared by all that have them, and answered once for a resource: the work grows with what was written.
    """
    inner = [_typed(one, permits) for one in provision.inner]
    if permits is None:  # it decides nothing itself: what stands in it does, with its attributes
        for one in inner:
            yield from _nodes(_merged(provision, one), one.permits, more, elements)
        return
    own = tuple(node for one in inner if one.permits is not permits for node in _nodes(one, one.permits, (), elements))
    exceptions = (*own, *more)
    for part, names in _parts(provision, elements) if elements and not permits else ((provision, frozenset[Code | str]()),):
        asks = _asks_resource(part) or any(node.of_resource for node in exceptions)
        yield Node(part, permits, asks, exceptions, names)
    for one in inner:
        if one.permits is permits:
            yield from _nodes(_merged(provision, one), permits, exceptions if permits else (), elements)


def _parts(deny: Provision, elements: frozenset[Code | str]) -> Iterator[tuple[Provision, frozenset[Code | str]]]:
    """A deny as one of the elements that it names, and as one of whatever else it says; each with its elements.

    A code that is nearly the name of elements, in another case or of another system, stands for these and for itself.
    """
    said = {deny.expression} & elements
    near = {plain(code) for _, code in deny.codes}
    named = {one for one in elements if type(one) is tuple and plain(one[1]) in near}
    if not named and not said:
        yield deny, frozenset()
        return
    rest = tuple(code for code in deny.codes if code not in elements)
    if said:  # the codes, where it has others alone, still say of which resources
        yield replace(deny, codes=() if named else rest, beyond=False), frozenset(said | named)
        return
    yield replace(deny, codes=(), vague=deny.vague - {"codes"}), frozenset(named)
    if rest or "codes" in deny.vague:
        yield replace(deny, codes=rest), frozenset()


def _typed(inner: Provision, outer: bool | None) -> Provision:
    """What stands in a provision with its kind: said, or the opposite of what it is an exception of (R5)."""
    if inner.permits is not None:
        return inner
    if outer is None:
        raise _Untyped(inner.path)
    return replace(inner, permits=not outer)


_ATTRIBUTES = ("period", "actors", "actions", "labels", "purposes", "classes", "codes", "data_period", "data")


def _merged(outer: Provision, inner: Provision) -> Provision:
    """A provision with the attributes of the one that it stands in, where it says nothing of its own."""
    own = {name: getattr(inner, name) or getattr(outer, name) for name in _ATTRIBUTES}
    return replace(inner, **own, beyond=inner.beyond or outer.beyond, vague=inner.vague | outer.vague)


def _asks_resource(provision: Provision) -> bool:
    vague = provision.vague & {"labels", "classes", "codes"}
    return bool(provision.labels or provision.classes or provision.codes or provision.data_period or provision.data or vague)


def _asks_labels(provision: Provision) -> bool:
    return not (provision.codes or provision.data_period or provision.data or "codes" in provision.vague)


_DOCUMENTS = frozenset({"DocumentReference", "Composition", "DocumentManifest"})
"""Types of which a class may ask for a code."""


# --- asking ---------------------------------------------------------------------------------------------------------------


def decide(consents: Iterable[Consent], policy: ConsentPolicy, asking: Asking, about: About, *, implicit: bool = True) -> Said:
    """What all Consents of one patient say of a resource; the implicit policy where none decides.

    Where all that they ask of it is its type and labels, the answer is kept for the exchange.
    """
    consents = tuple(consents)
    labels = about.labels if about.type not in _DOCUMENTS else None
    key = (consents, policy, implicit, about.type, labels)
    found = asking.said.get(key) if labels is not None else None
    if found is None:
        found = _of_all(consents, policy, asking, about, implicit=implicit)
        if labels is not None and all(_asks_no_more(one, policy) for one in consents):
            asking.said[key] = found
    return found


def _asks_no_more(consent: Consent, policy: ConsentPolicy) -> bool:
    """Whether a Consent asks of a resource no more than its type and labels."""
    try:
        terms = compiled(consent, policy)
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError):
        return False
    return terms.of_labels or not terms.of_resource


def _of_all(consents: tuple[Consent, ...], policy: ConsentPolicy, asking: Asking, about: About, *, implicit: bool) -> Said:
    said = [(consent, said_by(consent, policy, asking, about)) for consent in consents]
    by, found = _recent(said, asking.now) if policy.recent_wins else _strictest(said)
    if by is not None:
        return Said(found.decision, f"{by.name} {found.why}", found.unsupported)
    if not implicit:
        return NOTHING
    return Said(base(policy.implicit, asking.purposes), f"no Consent, implicitly {policy.implicit}")


def applies(consent: Consent, asking: Asking) -> bool | None:
    """Whether a Consent is in force and about this kind of request at all."""
    if not consent.active or not consent.private:
        return False
    in_force = consent.period.holds(asking.now) if consent.period is not None else True
    if not consent.research or in_force is False:
        return in_force
    kinds = {is_a(ACT_REASON, one, "HRESCH") for one in asking.purposes}
    return in_force if kinds == {True} else False if kinds == {False} else None


def said_by(consent: Consent, policy: ConsentPolicy, asking: Asking, about: About) -> Said:
    """What one Consent says of a resource, and where; the same for all that say the same of one like it."""
    try:
        return _said_by(consent, policy, asking, about)
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        return Said(DENY, f"cannot be decided ({type(error).__name__})", unsupported=True)


def _said_by(consent: Consent, policy: ConsentPolicy, asking: Asking, about: About) -> Said:
    if consent not in asking.applied:
        asking.applied[consent] = applies(consent, asking)
    applied = asking.applied[consent]
    if applied is False:
        return NOTHING
    terms = compiled(consent, policy)
    key: Hashable = (terms, applied)
    if terms.of_resource:
        labels = about.labels if terms.of_labels and about.type not in _DOCUMENTS else None
        if labels is None:
            return _decided(terms, applied, asking, about)
        key = (terms, applied, about.type, labels)
    found = asking.said.get(key)
    if found is None:
        found = asking.said[key] = _decided(terms, applied, asking, about)
    return found


def _decided(terms: Terms, applied: bool | None, asking: Asking, about: About) -> Said:
    if terms.fault:
        return Said(DENY, terms.fault, unsupported=True)
    decision, path, _ = _strictest_of((_answer(node, asking, about) for node in terms.nodes), NOTHING)
    if decision is SILENT and terms.meanings:
        decision = min((base(meaning, asking.purposes) for meaning in terms.meanings if meaning != "ignore"), default=SILENT)
        path = "policy"
    if applied is None or not terms.verified:
        decision = min(decision, SILENT)
    if decision is PERMIT and terms.grantees and any_of(asking.is_actor(one, True) for one in terms.grantees) is not True:
        decision = SILENT
    return Said(decision, path) if decision is not SILENT else NOTHING


def _answer(node: Node, asking: Asking, about: About) -> Said:
    """What a provision says of a resource, worked out once."""
    found = about.said.get(node)
    if found is None:
        found = about.said[node] = _worked_out(node, asking, about)
    answer: Said = found
    return answer


def _worked_out(node: Node, asking: Asking, about: About) -> Said:
    """What a provision says: silent where it does not match, the worse of both where it may; of elements, nothing of the whole."""
    match = False if node.elements else _match(node, asking, about)
    if match is False:
        return NOTHING
    return _own(node, match, asking, about)


def _match(node: Node, asking: Asking, about: About) -> Answer:
    match = asking.matches(node.provision, node.permits)
    if match is not False:
        of_resource = matches_resource(node.provision, node.permits, about)
        match = False if of_resource is False else None if match is None else of_resource
    return match


def _own(node: Node, match: Answer, asking: Asking, about: About) -> Said:
    """What a provision that matches says, with its exceptions."""
    own = Said(PERMIT if node.permits else DENY, node.provision.path)
    within = _strictest_of((_answer(one, asking, about) for one in node.exceptions), own)
    return within if match is True else min(within, NOTHING)


def denied(consents: tuple[Consent, ...], policy: ConsentPolicy, asking: Asking, about: About) -> frozenset[Code | str]:
    """The elements of a resource that one patient's Consents deny; all where that cannot be decided."""
    labels = about.labels if about.type not in _DOCUMENTS else None
    key = ("elements", consents, about.type, labels)
    found: frozenset[Code | str] | None = asking.said.get(key) if labels is not None else None
    if found is None:
        found = _denied(consents, policy, asking, about)
        if labels is not None and all(_asks_no_more(one, policy) for one in consents):
            asking.said[key] = found
    return found


def _denied(consents: tuple[Consent, ...], policy: ConsentPolicy, asking: Asking, about: About) -> frozenset[Code | str]:
    try:
        since = _since(consents, policy, asking, about) if policy.recent_wins else EARLIEST
        found: set[Code | str] = set()
        for consent in consents:
            terms = compiled(consent, policy)
            old = consent.when is not None and consent.when[1] < since
            if terms.elements and not old and applies(consent, asking) is not False:
                found |= _elements(terms, asking, about)
        return frozenset(found)
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError):
        return policy.elements


def _since(consents: tuple[Consent, ...], policy: ConsentPolicy, asking: Asking, about: About) -> dt.datetime:
    """The date of the most recent Consent that decides: what older ones say of elements does not count."""
    by, _ = _recent([(one, said_by(one, policy, asking, about)) for one in consents], asking.now)
    return by.when[0] if by is not None and by.when is not None and by.when[0] <= asking.now else EARLIEST


def _elements(terms: Terms, asking: Asking, about: About) -> set[Code | str]:
    """The elements that a Consent denies: by provisions that may match, those around them too, unless a permit within does."""
    waiting, seen, found = list(terms.nodes), set[int](), set[Code | str]()
    while waiting:
        node = waiting.pop()
        match = _match(node, asking, about) if id(node) not in seen else False
        seen.add(id(node))
        if match is not False:
            waiting += node.exceptions
            if node.elements and _own(node, match, asking, about).decision is DENY:
                found |= node.elements
    return found


def _strictest_of(answers: Iterable[Said], otherwise: Said) -> Said:
    """A deny among them, else a permit, else what holds without them."""
    permit: Said | None = None
    for answer in answers:
        if answer.decision is DENY:
            return answer
        if answer.decision is PERMIT and permit is None:
            permit = answer
    return permit or otherwise


By = tuple[Consent | None, Said]
"""A decision, and the Consent that made it; None where none decides."""


def _strictest(said: list[tuple[Consent, Said]]) -> By:
    """A deny among them, else a permit."""
    permit: By = (None, NOTHING)
    for one in said:
        decision = one[1].decision
        if decision is DENY:
            return one
        if decision is PERMIT and permit[0] is None:
            permit = one
    return permit


def _recent(said: list[tuple[Consent, Said]], now: dt.datetime) -> By:
    """What the most recent Consent that decides says; where a date leaves it open, a deny is as recent as may be, a permit as old.

    A date is the span that it names; without one, or with one to come, it may be any time.
    """
    best: tuple[dt.datetime, int] | None = None
    found: By = (None, NOTHING)
    for consent, answer in said:
        if answer.decision is SILENT:
            continue
        low, high = consent.when if consent.when is not None and consent.when[0] <= now else (EARLIEST, LATEST)
        row = (high, 1) if answer.decision is DENY else (low, 0)
        if best is None or row > best:
            best, found = row, (consent, answer)
    return found


def forbidden(residuals: Iterable[Provision], asking: Asking, about: About) -> str:
    """The residual rule of a token that forbids a resource, where none permits it all the same; empty where it may be shown."""
    by = ""
    for provision in residuals:
        permits = provision.permits is True
        match = asking.matches(provision, permits)
        if match is not False:
            of_resource = matches_resource(provision, permits, about)
            match = of_resource if match is True or of_resource is False else None
        if permits and match is True:
            return ""
        if not permits and match is not False:
            by = by or provision.path
    return by
