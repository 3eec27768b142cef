"""Pairs of servers that differ only in what one caller may not see, and what that caller asks of both.

Nothing here is taken from the shield: who may see what is written down by hand, caller by caller. A server is a script of saves
and deletions; the second server of a pair has further ones, all of what is hidden, among those of the first.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.simulators.server import Simulator

Resource = dict[str, Any]
Event = tuple[str, Any, int]
"""``save`` and a resource, or ``remove`` and its name; the minute at which it happens, -1 for what the second script alone has."""
VIP = {"security": [{"system": "urn:labels", "code": "VIP"}]}
ALL = {"interactions": ["*"], "resources": ["*"]}
READS = {"interactions": ["read", "vread", "search", "history"]}
RULES: Any = {
    "rules": [
        {"id": "staff", "who": {"roles": ["staff", "app", "vitals"]}, "allow": {**ALL, "delete_unseen": True}},
        {"id": "own", "who": {"roles": ["app"]}, "allow": {**READS, "resources": ["Practitioner"]}},
        {"id": "nurse", "who": {"roles": ["nurse"]}, "allow": {"interactions": ["*"], "delete_unseen": True,
            "resources": ["Patient", "Observation", "Practitioner", "Encounter", "DocumentReference", "Provenance", "Binary"]}},
        {"id": "clerk", "who": {"roles": ["clerk"]}, "allow": {**READS, "resources": ["Patient?active=true", "Patient?gender=unknown"]}},
        {"id": "no-vip", "who": {"roles": ["staff", "nurse", "app", "feed"]}, "deny": {"interactions": ["*"], "resources": ["*?_security=VIP"]}},
        {"id": "hide", "who": {"roles": ["nurse"]}, "redact": [
            {"resources": ["Patient"], "path": "$.identifier[?@.system=='urn:ssn']", "with": "remove"},
            {"resources": ["Patient"], "path": "$.telecom[*].value", "with": "mask", "show": {"last": 2}},
            {"resources": ["Patient"], "path": "$.birthDate", "with": "generalize", "to": "year"},
            {"resources": ["Encounter"], "path": "$.period", "with": "remove"},
            {"resources": ["Observation"], "path": "$.note", "with": "remove"}]},
        {"id": "desk", "who": {"roles": ["desk"]}, "allow": {**ALL, "delete_unseen": True, "opaque": {"types": ["*"]}}, "redact": [
            {"resources": ["Patient"], "path": "$.identifier[?@.system=='urn:ssn']", "with": "remove"}]},
        {"id": "feed", "who": {"roles": ["feed"]}, "allow": {"interactions": ["create", "update", "delete"], "resources": ["Observation"]}},
    ]
}  # fmt: skip
WORDS = ("Ash", "Birch", "Cedar", "Oak")


@dataclass(frozen=True, slots=True)
class Caller:
    """One kind of caller: its token, what is certainly hidden from it, and how what is hidden of a visible resource may change."""

    role: str
    scope: str
    hidden: Callable[[random.Random, str], Resource]
    edited: Callable[[random.Random, Resource], Resource]
    """Another value wherever the caller sees none."""
    redacts: frozenset[str] = frozenset()
    """Types whose versions are hidden too, so that there may be more of them."""
    patient: str = ""


def vip(rng: random.Random, identity: str) -> Resource:
    """Labelled, of any type, about whomever."""
    found = resource(rng, rng.choice(("Patient", "Observation", "Practitioner", "Encounter", "Condition")), identity)
    return {**found, "meta": VIP}


def labelled(rng: random.Random, identity: str) -> Resource:
    """A labelled Observation."""
    return {**resource(rng, "Observation", identity), "meta": VIP}


def loose(rng: random.Random, identity: str) -> Resource:
    """A Binary that belongs to nothing."""
    return {"resourceType": "Binary", "id": identity, "contentType": "text/plain", "data": rng.choice(("QQ==", "QkI="))}


def renumbered(rng: random.Random, found: Resource) -> Resource:
    """Another social security number, or none."""
    if found["resourceType"] != "Patient":
        return found
    made = copy.deepcopy(found)
    made["identifier"] = [i for i in made["identifier"] if i["system"] != "urn:ssn"]
    made["identifier"] += [{"system": "urn:ssn", "value": f"{rng.randrange(1000)}"}] if rng.random() < 0.8 else []
    return made


def others(rng: random.Random, identity: str) -> Resource:
    """About other patients than ``p1``, or labelled."""
    if rng.random() < 0.3:
        return vip(rng, identity)
    found = resource(rng, rng.choice(("Patient", "Observation", "Encounter", "Condition")), identity)
    return found if found["resourceType"] == "Patient" else {**found, "subject": {"reference": "Patient/p2"}}


def outside_ward(rng: random.Random, identity: str) -> Resource:
    return vip(rng, identity) if rng.random() < 0.6 else resource(rng, "Condition", identity)


def inactive(rng: random.Random, identity: str) -> Resource:
    if rng.random() < 0.5:
        return resource(rng, rng.choice(("Observation", "Condition", "Encounter", "Practitioner")), identity)
    return {**resource(rng, "Patient", identity), "active": False}


def not_vital(rng: random.Random, identity: str) -> Resource:
    return {**resource(rng, "Observation", identity), "category": [{"coding": [{"system": "urn:cat", "code": "laboratory"}]}]}


def unedited(rng: random.Random, found: Resource) -> Resource:
    return found


def unnamed(rng: random.Random, found: Resource) -> Resource:
    """Where any Practitioner may be hidden, so are their names, and narrative that could tell them."""
    made = copy.deepcopy(found)
    if made["resourceType"] == "Observation":
        made["performer"][0].pop("display", None)
        if rng.random() < 0.7:
            made["performer"][0]["display"] = rng.choice(WORDS)
        made["text"] = {"status": "generated", "div": f"<div xmlns='http://www.w3.org/1999/xhtml'>{rng.choice(WORDS)}</div>"}
    return made


def redacted(rng: random.Random, found: Resource) -> Resource:
    """What is hidden from the nurse besides."""
    made = unnamed(rng, found)
    if made["resourceType"] == "Patient":
        made["identifier"] = [i for i in made["identifier"] if i["system"] != "urn:ssn"]
        if rng.random() < 0.8:
            made["identifier"].insert(
                rng.randrange(len(made["identifier"]) + 1), {"system": "urn:ssn", "value": f"{rng.randrange(1000)}"}
            )
        made["telecom"] = [{"system": "phone", "value": f"555-{rng.randrange(1000):03}-77"}]
        made["birthDate"] = f"{made['birthDate'][:4]}-{rng.randrange(1, 13):02}-{rng.randrange(1, 28):02}"
        made["text"] = {"status": "generated", "div": f"<div xmlns='http://www.w3.org/1999/xhtml'>{rng.choice(WORDS)}</div>"}
    elif made["resourceType"] == "Encounter":
        made["period"] = {"start": f"2020-01-{rng.randrange(1, 28):02}"}
    elif made["resourceType"] == "Observation":
        made.pop("note", None)
        if rng.random() < 0.7:
            made["note"] = [{"text": rng.choice(WORDS)} for _ in range(rng.randrange(1, 3))]
    return made


CALLERS = (
    Caller("staff", "user/*.cruds", vip, unnamed),
    Caller("nurse", "user/*.cruds", outside_ward, redacted, frozenset({"Patient", "Observation", "Encounter"})),
    Caller("app", "patient/*.cruds", others, unnamed, patient="p1"),
    Caller("desk", "user/*.cruds", loose, renumbered, frozenset({"Patient"})),
    Caller("feed", "user/Observation.cud", labelled, unedited),
    Caller("clerk", "user/*.rs", inactive, unedited),
    Caller("vitals", "user/Observation.rs?category=urn:cat|vital-signs user/Patient.rs", not_vital, unedited),
)
GHOSTS = ("g1", "g2", "g3")
"""Ids that only what is hidden has; visible resources may refer to them."""


def resource(rng: random.Random, kind: str, identity: str) -> Resource:
    """A resource, visible to every caller but for its patient and labels."""
    made: Resource = {"resourceType": kind, "id": identity}
    who = {"reference": f"Patient/{rng.choice(('p1', 'p1', 'p2'))}"}
    doctor = {"reference": f"Practitioner/{rng.choice(('d1', *GHOSTS))}"}
    if kind == "Patient":
        made |= {"active": True, "name": [{"family": rng.choice(WORDS)}], "gender": rng.choice(("male", "female")),
                 "birthDate": f"{rng.randrange(1970, 1972)}-05-05", "telecom": [{"system": "phone", "value": "555-100-77"}],
                 "identifier": [{"system": "urn:mrn", "value": identity}], "generalPractitioner": [doctor]}  # fmt: skip
    elif kind == "Observation":
        made |= {"status": rng.choice(("final", "amended")), "subject": who, "performer": [doctor],
                 "category": [{"coding": [{"system": "urn:cat", "code": "vital-signs"}]}],
                 "code": {"coding": [{"system": "urn:c", "code": f"c{rng.randrange(2)}"}]},
                 "effectiveDateTime": f"2020-01-{rng.randrange(1, 28):02}", "encounter": {"reference": "Encounter/e1"}}  # fmt: skip
    elif kind == "Practitioner":
        made |= {"name": [{"family": rng.choice(WORDS)}]}
    elif kind == "Encounter":
        made |= {"status": "finished", "class": {"code": "AMB"}, "subject": who, "period": {"start": "2020-01-15"}}
    elif kind == "Condition":
        made |= {"subject": who, "code": {"text": rng.choice(WORDS)}}
    return made


def scripts(rng: random.Random, caller: Caller) -> tuple[list[Event], list[Event]]:
    """What is done to the first server, and to the second, before anybody asks."""
    seen = [
        resource(rng, kind, name) for kind, names in PEOPLE.items() for name in names if rng.random() < 0.85 or name in {"p1", "p2"}
    ]
    done: list[tuple[str, Any]] = [("save", one) for one in seen]
    for one in rng.sample(seen, min(3, len(seen))):
        again = resource(rng, one["resourceType"], one["id"])
        if "subject" in one:
            again["subject"] = one["subject"]
        done.append(("save", again))
    if rng.random() < 0.3:
        done.append(("remove", f"Observation/{rng.choice(PEOPLE['Observation'])}"))
    first: list[Event] = [(what, one, 30 * (place + 1)) for place, (what, one) in enumerate(done)]
    second: list[Event] = []
    for what, one, minute in first:
        kind = one["resourceType"] if what == "save" else one.split("/")[0]
        later = rng.randrange(20) if kind in caller.redacts else 0  # times are hidden where anything else is
        second.append((what, caller.edited(rng, one) if what == "save" else one, minute + later))
    for ghost in GHOSTS:
        for _ in range(rng.choice((0, 1, 1, 2))):
            second.insert(rng.randrange(len(second) + 1), ("save", caller.hidden(rng, ghost), -1))
        if rng.random() < 0.5:
            _hidden_late(rng, second, ghost)
        if rng.random() < 0.2:
            second.append(("remove", f"{rng.choice(('Patient', 'Observation', 'Practitioner'))}/{ghost}", -1))
    for _ in range(rng.randrange(2, 7) if caller.redacts else 0):
        place = rng.randrange(len(second))
        what, one, own = second[place]
        if what == "save" and own >= 0 and one["resourceType"] in caller.redacts:
            after = (
                n
                for n, row in enumerate(second)
                if n > place and one["id"] in {row[1]["id"] if row[0] == "save" else row[1].split("/")[1]}
            )
            until = next(after, len(second))
            second.insert(rng.randrange(place + 1, until + 1), ("save", caller.edited(rng, one), -1))
    return first, second


def _hidden_late(rng: random.Random, script: list[Event], ghost: str) -> None:
    """What is hidden by its label, or by its patient, since its last version alone: that hides what it was, too."""
    for place, (what, one, _) in enumerate(script):
        if what == "save" and one["id"] == ghost:
            plain = {name: value for name, value in one.items() if name != "meta"}
            if "subject" in plain:
                plain["subject"] = {"reference": "Patient/p1"}
            script.insert(rng.randrange(place + 1), ("save", plain, -1))
            return


PEOPLE = {
    "Patient": ("p1", "p2", "p3"),
    "Observation": ("o1", "o2", "o3", "o4", "o5"),
    "Practitioner": ("d1",),
    "Encounter": ("e1",),
}


def play(server: Simulator, script: list[Event]) -> None:
    """Do it."""
    server.clear()
    server._made = 0
    minutes = 0
    for what, one, at in script:
        minutes = at if at >= 0 else minutes + 1
        server.now = f"2026-01-01T{minutes // 60:02}:{minutes % 60:02}:00.000+00:00"
        if what == "save":
            server.save(one)
        else:
            server.remove(one)
    server.now = "2026-01-02T00:00:00.000+00:00"


# --- what is asked --------------------------------------------------------------------------------------------------------

TYPES = ("Patient", "Observation", "Practitioner", "Encounter", "Condition", "Binary", "Provenance")
CRITERIA: dict[str, tuple[str, ...]] = {
    "Patient": ("name=Ash", "family:exact=Oak", "birthdate=1970-05-05", "birthdate=ge1971", "gender=female", "active=true", "identifier=urn:mrn|p1",
                "identifier=5", "telecom=555-100-77", "general-practitioner=Practitioner/g1", "general-practitioner:Practitioner.name=Ash",
                "_has:Observation:patient:code=urn:c|c0", "_has:Observation:subject:performer=Practitioner/g2", "_has:Condition:patient:code=x",
                "_has:Encounter:subject:status=finished", "_has:Observation:subject:_has:Provenance:target:agent=x"),
    "Observation": ("code=urn:c|c0", "status=final", "subject=Patient/p1", "patient=p2", "patient:Patient.name=Birch", "subject:Patient.birthdate=1970-05-05",
                    "performer:Practitioner.name=Ash", "performer=Practitioner/g1", "date=ge2020-01-10", "category=urn:cat|vital-signs",
                    "encounter.status=finished", "subject:Patient.general-practitioner:Practitioner.name=Oak", "status:not=final"),
    "Practitioner": ("name=Ash", "_has:Observation:performer:code=urn:c|c1", "_has:Patient:general-practitioner:gender=female"),
    "Encounter": ("status=finished", "patient=p1", "_has:Observation:encounter:code=urn:c|c0"),
    "Condition": ("patient=p1",),
    "Binary": (),
    "Provenance": ("target=Patient/p1",),
}  # fmt: skip
COMMON = ("_id=p1,g1,o1,g2", "_security=VIP", "_security:not=VIP", "_security=urn:labels|VIP", "_lastUpdated=ge2026-01-01T03:00", "_text=Ash", "_content=Ash",
          "_filter=name%20eq%20Ash", "_id=g1")  # fmt: skip
KEYS = {"Patient": ("_sort=birthdate", "_sort=-birthdate", "_sort=name,_id"), "Observation": ("_sort=-date", "_sort=_lastUpdated")}
SHAPES = ("_count=1", "_count=2", "_count=3", "_total=accurate", "_summary=count", "_summary=true", "_summary=data", "_elements=status,name",
          "_include=Observation:subject", "_include=Observation:performer", "_include=Patient:general-practitioner",
          "_revinclude=Observation:subject", "_revinclude:iterate=Observation:performer", "_include:iterate=Patient:general-practitioner", "_include=*",
          "_revinclude=Condition:patient", "_include=Observation:encounter")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; ``edit`` makes the body from what a read of the same place just gave (None where it gave nothing)."""

    method: str
    path: str
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    edit: str = ""


def requests(rng: random.Random, number: int) -> list[Asked]:
    """A sequence over the whole API."""
    kinds = (
        "search",
        "search",
        "search",
        "search",
        "read",
        "history",
        "history",
        "operation",
        "operation",
        "write",
        "write",
        "bundle",
        "binary",
    )
    return [_MAKERS[rng.choice(kinds)](rng) for _ in range(number)]


def _name(rng: random.Random) -> str:
    kind = rng.choice(("Observation", *TYPES[:5]))
    return f"{kind}/{rng.choice((*PEOPLE.get(kind, ('c1',)), *GHOSTS, 'nobody'))}"


def _search(rng: random.Random) -> Asked:
    kind = rng.choice(("Patient", "Patient", "Observation", "Observation", *TYPES))
    chosen = rng.sample(CRITERIA[kind], min(len(CRITERIA[kind]), rng.choice((0, 1, 1, 2))))
    chosen += rng.sample(COMMON, rng.choice((0, 0, 0, 1))) + rng.sample(SHAPES, rng.choice((0, 1, 1, 2)))
    chosen += [rng.choice(KEYS[kind])] if kind in KEYS and rng.random() < 0.2 else []
    query = "&".join(chosen)
    headers = (("Prefer", "handling=lenient"),) if rng.random() < 0.2 else ()
    return Asked("GET", f"/{kind}?{query}" if query else f"/{kind}", headers=headers)


def _read(rng: random.Random) -> Asked:
    return Asked(
        rng.choice(("GET", "GET", "HEAD")),
        "/" + _name(rng) + rng.choice(("", "", "", "/$meta", *(f"/_history/{n}" for n in range(1, 4)))),
    )


def _history(rng: random.Random) -> Asked:
    place = rng.choice(("/" + _name(rng), "/" + _name(rng), "/Patient", "/Observation", "/Practitioner", ""))
    return Asked(
        "GET",
        place
        + "/_history"
        + rng.choice(("", "", "?_count=1", "?_count=2", "?_count=5", f"?_since=2026-01-01T{rng.randrange(1, 8):02}:10:00Z")),
    )


def _operation(rng: random.Random) -> Asked:
    if rng.random() < 0.2:
        wanted = {"resourceType": "Patient", "name": [{"family": rng.choice(WORDS)}]} | (
            {"birthDate": "1970-05-05"} if rng.random() < 0.4 else {}
        )
        rows = [{"name": "resource", "resource": wanted}] + ([{"name": "count", "valueInteger": 1}] if rng.random() < 0.3 else [])
        return Asked("POST", "/Patient/$match", {"resourceType": "Parameters", "parameter": rows})
    person = rng.choice(("p1", "p2", "g1", "nobody"))
    return Asked("GET", rng.choice((
        f"/Patient/{person}/$everything", f"/Patient/{person}/$everything?_count=2", f"/Patient/{person}/$everything?_type=Observation,Practitioner",
        f"/Patient/{person}/$everything?start=2020-01-10", "/Encounter/e1/$everything", f"/Observation/$lastn?patient={person}",
        f"/Observation/$lastn?patient={person}&max=2", f"/Observation/$lastn?patient={person}&code=urn:c|c0",
    )))  # fmt: skip


def _write(rng: random.Random) -> Asked:
    name = _name(rng)
    kind, _, identity = name.partition("/")
    way = rng.choice(("edit", "edit", "edit", "post", "post", "put", "patch", "delete", "if-none-exist"))
    if way == "edit":
        guard = (("If-Match", f'W/"{rng.randrange(1, 3)}"'),) if rng.random() < 0.5 else ()
        return Asked("PUT", "/" + name, headers=guard, edit=rng.choice(("gender", "same", "birthDate", "telecom", "status")))
    if way == "put":
        return Asked("PUT", "/" + name, resource(rng, kind, identity))
    if way == "patch":
        path, value = rng.choice(
            (
                ("/gender", "other"),
                ("/status", "corrected"),
                ("/birthDate", "1980"),
                ("/note", [{"text": "x"}]),
                ("/telecom/0/value", "1"),
            )
        )
        return Asked("PATCH", "/" + name, [{"op": rng.choice(("replace", "add", "test")), "path": path, "value": value}])
    if way == "delete":
        return Asked("DELETE", "/" + name)
    made = resource(rng, rng.choice(("Observation", "Encounter", "Practitioner")), "x")
    if "subject" in made:
        made["subject"] = {"reference": f"Patient/{rng.choice(('p1', 'p2', 'g1', 'nobody'))}"}
    return Asked(
        "POST",
        f"/{made['resourceType']}",
        made,
        (("If-None-Exist", rng.choice(("_id=g1", "name=Ash", "status=final"))),) if way != "post" else (),
    )


def _bundle(rng: random.Random) -> Asked:
    entries = []
    for _ in range(rng.randrange(1, 4)):
        one = _MAKERS[rng.choice(("search", "read", "write", "history"))](rng)
        if one.edit or one.method == "PATCH":
            continue
        request = {"method": one.method, "url": one.path.lstrip("/") or "_history"}
        condition = dict(one.headers).get("If-None-Exist")
        request |= {"ifNoneExist": condition} if condition else {}
        entries.append({"request": request} | ({"resource": one.body} if one.body is not None else {}))
    return Asked("POST", "", {"resourceType": "Bundle", "type": rng.choice(("batch", "transaction")), "entry": entries})


def _binary(rng: random.Random) -> Asked:
    name = rng.choice(("b1", *GHOSTS))
    if rng.random() < 0.2:
        made = {"resourceType": "Binary", "contentType": "text/plain"}
        return Asked("POST", "/Binary", made, (("If-None-Exist", f"_id={name}"),))
    return Asked(
        "GET",
        rng.choice(
            (f"/Binary/{name}", f"/Binary/{name}/_history", "/Binary?_count=1", f"/Binary?_id={name}", "/Binary/_history?_count=1")
        ),
    )


_MAKERS: dict[str, Callable[[random.Random], Asked]] = {
    "search": _search, "read": _read, "history": _history, "operation": _operation, "write": _write, "bundle": _bundle, "binary": _binary,
}  # fmt: skip


def body_of(asked: Asked, view: Any) -> bytes | None:
    """What is sent; ``view`` is what a read gave, for an edit."""
    if not asked.edit:
        return None if asked.body is None else json.dumps(asked.body).encode()
    if view is None:
        return json.dumps({"resourceType": asked.path.split("/")[1], "id": asked.path.split("/")[2]}).encode()
    edited = copy.deepcopy(view)
    if asked.edit == "gender" and "gender" in edited:
        edited["gender"] = "other"
    elif asked.edit == "birthDate" and "birthDate" in edited:
        edited["birthDate"] = "1999"
    elif asked.edit == "telecom" and "telecom" in edited:
        edited["telecom"] = [*edited["telecom"], {"system": "email", "value": "x"}]
    elif asked.edit == "status" and "status" in edited:
        edited["status"] = "corrected"
    return json.dumps(edited).encode()
