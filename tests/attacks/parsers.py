"""What must hold of the four parsers for any bytes; Hypothesis and the fuzzer both ask these."""

from __future__ import annotations

import json
import re
from typing import Any

from fhirshield.authenticate.compact import peek
from fhirshield.errors import CriteriaError, MalformedFhir
from fhirshield.fhir import criteria
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir.definitions import resource_types
from fhirshield.model import Refused
from fhirshield.receive.target import interaction_of, parameters_of, segments_of

ID = re.compile(r"[A-Za-z0-9\-.]{1,64}\Z")
RESOURCE = {
    "resourceType": "Observation", "id": "o", "status": "final", "subject": {"reference": "Patient/p"},
    "code": {"coding": [{"system": "http://loinc.org", "code": "1"}]}, "effectiveDateTime": "2020-01-01",
    "valueQuantity": {"value": 5, "code": "mg"}, "meta": {"security": [{"code": "R"}]},
}  # fmt: skip


def is_id(text: str) -> bool:
    return ID.match(text) is not None and text.strip(".") != ""


def target(data: bytes) -> None:
    """A target is refused, or is one interaction whose parts are nothing but FHIR's alphabet."""
    path, _, query = data.partition(b"?")
    for method in ("GET", "POST", "PUT", "DELETE"):
        try:
            found = interaction_of(method, segments_of(path), parameters_of(query), is_id)
        except Refused as refused:
            assert refused.denial.status in {400, 404, 405}
            continue
        assert not found.type or found.type == "*" or found.type in resource_types()
        for part in (found.id, found.version):
            assert not part or (ID.match(part) and part.strip("."))
        kind, _, key = found.compartment.partition("/")
        assert not found.compartment or (kind in resource_types() and is_id(key))
        assert not found.operation or re.fullmatch(r"\$[a-z][A-Za-z0-9\-]*", found.operation)
        for parameter in found.parameters:
            assert not re.search(r"[\x00-\x1f\x7f]", parameter.name + parameter.modifier + parameter.value)
            assert "=" not in parameter.name and "&" not in parameter.name


def token(data: bytes) -> None:
    """A part of a token is refused, or is an object with each name once."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return
    try:
        found = peek(text)
    except Refused as refused:
        assert refused.denial.status == 401
        return
    assert type(found) is dict


def body(data: bytes) -> None:
    """JSON is refused, or reads the same to a strict reader, and is written without loss."""
    try:
        value = fhir_json.decode_strictly(data, 64)
    except MalformedFhir as error:
        assert len(str(error)) < 100
        return
    pairs: list[int] = []

    def once(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs.append(len(found) - len(dict(found)))
        return dict(found)

    json.loads(data, object_pairs_hook=once, parse_constant=lambda name: 1 / 0)
    assert not any(pairs)
    written = fhir_json.encode(value)
    assert fhir_json.decode(written) == value and fhir_json.encode(fhir_json.decode(written)) == written


def selector(data: bytes) -> None:
    """Criteria are refused, or decide on any resource without an error."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return
    try:
        found = criteria.parse(text)
    except CriteriaError:
        return
    decide = criteria.judge(found, ("http://s/fhir",))
    for resource in (RESOURCE, {"resourceType": found.type}, {"resourceType": "Observation", "code": 7, "subject": [None]}):
        assert decide(resource) in {True, False, None}


PARSERS = {"target": target, "token": token, "body": body, "selector": selector}
SEEDS = {
    "target": [
        b"/Patient/p1",
        b"/Patient?name:exact=a%2Cb&_sort=-date",
        b"/Patient/p/Observation",
        b"/$everything",
        b"/Patient/1/_history/2",
    ],
    "token": [b"eyJhbGciOiJSUzI1NiJ9", b"eyJpc3MiOiJ4IiwiZXhwIjoxfQ", b"e30"],
    "body": [b'{"a":[1.10,1e5,"\\u00e9",null,true]}', b'{"a" : {"b":1},"c":"\\"\\":"}', b"[[[[]]]]"],
    "selector": [
        b"Observation?code=http://loinc.org|1&status:not=final",
        b"*?_security=R",
        b"Patient?name:exact=a\\,b,c",
        b"Observation?date=ge2020",
    ],
}
