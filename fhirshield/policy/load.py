"""Rule files to Rules: every fault in every file, with line and remedy, before any is used."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fhirshield import document
from fhirshield.document import Document, Key
from fhirshield.errors import CriteriaError, Fault, MalformedFhir, OperatorError, PathError
from fhirshield.fhir import criteria as fhir_criteria
from fhirshield.fhir import json as fhir_json
from fhirshield.fhir import path as fhir_path
from fhirshield.fhir.criteria import Criteria
from fhirshield.fhir.definitions import Element, resource_types, type_of
from fhirshield.fhir.glance import Code
from fhirshield.fhir.operations import NEVER, OPERATIONS
from fhirshield.fhir.subjects import has_subject
from fhirshield.fhir.terminology import Terminology
from fhirshield.fhir.v3 import RANKS, is_sensitivity, system_of
from fhirshield.model import PLACEHOLDER, Emergency, Generalize, Mask, Obligation, Opaque, Relationship, Remove
from fhirshield.policy.condition import Condition, ConditionError, compile_condition
from fhirshield.policy.operations import OR_WITHHOLD, check_fit, operation_of
from fhirshield.policy.rule import (
    BIRTH,
    INTERACTIONS,
    LINK,
    PART,
    POLICY_TYPES,
    READING,
    RESERVED,
    SECURITY,
    Authentication,
    Clearance,
    ConsentElement,
    Grant,
    Operation,
    Reveal,
    Rule,
    Rules,
    Who,
)
from fhirshield.policy.sensitivity import Row, Sensitivity, Source, compiled, read_list
from fhirshield.settings import duration, size


def load(path: Path) -> Rules:
    """Read a rule file, or all ``*.yaml`` of a folder (its ``tests/`` aside). Raises OperatorError with every fault."""
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise OperatorError([Fault(str(path), "", "no rule file here", "add a *.yaml file, or name another folder")])
    return _assemble([(str(file), _read(file)) for file in files])


def loads(text: str, name: str = "rules.yaml") -> Rules:
    """The same for text at hand."""
    return _assemble([(name, text)])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError([Fault(str(file), "", f"cannot be read: {error}", "give a UTF-8 file")]) from None


def _assemble(texts: list[tuple[str, str]]) -> Rules:
    faults: list[Fault] = []
    rules: list[Rule] = []
    extensions: set[str] = set()
    digest = hashlib.sha256()
    labelled: list[tuple[str, Sensitivity]] = []
    relationships: list[Relationship] = []
    elements: list[ConsentElement] = []
    for name, text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
        try:
            found, wrong = document.parse(text, name, "rules")
        except OperatorError as error:
            faults += error.faults
            continue
        faults += wrong
        rows = found.value.get("rules") if isinstance(found.value, dict) else None
        known = _terminology(found, name, faults, digest)
        for index, row in enumerate(rows if isinstance(rows, list) else ()):
            if not any(fault.path.startswith(f"rules[{index}]") for fault in wrong):
                rules.append(_rule(found, index, row, faults, known))
        if not wrong:
            relationships += _relationships(found, faults)
            elements += _consent_elements(found, faults, known, {name: one.id for one in elements for name in one.names})
        if not wrong and "sensitivity" in found.value:
            labelled.append((found.where(("sensitivity",)), _sensitivity(found, name, faults, digest)))
        if not wrong:
            extensions.update(found.value.get("modifier_extensions", ()))
    seen: dict[str, Rule] = {}
    for rule in rules:
        if rule.id == RESERVED:
            faults.append(Fault(rule.where, "id", f"`{RESERVED}` stands in records for what no rule lets pass", "give it another"))
        if rule.id in seen:
            faults.append(Fault(rule.where, "id", f"`{rule.id}` is taken at {seen[rule.id].where}", "give each its own"))
        seen[rule.id] = rule
    for where, _ in labelled[1:]:
        faults.append(Fault(where, "sensitivity", f"is said at {labelled[0][0]} already", "keep one of them"))
    for rule in rules if not labelled else ():
        if rule.clearance is not None:
            faults.append(Fault(rule.where, "clearance", "nothing is labelled here", "say `sensitivity`, with lists of codes"))
    faults += _unrelated(rules, relationships)
    if faults:
        raise OperatorError(sorted(faults, key=_place))
    sensitivity = labelled[0][1] if labelled else None
    return Rules(tuple(rules), frozenset(extensions), digest.hexdigest(), sensitivity, tuple(relationships), tuple(elements))


_PLACES = "{fhirUser}, {fhirUser.id}, {organization}, {patient} or a mapped claim"


def _relationships(found: Document, faults: list[Fault]) -> list[Relationship]:
    """Relationships, each query of which can be asked and judged here, and gives resources about patients."""
    made = []
    for name, row in found.value.get("relationships", {}).items():
        types = set()
        for place, text in enumerate(row["patients_of"]):
            key: Key = ("relationships", name, "patients_of", place)
            try:
                asked = fhir_criteria.parse(PLACEHOLDER.sub(lambda m: "x" if m[1].endswith(".id") else "Practitioner/x", text))
            except CriteriaError as error:
                faults.append(found.fault(key, str(error), "see *Relationships* in docs/rules.md"))
                continue
            types.add(asked.type)
            if not asked.items or "{" not in text:
                faults.append(found.fault(key, f"`{text}` does not speak of the caller", f"name {_PLACES}"))
            elif not has_subject(asked.type) or asked.type == "Patient" or re.search(r"[{}]", PLACEHOLDER.sub("", text)):
                remedy = f"ask for a type with a patient, by {_PLACES}"
                faults.append(found.fault(key, f"`{text}` leads from the caller to no patients", remedy))
        made.append(Relationship(name, tuple(row["patients_of"]), duration(row.get("max_age", "30s")), frozenset(types)))
    return made


def _consent_elements(
    found: Document, faults: list[Fault], known: Terminology, taken: dict[Code | str, str]
) -> list[ConsentElement]:
    """Elements that Consents may deny; each code or expression stands for one of them."""
    made = []
    for place, row in enumerate(found.value.get("consent_elements", ())):
        key: Key = ("consent_elements", place)
        obligations: list[Obligation] = []
        disclosures: list[str] = []
        for number, redaction in enumerate(row["redact"]):
            at: Key = (*key, "redact", number)
            if "withhold_type" in redaction:
                text = "a Consent withholds resources by its own criteria; here it hides elements"
                faults.append(found.fault(at, text, "remove `withhold_type`"))
                continue
            own: list[Fault] = []
            _redaction(found, at, row["id"], redaction, own, obligations, set(), disclosures, known)
            faults += [replace(one, remedy=one.remedy.replace(OR_WITHHOLD, "")) for one in own]
        if not row.keys() & {"codes", "expressions"}:
            text = "no provision can name it"
            faults.append(found.fault(key, text, "say by which `codes` or `expressions` provisions do"))
        if row["id"] in taken.values() or row["id"] == RESERVED:
            faults.append(found.fault((*key, "id"), f"`{row['id']}` is taken", "give each its own"))
        codes = [text.rpartition("|") for text in row.get("codes", ())]
        names = frozenset[Code | str]((*((system_of(system), code) for system, _, code in codes), *row.get("expressions", ())))
        for name in sorted(names & taken.keys(), key=str):
            text = f"`{name if isinstance(name, str) else '|'.join(name)}` stands for `{taken[name]}` already"
            faults.append(found.fault(key, text, "give each element a code of its own"))
        taken |= dict.fromkeys(names, row["id"])
        bound = tuple(replace(one, consent=names) for one in dict.fromkeys(obligations))
        made.append(ConsentElement(row["id"], names, bound, found.where(key), tuple(dict.fromkeys(disclosures))))
    return made


def _unrelated(rules: list[Rule], relationships: list[Relationship]) -> list[Fault]:
    known = {one.name for one in relationships}
    faults = []
    for rule in rules:
        for grant in (rule.allow, rule.deny):
            if grant is not None and grant.related and grant.related not in known:
                text = f"no relationship `{grant.related}`"
                faults.append(Fault(rule.where, "related", text, f"known: {', '.join(sorted(known)) or 'none'}"))
        inputs = rule.allow.policy_inputs if rule.allow else frozenset()
        for name in sorted(inputs - {LINK, SECURITY, PART, BIRTH} - POLICY_TYPES - {t for one in relationships for t in one.types}):
            faults.append(Fault(rule.where, "policy_inputs", f"no decision reads `{name}`", "remove it"))
    return faults


def _sensitivity(found: Document, name: str, faults: list[Fault], digest: Any) -> Sensitivity:
    """What codes tell of; the lists are part of what the rules mean."""
    row = found.value["sensitivity"]
    rows: list[Row] = []
    for place, file in enumerate(row["lists"]):
        key: Key = ("sensitivity", "lists", place)
        try:
            content = (Path(name).parent / file).read_bytes()
            digest.update(hashlib.sha256(content).digest())
            rows += read_list(content.decode())
        except OSError as error:
            faults.append(found.fault(key, f"`{file}` cannot be read: {error.strerror}", "name a file beside this one"))
        except (UnicodeDecodeError, CriteriaError) as error:
            faults.append(found.fault(key, f"`{file}`: {error}", "see *Sensitivity* in docs/rules.md"))
    inherit: dict[str, list[tuple[str, ...]]] = {}
    for place, text in enumerate(row.get("inherit", ())):
        kind, _, path = text.partition(".")
        if _is_reference(kind, path):
            inherit.setdefault(kind, []).append(tuple(path.split(".")))
        else:
            message = f"labels run forward, over references that a resource holds itself: `{text}` is none"
            faults.append(
                found.fault(("sensitivity", "inherit", place), message, "name an element such as DiagnosticReport.result")
            )
    minors = row.get("minors")
    for part, kinds in (("confidentiality", row.get("confidentiality", ())), ("minors", minors["categories"] if minors else ())):
        for kind in kinds:
            if not is_sensitivity(kind):
                faults.append(found.fault(("sensitivity", part), f"`{kind}` is no ActCode of sensitive information", _KINDS))
    sources = tuple(
        Source(one["label"], frozenset(one.get("parties", ())), tuple(one.get("meta_source", ()))) for one in row.get("sources", ())
    )
    return compiled(
        rows, row.get("confidentiality", {}), {kind: tuple(paths) for kind, paths in inherit.items()}, row.get("default", "N"),
        (minors["under"], frozenset(minors["categories"])) if minors else None, sources,
    )  # fmt: skip


_KINDS = "one of those below InformationSensitivityPolicy: PSY, HIV, SUD, SEX …"


def _is_reference(kind: str, path: str) -> bool:
    """Whether a path of a type ends at a Reference of R4."""
    current = kind
    for name in path.split("."):
        known = type_of(current)
        element = known.elements.get(name) if known else None
        if element is None:
            return False
        current = element.type
    return kind in resource_types() and current == "Reference"


def _terminology(found: Document, name: str, faults: list[Fault], digest: Any) -> Terminology:
    """What a file pins; it is part of what the rules mean, so of their digest too."""
    files = found.value.get("terminology") if isinstance(found.value, dict) else None
    resources = []
    for place, file in enumerate(files if isinstance(files, list) else ()):
        try:
            content = (Path(name).parent / str(file)).read_bytes()
            digest.update(hashlib.sha256(content).digest())
            resources.append(fhir_json.decode(content))
        except OSError as error:
            faults.append(
                found.fault(("terminology", place), f"`{file}` cannot be read: {error.strerror}", "name a file beside this one")
            )
        except MalformedFhir as error:
            faults.append(found.fault(("terminology", place), f"`{file}` is {error}", "give FHIR R4 JSON"))
    try:
        return Terminology(resources)
    except CriteriaError as error:
        faults.append(found.fault(("terminology",), str(error), "see *Criteria* in docs/rules.md"))
    except (KeyError, TypeError, AttributeError, RecursionError):
        faults.append(found.fault(("terminology",), "a resource has not the shape that R4 gives it", "validate it"))
    return Terminology()


def _place(fault: Fault) -> tuple[str, int]:
    file, _, line = fault.where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (fault.where, 0)


def _rule(found: Document, index: int, row: Any, faults: list[Fault], known: Terminology) -> Rule:
    key: Key = ("rules", index)
    rule_id = row["id"]
    obligations: list[Obligation] = []
    withheld: set[str] = set()
    disclosures: list[str] = []
    for place, redaction in enumerate(row.get("redact", ())):
        _redaction(found, (*key, "redact", place), rule_id, redaction, faults, obligations, withheld, disclosures, known)
    reveal = _reveal(found, (*key, "reveal"), row.get("reveal"), faults, disclosures)
    if "opaque" in row.get("allow", {}):
        disclosures.append(f"content that nothing looks into: {', '.join(row['allow']['opaque']['types'])}, and where it is kept")
    if "authentication" in row["who"] and row.keys() & {"deny", "redact"}:
        text = "a deny or a redaction holds however weakly a caller authenticated"
        faults.append(found.fault((*key, "who", "authentication"), text, "give it a rule of its own, without `authentication`"))
    return Rule(
        id=rule_id,
        where=found.where(key),
        description=row.get("description", ""),
        who=_who(found, (*key, "who"), row["who"], faults),
        allow=_grant(found, (*key, "allow"), row.get("allow"), faults, known),
        deny=_grant(found, (*key, "deny"), row.get("deny"), faults, known),
        redact=tuple(dict.fromkeys(obligations)),
        withheld=frozenset(withheld),
        disclosures=tuple(dict.fromkeys(disclosures)),
        reveal=reveal,
        emergency=_emergency(found, (*key, "break_glass"), rule_id, row.get("break_glass"), faults),
        lift=row.get("lift", ""),
        clearance=_clearance(found, (*key, "clearance"), row.get("clearance"), faults),
    )


def _emergency(found: Document, key: Key, rule_id: str, row: Any, faults: list[Fault]) -> Emergency | None:
    if row is None:
        return None
    for place, name in enumerate(row["resources"]):
        if name != "*" and name not in resource_types():
            faults.append(found.fault((*key, "resources", place), f"`{name}` is not a resource type of R4", "see its spelling"))
    return Emergency(
        rule_id, frozenset(row["resources"]), frozenset(row.get("interactions", READING)), frozenset(row["replaces"]),
        duration(row["time"]), row["limit"], duration(row["per"]),
    )  # fmt: skip


GRADES = {"public": "L", "internal": "N", "sensitive": "R", "highly-sensitive": "V"}
"""Grades of classification as ranks of confidentiality: the highest that each holds."""


def _clearance(found: Document, key: Key, row: Any, faults: list[Fault]) -> Clearance | None:
    if row is None:
        return None
    kinds = frozenset(row.get("categories", ()))
    for kind in sorted(kinds - {"*"}):
        if not is_sensitivity(kind):
            faults.append(found.fault((*key, "categories"), f"`{kind}` is no ActCode of sensitive information", _KINDS))
    rank = row["confidentiality"] if "confidentiality" in row else GRADES[row["grade"]]
    return Clearance(RANKS.index(rank), kinds - {"*"}, "*" in kinds)


def _who(found: Document, key: Key, row: Any, faults: list[Fault]) -> Who:
    roles = frozenset(row["roles"])
    if "*" in roles and len(roles) > 1:
        faults.append(found.fault((*key, "roles"), "`*` already means everybody", "keep `*` alone, or drop it"))
    conditions: dict[str, Condition | None] = {"when": None, "unless": None}
    for name in conditions:
        if name in row:
            try:
                conditions[name] = compile_condition(row[name])
            except ConditionError as error:
                faults.append(found.fault((*key, name), str(error), "see the conditions in docs/rules.md"))
    return Who(
        None if "*" in roles else roles,
        frozenset(row["purposes"]) if "purposes" in row else None,
        conditions["when"],
        conditions["unless"],
        _authentication(row.get("authentication")),
    )


def _authentication(row: Any) -> Authentication | None:
    if row is None:
        return None
    age = duration(row["max_age"]) if "max_age" in row else 0.0
    return Authentication(tuple(row.get("acr", ())), frozenset(row.get("amr", ())), age)


def _grant(found: Document, key: Key, row: Any, faults: list[Fault], known: Terminology) -> Grant | None:
    if row is None:
        return None
    names = frozenset(row["interactions"])
    selectors = _selectors(found, (*key, "resources"), row["resources"], faults, known)
    inputs = frozenset(row.get("policy_inputs", ()))
    writes = names & {"*", "create", "update", "patch", "delete"}
    if inputs and not writes:
        faults.append(found.fault((*key, "policy_inputs"), "nothing is written under this rule", "add an interaction that writes"))
    if row.get("delete_unseen") and not names & {"*", "delete"}:
        faults.append(found.fault((*key, "delete_unseen"), "nothing is deleted under this rule", "add `delete`"))
    operations = tuple(_operation(found, (*key, "operations", i), one, faults) for i, one in enumerate(row.get("operations", ())))
    names = frozenset(INTERACTIONS) if "*" in names else names
    opaque = row.get("opaque")
    if opaque and any(selector.items for selector in selectors):
        faults.append(found.fault((*key, "opaque"), "`opaque` goes with types, not with criteria", "give it a rule of its own"))
    passed = Opaque(frozenset(opaque["types"]), size(opaque["most"]) if "most" in opaque else 0) if opaque else None
    related = row.get("related", "")
    hard = row.get("hard", False)
    if hard and not related:
        faults.append(found.fault((*key, "hard"), "no emergency lifts a deny that is in no relationship", "remove it"))
    return Grant(names, tuple(selectors), inputs, row.get("delete_unseen", False), operations, hard, related, passed)


def _operation(found: Document, key: Key, row: Any, faults: list[Fault]) -> Operation:
    name = row["name"]
    if name in NEVER or name in OPERATIONS:
        why = "is served by itself, to whoever may read" if name in OPERATIONS else "cannot be opened: its answers cannot be judged"
        faults.append(found.fault((*key, "name"), f"`{name}` {why}", "remove it"))
    types = {part: frozenset(row.get(part, ())) for part in ("input", "output", "affects")}
    for part, named in types.items():
        for unknown in sorted(named - resource_types()):
            faults.append(found.fault((*key, part), f"`{unknown}` is not a resource type of R4", "see its spelling"))
    return Operation(name, **types)


def _reveal(found: Document, key: Key, row: Any, faults: list[Fault], disclosures: list[str]) -> Reveal | None:
    if row is None:
        return None
    for place, name in enumerate(row["resources"]):
        if name != "*" and name not in resource_types():
            faults.append(found.fault((*key, "resources", place), f"`{name}` is not a resource type of R4", "see its spelling"))
    for name in row["meta"]:
        disclosures.append(f"`meta.{name}` of redacted {', '.join(row['resources'])}: changes of what is hidden show in it")
    return Reveal(frozenset(row["resources"]), frozenset(row["meta"]))


def _selectors(found: Document, key: Key, texts: list[str], faults: list[Fault], known: Terminology) -> list[Criteria]:
    result = []
    for place, text in enumerate(texts):
        try:
            result.append(fhir_criteria.parse(text, known))
        except CriteriaError as error:
            faults.append(found.fault((*key, place), str(error), "see the criteria in docs/rules.md"))
    return result


def _redaction(
    found: Document, key: Key, rule_id: str, row: Any, faults: list[Fault],
    obligations: list[Obligation], withheld: set[str], disclosures: list[str], known: Terminology,
) -> None:  # fmt: skip
    selectors = _selectors(found, (*key, "resources"), row["resources"], faults, known)
    try:
        path = fhir_path.parse(row["path"])
        operation = operation_of(row)
    except PathError as error:
        faults.append(found.fault((*key, "path"), str(error), error.remedy))
        return
    if row.get("withhold_type"):
        withheld.update(s.type for s in selectors if not s.items)
        if any(s.items for s in selectors):
            faults.append(found.fault(key, "`withhold_type` goes with types, not with criteria", "drop the criteria"))
        return
    for selector in selectors:
        for resource_type in _types(selector, path):
            try:
                targets = fhir_path.targets(path, resource_type)
                for target in targets:
                    check_fit(target, operation, path.text)
            except PathError as error:
                remedy = error.remedy if selector.type != "*" else f"{error.remedy}; or name the types instead of `*`"
                faults.append(found.fault((*key, "path"), str(error), remedy))
                break
            criteria = Criteria(resource_type, selector.items) if selector.items else None
            obligations.append(Obligation(rule_id, resource_type, path, operation, criteria))
            if isinstance(operation, Remove) and operation.drop and any(len(t.chain) == 1 for t in targets):
                disclosures.append(f"`{path.text}` with `drop`: whether a {resource_type} has it shows in its absence")
    if isinstance(operation, Mask) and operation.keep_length:
        disclosures.append(f"`{path.text}` masked with its length kept")
    if isinstance(operation, Generalize) and operation.to == "age":
        disclosures.append(f"`{path.text}` is shown in full up to the cap of {operation.cap}")


def _types(selector: Criteria, path: fhir_path.Path) -> list[str]:
    """The types that a selector means for a path: for ``*`` those that have its first element at all."""
    if selector.type != "*":
        return [selector.type]
    first = path.segments[0]
    names = {name.removeprefix("_") for name in first.names} if isinstance(first, fhir_path.Name) else set()
    having = [name for name in sorted(resource_types()) if names & set(_elements(name))]
    return having or ["Patient"]


def _elements(resource_type: str) -> Mapping[str, Element]:
    found = type_of(resource_type)
    return found.elements if found else {}
