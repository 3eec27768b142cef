"""Which codes tell of what: code lists as data, from which the labels of resources are computed on the way.

A list is a CSV file with the columns ``category`` (an ActCode of sensitivity), ``system``, ``kind`` (``code`` or ``prefix``) and
``code``. Categories that are one code of another system's stand in a row each.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fhirshield.errors import CriteriaError
from fhirshield.fhir.glance import Codes, within
from fhirshield.fhir.v3 import RANKS, is_sensitivity
from fhirshield.model import Labels

Code = tuple[str, str]
Row = tuple[str, str, str, str]
"""(category, system, kind, code)"""
Inherit = Mapping[str, tuple[tuple[str, ...], ...]]
"""By type, the elements whose references lead to what labels are taken from."""
ICD_10_CM = "http://hl7.org/fhir/sid/icd-10-cm"
SNOMED, LOINC, RXNORM = "http://snomed.info/sct", "http://loinc.org", "http://www.nlm.nih.gov/research/umls/rxnorm"
ALIASES = {
    "http://hl7.org/fhir/sid/icd-10": ICD_10_CM,
    "urn:oid:2.16.840.1.113883.6.90": ICD_10_CM,
    "2.16.840.1.113883.6.90": ICD_10_CM,
    "urn:oid:2.16.840.1.113883.6.3": ICD_10_CM,
    "2.16.840.1.113883.6.3": ICD_10_CM,
    "http://hl7.org/fhir/sid/icd-10-us": ICD_10_CM,
    "http://fhir.de/codesystem/bfarm/icd-10-gm": ICD_10_CM,
    "http://fhir.de/codesystem/dimdi/icd-10-gm": ICD_10_CM,
    "http://hl7.org/fhir/sid/icd-10-gm": ICD_10_CM,
    "icd-10": ICD_10_CM,
    "icd-10-cm": ICD_10_CM,
    "urn:oid:2.16.840.1.113883.6.96": SNOMED,
    "2.16.840.1.113883.6.96": SNOMED,
    "urn:oid:2.16.840.1.113883.6.1": LOINC,
    "2.16.840.1.113883.6.1": LOINC,
    "urn:oid:2.16.840.1.113883.6.88": RXNORM,
    "2.16.840.1.113883.6.88": RXNORM,
}
"""Other names of code systems; of ICD-10 and its modification for the US, which agree in what these lists name."""
KNOWN = frozenset({ICD_10_CM, SNOMED, LOINC, RXNORM})
_DOTLESS = frozenset({ICD_10_CM})
_OTHERS = (
    "http://hl7.org/fhir/", "http://terminology.hl7.org/", "http://www.ama-assn.org/go/cpt", "http://unitsofmeasure.org",
    "urn:ietf:", "urn:iso:",
)  # fmt: skip
"""How systems begin that are known to be others; a code of one that is not known is taken for one of any system's, if long."""
_ICD_10 = re.compile(r"[A-Z][0-9][0-9A-Z]{1,5}\Z")
_CONCEPT = re.compile(r"[0-9]{6,18}")
_LONG = 5
"""Characters from which a code that comes without a system is taken for one of any system's."""


@dataclass(frozen=True, slots=True)
class Source:
    """A program or source whose data carries a label of privacy law."""

    label: str
    parties: frozenset[str]
    """By reference, as resources name them."""
    meta_source: tuple[str, ...]

    def made(self, resource: Any, references: frozenset[str]) -> bool:
        """Whether a resource comes from here."""
        return not self.parties.isdisjoint(references) or any(map(self._says, within(resource)))

    def _says(self, resource: Any) -> bool:
        meta = resource.get("meta")
        said = meta.get("source") if type(meta) is dict else None
        return type(said) is str and said.startswith(self.meta_source or ("\0",))


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """Code lists, compiled; and how labels travel."""

    exact: Mapping[Code, frozenset[str]]
    prefixes: Mapping[str, tuple[tuple[str, frozenset[str]], ...]]
    """By system, the (prefix, categories)."""
    systemless: Mapping[str, frozenset[str]]
    ranks: Mapping[str, int]
    """Confidentiality by category; R where it is not said."""
    inherit: Inherit
    least: int = RANKS.index("N")
    """The confidentiality of what nothing else is known of."""
    minors: tuple[int, frozenset[str]] | None = None
    """What of these categories is about somebody younger than so many years is ADOL too."""
    sources: tuple[Source, ...] = ()
    known: dict[Code, frozenset[str]] = field(default_factory=dict, repr=False)
    """What codes that were met before tell of."""
    plain: dict[str, Labels] = field(default_factory=dict, repr=False)
    suspects: dict[bytes, bool] = field(default_factory=dict, repr=False)
    """Whether codes that were met before may be of the lists."""

    @property
    def nothing(self) -> Labels:
        """The labels of what nothing is known of."""
        found = self.plain.get("")
        if found is None:
            found = self.plain[""] = Labels(self.least, frozenset(), frozenset(), whole=True)
        return found

    def kinds_of(self, codings: Iterable[Code]) -> set[str]:
        """The categories that any of these codes tells of."""
        found: set[str] = set()
        for coding in codings:
            known = self.known.get(coding)
            if known is None:
                if len(self.known) > _MOST_KNOWN:
                    self.known.clear()
                known = self.known[coding] = self._kinds(*coding)
            found |= known
        return found

    def telling(self, codes: Codes) -> Codes:
        """Those of these codes that may be of the lists, whatever their system."""
        suspects = self.suspects
        found = []
        for code in codes:
            known = suspects.get(code)
            if known is None:
                if len(suspects) > _MOST_KNOWN:
                    suspects.clear()
                known = suspects[code] = b"\\" in code or self.may_tell(code.decode())
            if known:
                found.append(code)
        return tuple(found)

    def may_tell(self, code: str) -> bool:
        """Whether a code, of whatever system, may be one of the lists."""
        plain = normal(ICD_10_CM, code)
        return (
            plain in self.systemless
            or any(one in self.systemless for one in _CONCEPT.findall(code))
            or any(
                one.startswith(normal(ICD_10_CM, prefix))
                for one in (plain, *_CONCEPT.findall(code))
                for rows in self.prefixes.values()
                for prefix, _ in rows
            )
        )

    def _kinds(self, system: str, code: str) -> frozenset[str]:
        spelled = system_of(system)
        if spelled in KNOWN or spelled.startswith(_OTHERS):
            return self._of(spelled, code)
        plain = normal(ICD_10_CM, code)
        found = set(self.systemless.get(plain, frozenset())) if len(plain) >= _LONG else set()
        if _ICD_10.match(plain) and (not spelled or len(plain) >= _LONG):
            found |= self._of(ICD_10_CM, code)
        return frozenset(found | (set(self._of(SNOMED, code)) if "|" in code else set()) | set(self._of(spelled, code)))

    def _of(self, system: str, code: str) -> frozenset[str]:
        """The categories of a code of one system; of an expression in SNOMED CT, those of all its concepts."""
        if system == SNOMED:
            return frozenset().union(*(self._listed(system, one) for one in {normal(system, code), *_CONCEPT.findall(code)}))
        return self._listed(system, normal(system, code))

    def _listed(self, system: str, plain: str) -> frozenset[str]:
        found = self.exact.get((system, plain), frozenset())
        return found.union(*(kinds for prefix, kinds in self.prefixes.get(system, ()) if plain.startswith(prefix)))

    def rank_of(self, category: str) -> int:
        """How confidential a category is."""
        return self.ranks.get(category, RANKS.index("R"))

    def inherited(self, resource: Any) -> Iterator[str]:
        """The references from which this resource, or one in it, takes labels; ``""`` for one that cannot be followed."""
        for one in within(resource) if self.inherit else ():
            kind = one["resourceType"]
            for path in self.inherit.get(kind, ()) if type(kind) is str else ():
                for value in _at(one, path):
                    text = value.get("reference") if type(value) is dict else None
                    if type(text) is str and text.startswith("#"):
                        continue  # what is contained was looked at with the whole
                    yield text if type(text) is str else ""


_MOST_KNOWN = 100_000


def _at(node: Any, path: tuple[str, ...]) -> Iterator[Any]:
    value = node.get(path[0]) if type(node) is dict else None
    for one in value if type(value) is list else [value] if value is not None else []:
        if len(path) == 1:
            yield one
        else:
            yield from _at(one, path[1:])


def normal(system: str, code: str) -> str:
    """A code as lists are compared: ICD-10 with or without its dot."""
    code = "".join(one for one in code if one.isprintable() and not one.isspace())
    return code.rstrip("+*!").replace(".", "").upper() if system in _DOTLESS else code


def system_of(text: str) -> str:
    """A code system by its first name, however it is spelled."""
    plain = text.strip().lower().partition("|")[0].rstrip("/")
    plain = "http://" + plain.removeprefix("https://") if plain.startswith("https://") else plain
    if plain.startswith(f"{SNOMED}/"):
        return SNOMED  # an edition or version of it
    return ALIASES.get(plain, plain if plain in KNOWN else text.strip())


def compiled(
    rows: Iterable[Row], ranks: Mapping[str, str], inherit: Inherit, least: str,
    minors: tuple[int, frozenset[str]] | None = None, sources: tuple[Source, ...] = (),
) -> Sensitivity:  # fmt: skip
    """Lists as one."""
    exact: dict[Code, set[str]] = {}
    prefixes: dict[tuple[str, str], set[str]] = {}
    systemless: dict[str, set[str]] = {}
    for category, system, kind, code in rows:
        system = system_of(system)
        plain = normal(system, code)
        target = prefixes if kind == "prefix" else exact
        target.setdefault((system, plain), set()).add(category)
        if kind != "prefix":
            systemless.setdefault(normal(ICD_10_CM, code), set()).add(category)
    by_system: dict[str, list[tuple[str, frozenset[str]]]] = {}
    for (system, prefix), kinds in prefixes.items():
        by_system.setdefault(system, []).append((prefix, frozenset(kinds)))
    return Sensitivity(
        {key: frozenset(kinds) for key, kinds in exact.items()},
        {system: tuple(sorted(rows)) for system, rows in by_system.items()},
        {code: frozenset(kinds) for code, kinds in systemless.items()},
        {category: RANKS.index(code) for category, code in ranks.items()},
        inherit,
        RANKS.index(least),
        minors,
        sources,
    )


def read_list(text: str) -> list[Row]:
    """The rows of a CSV list. Raises CriteriaError, naming the line."""
    rows = csv.DictReader(io.StringIO(text))
    missing = {"category", "system", "kind", "code"} - set(rows.fieldnames or ())
    if missing:
        raise CriteriaError(f"line 1: no column `{sorted(missing)[0]}`")
    found = []
    for row in rows:
        if not is_sensitivity(row["category"]):
            raise CriteriaError(f"line {rows.line_num}: `{row['category']}` is no ActCode of sensitive information")
        if row["kind"] not in {"code", "prefix"} or not row["code"] or not row["system"]:
            raise CriteriaError(f"line {rows.line_num}: a row needs a system, a kind (`code` or `prefix`) and a code")
        found.append((row["category"], row["system"], row["kind"], row["code"]))
    return found
