"""The R4 tables are what the published definitions say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fhirshield.fhir.definitions import pattern_of, resource_types, tables, type_of
from fhirshield.fhir.search_parameters import search_parameter, search_parameters, subject_parameter, subject_ways
from tests.parts import ROOT, missing, need


def test_tables_are_generated_from_the_definitions(tmp_path: Path) -> None:
    need("mvn", "the definitions come by Maven")
    found = subprocess.run([ROOT / "tools/fetch-definitions"], capture_output=True, text=True, check=False)
    if found.returncode:
        missing("the definitions cannot be fetched")
    output = tmp_path / "r4.json"
    subprocess.run([sys.executable, ROOT / "tools/tables.py", found.stdout.strip(), output], check=True)
    assert output.read_bytes() == (ROOT / "fhirshield/fhir/tables/r4.json").read_bytes()


def test_every_type_can_be_read() -> None:
    assert len(resource_types()) == 146
    for name, row in tables()["types"].items():
        kind = type_of(name)
        assert kind is not None
        for element in kind.elements.values() if row["kind"] != "primitive" else ():
            assert type_of(element.type) is not None, (name, element)


def test_every_search_parameter_leads_to_elements() -> None:
    for name in resource_types():
        for code in search_parameters(name):
            parameter = search_parameter(name, code)
            assert parameter is not None
            assert parameter.ways or code in {"_text", "_content", "_query"} or parameter.type in {"composite", "special"}


def test_subjects_are_not_other_memberships() -> None:
    assert subject_parameter("Observation") == "patient"
    assert [way.names for way in subject_ways("Observation")] == [("subject",)]
    assert [way.names for way in subject_ways("Coverage")] == [("beneficiary",)]
    assert subject_ways("Device") == subject_ways("Provenance") == subject_ways("Group") == ()
    assert pattern_of("id") is not None
