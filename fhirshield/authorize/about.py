"""The resource's side of a decision: whom it is about, when, what it names, how it is labelled. Worked out when first asked."""

from __future__ import annotations

import datetime as dt
from functools import cached_property
from typing import Any, cast

from fhirshield.authorize.labels import labels_of, unlabelled
from fhirshield.fhir.glance import Glance, Page, glance
from fhirshield.fhir.ordered import date_span
from fhirshield.fhir.reference import Literal, literal
from fhirshield.fhir.search_parameters import SearchParameter, reader, search_parameter
from fhirshield.model import Facts, Labels
from fhirshield.policy.sensitivity import Sensitivity

Times = list[tuple[Any, Any] | None]
"""First and last instants; None for what cannot be read."""
_WHEN = (
    "date", "onset-date", "period", "authoredon", "authored", "created", "occurrence", "recorded-date", "issued", "whenhandedover",
    "asserted-date", "effective", "sent", "received",
)  # fmt: skip
"""Search parameters that say when what a resource tells of happened, the first that a type has."""
_CODES = ("code", "vaccine-code", "medication", "type", "class", "service-type", "category")
"""Search parameters that say what a resource is of, the first that it has a value of."""
_AUTHORS = ("author", "performer", "recorder", "asserter", "requester", "enterer", "informationSource", "provider", "authority")
"""Elements that say from whom a resource comes."""
_BY = ("author", "performer", "recorder", "asserter", "requester")
"""Search parameters of types that say so."""


_UNASKED = object()


class About:
    """One resource, as it stands before anything is redacted."""

    def __init__(
        self, resource: Any, sensitivity: Sensitivity | None, bases: tuple[str, ...], facts: Facts, today: dt.date,
        page: Page | None = None,
    ) -> None:  # fmt: skip
        """``page``: what it came on, where that is at hand."""
        self._today = today
        self._page = page
        self._labels: Labels | object | None = _UNASKED
        self.resource = resource
        self.type: str = resource["resourceType"]
        self.bases = bases
        self.facts = facts
        self._sensitivity = sensitivity
        self.said: dict[Any, Any] = {}
        """What provisions said of it."""

    @property
    def labels(self) -> Labels | None:
        """How sensitive it is; None where what that rests on was not gathered."""
        if self._labels is _UNASKED:
            plain = unlabelled(self.resource, self._sensitivity, self._page)
            self._labels = plain or labels_of(self.resource, self.seen, self._sensitivity, self.facts, self.bases, self._today)
        return cast("Labels | None", self._labels)

    @cached_property
    def name(self) -> Literal | None:
        """Which resource it is; None for one without an id."""
        identity = self.resource.get("id")
        return Literal(self.type, identity) if isinstance(identity, str) else None

    @cached_property
    def seen(self) -> Glance:
        """All that it names."""
        return glance(self.resource)

    @cached_property
    def names(self) -> frozenset[Literal]:
        """The resources here that it refers to."""
        return frozenset(one for text in self.seen.references if (one := literal(text, self.bases)) is not None)

    @cached_property
    def codes(self) -> frozenset[tuple[str, str]] | None:
        """The codes of what it is of; None where it says so in words alone, or not at all."""
        for name in _CODES:
            parameter = search_parameter(self.type, name)
            if parameter is None or parameter.type != "token":
                continue
            values = [value for _, value in reader(parameter.ways)(self.resource)]
            found = {code for value in values for code in _codes(value)}
            if values:
                return frozenset(found) or None
        return None

    @cached_property
    def is_uncoded(self) -> bool:
        """Whether its type says what a resource is of by a code, and it has none itself."""
        known = search_parameter(self.type, "code")
        return known is not None and known.type == "token" and not self.codes

    @cached_property
    def times(self) -> Times:
        """When what it tells of happened."""
        for name in _WHEN:
            parameter = search_parameter(self.type, name)
            if parameter is not None and parameter.type == "date" and parameter.ways:
                return self._times(parameter)
        return []

    def _times(self, parameter: SearchParameter) -> Times:
        return [_span(value) for _, value in reader(parameter.ways)(self.resource)]

    @cached_property
    def authors(self) -> list[Literal | None]:
        """From whom it comes; None for one who is not named by a reference that is known here."""
        found: list[Literal | None] = []
        for element in _AUTHORS:
            value = self.resource.get(element)
            for one in value if type(value) is list else [value] if value is not None else []:
                row = one.get("actor", one) if type(one) is dict else None
                found.append(literal(row.get("reference"), self.bases) if type(row) is dict else None)
        return found

    @cached_property
    def has_authors(self) -> bool:
        """Whether its type says from whom a resource comes."""
        return any(
            search_parameter(self.type, name) is not None for name in ("author", "performer", "recorder", "asserter", "requester")
        )


def _codes(value: Any) -> list[tuple[str, str]]:
    if type(value) is str:
        return [("", value)]
    codings = value.get("coding", [value]) if type(value) is dict else []
    rows = [c for c in codings if type(c) is dict] if type(codings) is list else []
    return [(str(c.get("system", "")), str(c["code"])) for c in rows if type(c.get("code")) is str]


def _span(value: Any) -> tuple[Any, Any] | None:
    if type(value) is str:
        return date_span(value)
    if type(value) is not dict:
        return None
    low, high = (date_span(str(value[name])) if name in value else None for name in ("start", "end"))
    if low is None or ("end" in value and high is None):
        return None
    return (low[0], high[1] if high else low[1]) if "end" in value else None
