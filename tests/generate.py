"""Random FHIR resources of any R4 type, from the tables: every element may be there, datatypes filled to a depth."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

from fhirshield.fhir.definitions import Element, codes_of, type_of

PRIMITIVES: dict[str, Any] = {
    "boolean": lambda r: r.choice((True, False)),
    "integer": lambda r: r.randint(-200, 200),
    "unsignedInt": lambda r: r.randint(0, 200),
    "positiveInt": lambda r: r.randint(1, 200),
    "decimal": lambda r: Decimal(r.choice(("1.10", "0.5", "98.60", "12", "-3.0", "120.25"))),
    "string": lambda r: r.choice(("Quill", "a b", "12345", "05401", "320-55-1234", "x")) + str(r.randint(0, 99)),
    "markdown": lambda r: "note " + str(r.randint(0, 99)),
    "uri": lambda r: r.choice(("http://a.example", "http://hl7.org/fhir/sid/us-ssn", "urn:x:1")),
    "url": lambda r: "http://a.example/u",
    "canonical": lambda r: "http://a.example/c",
    "oid": lambda r: "urn:oid:1.2.3",
    "uuid": lambda r: "urn:uuid:c757873d-ec9a-4326-a141-556f43239520",
    "id": lambda r: f"id-{r.randint(0, 99)}",
    "code": lambda r: r.choice(("home", "work", "a", "b")),
    "base64Binary": lambda r: "AAAA",
    "date": lambda r: r.choice(("1931-04-02", "2001-12", "1999")),
    "dateTime": lambda r: r.choice(("1931-04-02", "2001-12", "1999", "2020-03-04T10:11:12Z")),
    "instant": lambda r: "2020-03-04T10:11:12.123Z",
    "time": lambda r: "10:11:12",
    "xhtml": lambda r: '<div xmlns="http://www.w3.org/1999/xhtml">x</div>',
}


class Generator:
    """Makes resources; the same for the same seed. ``density`` is how likely an optional element is there."""

    def __init__(self, seed: int, density: float = 0.35, depth: int = 4) -> None:
        self.random = random.Random(seed)
        self._density = density
        self._depth = depth

    def resource(self, name: str) -> dict[str, Any]:
        """One resource of that type."""
        made = self._object(name, 0)
        return {"resourceType": name, "id": f"r{self.random.randint(0, 9)}", **made}

    def _object(self, name: str, depth: int) -> dict[str, Any]:
        kind = type_of(name)
        assert kind is not None
        made: dict[str, Any] = {}
        chosen: set[str] = set()
        for element in kind.elements.values():
            if element.name in {"id", "contained", "modifierExtension"} or element.type == "Resource":
                continue
            if element.choice and element.choice in chosen:
                continue
            density = self._density if not element.choice else self._density / 3
            if depth >= 2:
                density /= 2
            if element.name == "extension" or element.type == "Extension":
                density = 0.05
            if element.min == 0 and (self.random.random() > density or depth >= self._depth):
                continue
            if element.choice:
                chosen.add(element.choice)
            self._put(made, element, depth)
        return made

    def _put(self, made: dict[str, Any], element: Element, depth: int) -> None:
        count = self.random.randint(1, 3) if element.many else 1
        if element.primitive:
            values: list[Any] = [self._primitive(element) for _ in range(count)]
            siblings: list[Any] = [self._sibling() for _ in range(count)]
            values = [None if s and self.random.random() < 0.3 else v for v, s in zip(values, siblings, strict=True)]
            if element.many:
                if any(v is not None for v in values):
                    made[element.name] = values
                if any(siblings):
                    made["_" + element.name] = siblings
            else:
                if values[0] is not None:
                    made[element.name] = values[0]
                if siblings[0]:
                    made["_" + element.name] = siblings[0]
            return
        objects = [o for o in (self._object(element.type, depth + 1) for _ in range(count)) if o]
        if element.type == "Reference" and self.random.random() < 0.7:
            target = self.random.choice(element.targets or ("Patient",))
            objects = [{"reference": f"{target if target != 'Resource' else 'Patient'}/p1", **o} for o in objects or [{}]]
        if objects:
            made[element.name] = objects if element.many else objects[0]

    def _primitive(self, element: Element) -> Any:
        if element.binding and self.random.random() < 0.9:
            return self.random.choice(sorted(codes_of(element.binding)))
        return PRIMITIVES[element.type](self.random)

    def _sibling(self) -> Any:
        if self.random.random() > 0.06:
            return None
        return {"extension": [{"url": "http://a.example/e", "valueString": "beside"}]}
