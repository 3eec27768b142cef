"""The walk in the terminal: one record as six callers see it, what was hidden and by which rule, and the trail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fhirshield.demo.issuer import Issuer
from fhirshield.outbound.http import Client, Response

RECORD = "pat-1"
FIELDS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("name", lambda p: _name(p)),
    ("SSN", lambda p: _identifier(p, "us-ssn")),
    ("MRN", lambda p: _identifier(p, "mrn")),
    ("phone", lambda p: _telecom(p, "phone")),
    ("birthDate", lambda p: p.get("birthDate")),
    ("street", lambda p: next((a["line"][0] for a in p.get("address", []) if "line" in a), None)),
    ("postalCode", lambda p: next((a.get("postalCode") for a in p.get("address", [])), None)),
    ("narrative", lambda p: "there" if "text" in p else None),
)
SEARCHES = ("Condition", "Observation", "MedicationRequest", "Coverage")


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a token of the demo's issuer (or, the stranger, without)."""

    name: str
    token: str


def callers(issuer: Issuer, audience: str) -> list[Caller]:
    """The six."""

    def staff(role: str, person: str, purpose: str) -> Caller:
        token = issuer.token(
            audience, "user/*.rs", sub=person, fhirUser=f"Practitioner/{person}", roles=[role], purpose_of_use=purpose
        )
        return Caller(role, token)

    own = issuer.token(audience, "patient/*.rs", sub="p1", patient=RECORD, fhirUser=f"Patient/{RECORD}")
    return [
        staff("clinician", "dr-reed", "TREAT"),
        staff("nurse", "nurse-vale", "TREAT"),
        staff("billing", "penny", "HPAYMT"),
        staff("researcher", "quest", "HRESCH"),
        Caller("patient app", own),
        Caller("stranger", ""),
    ]


def ward(issuer: Issuer, audience: str) -> tuple[Caller, Caller]:
    """A physician of whom Consents are asked, and the office that keeps them."""
    physician = issuer.token(
        audience, "user/*.rs", sub="dr-hale", fhirUser="Practitioner/dr-hale", roles=["physician"], purpose_of_use="TREAT"
    )
    office = issuer.token(
        audience, "user/*.cruds", sub="office", fhirUser="Practitioner/office", roles=["consent-office"], vip=True
    )
    return Caller("physician", physician), Caller("consent office", office)


class Walk:
    """Shows what each caller gets of the shield at ``base``, and what the server behind it holds."""

    def __init__(self, client: Client, base: str, direct: str, people: list[Caller]) -> None:
        self._client = client
        self._base = base
        self._direct = direct
        self._people = people

    async def get(self, base: str, path: str, token: str = "", **headers: str) -> Response:
        """One GET."""
        return await self._ask("GET", base, path, token, headers)

    async def _ask(
        self, method: str, base: str, path: str, token: str, headers: dict[str, str], body: bytes | None = None
    ) -> Response:  # fmt: skip
        scheme, _, rest = base.partition("://")
        authority, _, prefix = rest.partition("/")
        sent = {"Accept": "application/fhir+json"} | ({"Authorization": f"Bearer {token}"} if token else {}) | headers
        return await self._client.send(method, f"{scheme}://{authority}", f"/{prefix}/{path}", sent, body)

    async def lines(self) -> list[str]:
        """The whole walk."""
        told = [_title("One record, before and after"), *await self._record()]
        told += [_title("What each finds when it searches that record"), *await self._searches()]
        told += [_title("A question about what is hidden is refused, not answered"), *await self._questions()]
        return told

    async def decisions(self, physician: Caller, office: Caller) -> list[str]:
        """What a patient's Consent changes for the physician, from one request to the next."""
        rows, place = [["", "", "status", "phone"]], ""

        async def looks(when: str, **headers: str) -> None:
            answer = await self.get(self._base, f"Patient/{RECORD}", physician.token, **headers)
            phone = _telecom(json.loads(answer.body), "phone") if answer.status == 200 else ""
            rows.append([when, f"GET Patient/{RECORD}", str(answer.status), phone if phone is not None else "-"])

        async def says(when: str, provision: dict[str, Any], status: str = "active") -> None:
            nonlocal place
            method, path = ("PUT", f"Consent/{place}") if place else ("POST", "Consent")
            body = json.dumps(_consent(provision, status) | ({"id": place} if place else {})).encode()
            kind = {"Content-Type": "application/fhir+json"}
            answer = await self._ask(method, self._base, path, office.token, kind, body)
            place = place or answer.headers["location"].split("/Consent/")[1].split("/")[0]
            rows.append([when, f"{method} {path}", str(answer.status), ""])

        nested = {"type": "deny", "code": [{"coding": [{"system": "urn:fhirshield:demo:consent-form", "code": "contact-details"}]}]}
        await looks("no Consent says anything")
        await says("the patient says: no contact details", {"type": "permit", "provision": [nested]})
        await looks("the next request")
        await says("the patient says: nothing at all", {"type": "deny"})
        await looks("the next request")
        await looks("with a reason, in an emergency", **{"Break-Glass-Reason": "found unconscious in the street"})
        await says("the patient takes it back", {"type": "deny"}, "inactive")
        await looks("the next request")
        return [_title("What a patient's Consent changes, from one request to the next"), *table(rows, 40)]

    async def _record(self) -> list[str]:
        path = f"Patient/{RECORD}"
        columns = [("server", await self.get(self._direct, path))]
        columns += [(person.name, await self.get(self._base, path, person.token)) for person in self._people]
        rows = [["", *(name for name, _ in columns)], ["status", *(str(answer.status) for _, answer in columns)]]
        parsed = [json.loads(answer.body) if answer.status == 200 else None for _, answer in columns]
        for name, read in FIELDS:
            rows.append([name, *("" if p is None else str(read(p) or "-") for p in parsed)])
        return table(rows)

    async def _searches(self) -> list[str]:
        rows = [["", "server", *(person.name for person in self._people)]]
        for kind in SEARCHES:
            parameter = "beneficiary" if kind == "Coverage" else "patient"
            path = f"{kind}?{parameter}=Patient/{RECORD}"
            found = [_count(await self.get(self._direct, path))]
            found += [_count(await self.get(self._base, path, person.token)) for person in self._people]
            rows.append([kind, *found])
        return table(rows)

    async def _questions(self) -> list[str]:
        told = []
        for path in (
            "Patient?identifier=http://hl7.org/fhir/sid/us-ssn|900-00-0000",
            "Patient?phone=555",
            "Patient?_sort=birthdate",
        ):
            for person in self._people[1:4]:
                answer = await self.get(self._base, path.replace("|", "%7C"), person.token)
                reason = ""
                if answer.status != 200:
                    reason = json.loads(answer.body)["issue"][0]["diagnostics"]
                told.append(f"  {person.name:<11} {path:<62} {answer.status} {reason}")
        return told


def _consent(provision: dict[str, Any], status: str) -> dict[str, Any]:
    """A Consent of R4 of the record's patient."""
    return {
        "resourceType": "Consent",
        "status": status,
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": f"Patient/{RECORD}"},
        "policy": [{"uri": "urn:fhirshield:demo:privacy-policy"}],
        "provision": provision,
    }


def hidden(records: list[dict[str, Any]]) -> Iterator[str]:
    """What the journal says was hidden, by rule."""
    for record in records:
        if record.get("redacted") or record.get("withheld"):
            who = "/".join(r for r in record.get("roles", ()) if r != "practitioner") or record.get("client", "")
            what = [f"{count} by {rule}" for rule, count in record.get("redacted", {}).items()]
            what += [f"{count} withheld: {reason}" for reason, count in record.get("withheld", {}).items()]
            yield f"  {who:<24} {record['interaction']:<11} {record.get('type', ''):<18} {'; '.join(what)}"


def _title(text: str) -> str:
    return f"\n{text}\n{'=' * len(text)}"


def table(rows: list[list[str]], width: int = 18) -> list[str]:
    """Rows of text, aligned."""
    cut = [[cell if len(cell) <= width else cell[: width - 1] + "…" for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cut) for i in range(len(cut[0]))]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cut]


def _count(answer: Response) -> str:
    return str(len(json.loads(answer.body).get("entry", []))) if answer.status == 200 else f"({answer.status})"


def _name(patient: Any) -> str | None:
    names = patient.get("name", [])
    return f"{names[0].get('given', [''])[0]} {names[0].get('family', '')}" if names else None


def _identifier(patient: Any, system: str) -> str | None:
    found = [i for i in patient.get("identifier", []) if system in i.get("system", "")]
    return found[0].get("value") if found else None


def _telecom(patient: Any, system: str) -> str | None:
    found = [t for t in patient.get("telecom", []) if t.get("system") == system]
    return found[0].get("value") if found else None
