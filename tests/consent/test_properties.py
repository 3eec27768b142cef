"""What holds of all Consents: for deny-overrides, and, where it does, for most-recent-wins."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhirshield.authorize.consent import decide
from fhirshield.fhir.consent import Consent, parse
from fhirshield.policy.consent import IMPLICIT, ConsentPolicy, Decision
from tests.consent.material import REASON, coding, consent, consent5, provision
from tests.consent.test_tables import POLICY, asked
from tests.parts import count

EXAMPLES = count(1000, 300)
ATTRIBUTES: dict[str, Any] = {
    "purpose": st.lists(st.sampled_from(("TREAT", "BTG", "HPAYMT", "HRESCH", "ETREAT")), min_size=1, max_size=2),
    "actor": st.sampled_from(("Practitioner/1", "Practitioner/2", "Group/g", "Organization/o1", "CST:Practitioner/1")),
    "label": st.lists(st.sampled_from(("N", "R", "HIV", "PSY", "SUD")), min_size=1, max_size=2),
    "cls": st.sampled_from(("Observation", "Condition")),
    "code": st.sampled_from(("urn:c|1", "urn:c|2")),
    "action": st.sampled_from(("access", "disclose", "collect")),
    "period": st.sampled_from(("2020-01-01/2020-12-31", "2026-01-01/")),
    "dataPeriod": st.sampled_from(("2025-01-01/2025-12-31", "2020-01-01/2020-12-31")),
    "data": st.sampled_from([[("instance", "Observation/o")], [("dependents", "Encounter/e")], [("related", "Encounter/e")], [("authoredby", "Practitioner/9")]]),
}  # fmt: skip


@st.composite
def attributes(draw: Any) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(ATTRIBUTES)), max_size=2, unique=True))
    return {name: draw(ATTRIBUTES[name]) for name in names}


@st.composite
def provisions(draw: Any, depth: int = 2) -> dict[str, Any]:
    kind = draw(st.sampled_from(("permit", "deny")))
    inner = draw(st.lists(provisions(depth - 1), max_size=2)) if depth else []
    return provision(kind, *inner, **draw(attributes()))


@st.composite
def consents(draw: Any) -> list[dict[str, Any]]:
    number = draw(st.integers(0, 3))
    return [
        consent(
            f"c{place}", "p", draw(provisions()),
            dateTime=draw(st.sampled_from((None, "2026-01-01", "2026-02-01", "2026-03-01"))),
            policy=[{"uri": draw(st.sampled_from(("urn:policy:base", "urn:policy:base", "urn:policy:permit", "urn:policy:deny", "urn:unheard-of")))}],
        )
        for place in range(number)
    ]  # fmt: skip


ROWS = st.fixed_dictionaries(
    {
        "purposes": st.lists(st.sampled_from(("TREAT", "BTG", "HPAYMT", "HRESCH")), max_size=2, unique=True),
        "user": st.sampled_from(("Practitioner/1", "Practitioner/2", "", "RelatedPerson/1")),
        "org": st.sampled_from(([], ["Organization/o1"], ["Organization/o2"])),
        "labels": st.lists(st.sampled_from(("HIV", "PSY", "OPIOIDUD")), max_size=2, unique=True),
        "known": st.booleans(),
        "about": st.sampled_from(({}, {"code": {"text": "x"}}, {"resourceType": "Condition"}, {"effectiveDateTime": None})),
        "action": st.sampled_from(("read", "create")),
    }
)
POLICIES = st.builds(
    lambda implicit, recent: replace(POLICY, implicit=implicit, recent_wins=recent), st.sampled_from(IMPLICIT), st.booleans()
)
STRICT = st.builds(lambda implicit: replace(POLICY, implicit=implicit), st.sampled_from(IMPLICIT))


def decided(made: list[dict[str, Any]], row: Any, policy: ConsentPolicy) -> Decision:
    trees: list[Consent] = [parse(one, ()) for one in made]
    return decide(trees, policy, *asked(row)).decision


def places(node: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The ways to all provisions of a Consent."""
    found: list[tuple[Any, ...]] = []

    def walk(one: Any, way: tuple[Any, ...]) -> None:
        found.append(way)
        for number, inner in enumerate(one.get("provision", ())):
            walk(inner, (*way, "provision", number))

    walk(node["provision"], ("provision",))
    return found


def at(made: dict[str, Any], way: tuple[Any, ...]) -> Any:
    node: Any = made
    for step in way:
        node = node[step]
    return node


@given(consents(), ROWS, STRICT, provisions(depth=0), st.data())
@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.promise
def test_adding_a_deny_never_shows_more(made: Any, row: Any, policy: ConsentPolicy, more: Any, data: Any) -> None:
    before = decided(made, row, policy)
    more = {**more, "type": "deny"}
    if made and data.draw(st.booleans()):
        some = copy.deepcopy(made)
        chosen = data.draw(st.sampled_from(some))
        at(chosen, data.draw(st.sampled_from(places(chosen)))).setdefault("provision", []).append(more)
    else:
        some = [*made, consent("more", "p", more)]
    assert decided(some, row, policy) <= before


def is_plain_permit(made: dict[str, Any], way: tuple[Any, ...]) -> bool:
    """Whether a provision is a permit without exceptions: its own, or those of the permits that it stands in."""
    node = at(made, way)
    if node["type"] != "permit" or node.get("provision"):
        return False
    while len(way) > 1:
        way = way[:-2]
        outer = at(made, way)
        if outer["type"] != "permit":
            return True
        if any(one["type"] == "deny" for one in outer["provision"]):
            return False
    return True


@given(
    consents(),
    ROWS,
    st.builds(lambda implicit: replace(POLICY, implicit=implicit), st.sampled_from(("deny", "break-glass"))),
    st.data(),
)
@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.promise
def test_removing_a_permit_never_shows_more(made: Any, row: Any, policy: ConsentPolicy, data: Any) -> None:
    """A permit without exceptions: what is an exception of it is a deny of its own, which goes with it."""
    leaves = [(number, way) for number, one in enumerate(made) for way in places(one) if is_plain_permit(one, way)]
    if not leaves:
        return
    number, way = data.draw(st.sampled_from(leaves))
    some = copy.deepcopy(made)
    if way == ("provision",):
        if some[number]["policy"][0]["uri"] != "urn:policy:base":  # what its policy says goes with it
            return
        some.pop(number)
    else:
        at(some[number], way[:-1]).pop(way[-1])
    assert decided(some, row, policy) <= decided(made, row, policy)


@given(consents(), ROWS, POLICIES, st.randoms(use_true_random=False))
@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.promise
def test_the_order_of_consents_and_of_siblings_does_not_matter(made: Any, row: Any, policy: ConsentPolicy, chance: Any) -> None:
    some = copy.deepcopy(made)
    chance.shuffle(some)
    for one in some:
        for way in reversed(places(one)):  # the inner first, whose places stay
            if "provision" in at(one, way):
                chance.shuffle(at(one, way)["provision"])
    assert decided(some, row, policy) is decided(made, row, policy)


UNKNOWNS = ("beyond", "nobody", "label")


@given(consents(), ROWS, POLICIES, st.sampled_from(UNKNOWNS), st.data())
@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.promise
def test_what_cannot_be_known_never_permits(made: Any, row: Any, policy: ConsentPolicy, how: str, data: Any) -> None:
    """In both modes: when it becomes unknown whether a provision matches, no more is shown than in either of the two cases."""
    if not made:
        return
    number = data.draw(st.integers(0, len(made) - 1))
    way = data.draw(st.sampled_from(places(made[number])))
    always, never, unknown = copy.deepcopy(made), copy.deepcopy(made), copy.deepcopy(made)
    for some, words in ((always, {}), (never, {"purpose": [coding("HMARKT", REASON)]}), (unknown, None)):
        node = at(some[number], way)
        kept = {name: node[name] for name in ("type", "provision") if name in node}
        node.clear()
        node.update(kept)
        if words is None:
            node["actor"] = [
                {"role": {"coding": [{"system": "urn:x", "code": "y"}]}, "reference": {"reference": "Group/unheard-of"}}
            ]
        else:
            node.update(words)
    row = {**row, "purposes": ["TREAT"]}
    least = min(decided(always, row, policy), decided(never, row, policy))
    outer = at(made[number], way[:-2]) if len(way) > 1 else {}
    inherits = outer.get("type") == at(made[number], way)["type"] or any(
        at(made[number], way).get("type") == one.get("type") for one in at(made[number], way).get("provision", ())
    )
    if not inherits:  # what stands in it has its attributes: then more than one thing is unknown
        assert decided(unknown, row, policy) <= least


@given(consents(), ROWS, STRICT)
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_most_recent_consent_that_decides_is_all_that_counts(made: Any, row: Any, policy: ConsentPolicy) -> None:
    """Of most-recent-wins: what an older Consent says changes nothing where a more recent one decides."""
    recent = replace(policy, recent_wins=True)
    newest = consent("newest", "p", provision("deny"), dateTime="2026-02-02")
    assert decided([*made, newest], row, recent) is Decision.DENY
    permit = consent("newest", "p", provision("permit"), dateTime="2026-02-02")
    dated = [one for one in made if one.get("dateTime", "2026-03-01") < "2026-02-02"]  # of the others nobody knows
    assert decided([*dated, permit], row, recent) is Decision.PERMIT


@given(st.sampled_from(("permit", "deny")), st.lists(attributes(), max_size=3), ROWS, POLICIES)
@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.promise
def test_twins_of_r4_and_r5_say_the_same(base: str, exceptions: Any, row: Any, policy: ConsentPolicy) -> None:
    other = {"permit": "deny", "deny": "permit"}[base]
    four = consent("x", "p", provision(base, *(provision(other, **one) for one in exceptions)))
    five = consent5("x", "p", base, *(provision(None, release="R5", **one) for one in exceptions))
    assert decided([four], row, policy) is decided([five], row, policy)
