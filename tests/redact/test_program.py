"""The compiled program and the reference interpreter agree, on generated resources of every R4 type."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest

from fhirshield.errors import PathError
from fhirshield.fhir.definitions import Type, resource_types, type_of
from fhirshield.fhir.path import Path, parse, targets
from fhirshield.model import Generalize, Hash, Mask, Obligation, Operation, Remove, Replace
from fhirshield.policy.operations import check_fit
from fhirshield.redact.mend import ResourceDropped, carry_out
from fhirshield.redact.operations import Tools
from fhirshield.redact.place import Change
from fhirshield.redact.program import Program
from tests.generate import Generator
from tests.parts import count
from tests.reference import Dropped, interpret

TOOLS = Tools(dt.date(2026, 1, 5), lambda value: "#" + value.hex()[:30])
OPERATIONS: tuple[Operation, ...] = (
    Remove(), Remove(), Remove(drop=True), Mask(0, 4, False, 8), Mask(2, 2, True, 8), Mask(), Hash(),
    Generalize("year"), Generalize("month", 89), Generalize("age", 89), Generalize("zip3"), Generalize("band", 0, 10),
    Generalize("band", 0, 20), Replace('"x"'), Replace('"y"'), Replace("7"),
)  # fmt: skip


def random_obligations(generator: Generator, name: str, most: int) -> list[Obligation]:
    """Obligations that load: random paths with random filters, random operations that fit."""
    found: list[Obligation] = []
    for _ in range(most * 6):
        if len(found) == most:
            break
        path = random_path(generator, name)
        operation = generator.random.choice(OPERATIONS)
        try:
            for target in targets(path, name):
                check_fit(target, operation, path.text)
        except PathError:
            continue
        found.append(Obligation("rule", name, path, operation))
    return found


def random_path(generator: Generator, name: str) -> Path:
    """A path through the model, with filters now and then."""
    chance = generator.random
    kind = type_of(name)
    text = "$"
    for _ in range(chance.randint(1, 4)):
        assert kind is not None
        elements = [e for e in kind.elements.values() if e.type not in {"Resource", "xhtml"} and e.name != "id"]
        if not elements:
            break
        element = chance.choice(elements)
        text += f".{element.name}"
        kind = type_of(element.type)
        last = kind is None or kind.kind == "primitive" or chance.random() < 0.25
        if element.many and (not last or chance.random() < 0.7):
            text += random_filter(generator, kind) if chance.random() < 0.5 else "[*]"
        if last:
            break
    return parse(text)


def random_filter(generator: Generator, kind: Type | None) -> str:
    chance = generator.random
    if kind is None or kind.kind == "primitive":
        return "[*]"
    single = [e for e in kind.elements.values() if not e.many and e.type in {"string", "code", "uri"}]
    parts = []
    for _ in range(chance.randint(1, 2)):
        if single and chance.random() < 0.7:
            element = chance.choice(single)
            value = chance.choice(("home", "http://hl7.org/fhir/sid/us-ssn", "a"))
            parts.append(f"@.{element.name}{chance.choice(('==', '!=', '<'))}'{value}'")
        else:
            element = chance.choice(list(kind.elements.values()))
            parts.append(chance.choice(("", "!")) + f"@.{element.name}")
    return f"[?{chance.choice((' && ', ' || ')).join(parts)}]"


def run(resource: dict[str, Any], obligations: list[Obligation]) -> dict[str, Any]:
    changes: list[Change] = []
    Program(resource["resourceType"], tuple(obligations)).follow(resource, TOOLS, changes, {})
    carry_out(changes, TOOLS, {})
    return resource


@pytest.mark.promise
@pytest.mark.parametrize("name", sorted(resource_types()))
def test_program_agrees_with_the_reference_interpreter(name: str) -> None:
    for seed in range(count(60, 8)):
        generator = Generator(hash((seed, len(name))) & 0xFFFF, density=0.5)
        resource = generator.resource(name)
        obligations = random_obligations(generator, name, 6)
        try:
            expected: Any = interpret(copy.deepcopy(resource), obligations, TOOLS)
        except Dropped:
            expected = None
        try:
            found: Any = run(copy.deepcopy(resource), obligations)
        except ResourceDropped:
            found = None
        assert found == expected, [(o.path.text, o.operation) for o in obligations]


@pytest.mark.parametrize("name", ["Patient", "Observation", "Claim", "Questionnaire"])
def test_order_of_obligations_does_not_matter(name: str) -> None:
    for seed in range(count(300, 40)):
        generator = Generator(seed, density=0.5)
        resource = generator.resource(name)
        obligations = random_obligations(generator, name, 5)
        results = []
        for order in (obligations, obligations[::-1], [*obligations, *obligations]):
            try:
                results.append(run(copy.deepcopy(resource), order))
            except ResourceDropped:
                results.append({})
        assert results[0] == results[1] == results[2], [(o.path.text, o.operation) for o in obligations]
