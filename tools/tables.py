"""Generate ``fhirshield/fhir/tables/r4.json`` from the published FHIR R4 4.0.1 definitions.

    python tools/tables.py ARCHIVE.jar [OUTPUT]

The archive is ``hapi-fhir-validation-resources-r4`` (Maven, Apache-2.0), which carries HL7's own XML files unchanged;
``tools/fetch-definitions`` gets it. The result is one line a type, so that a difference reads as a diff.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "ca.uhn.hapi.fhir:hapi-fhir-validation-resources-r4"
VERSION = "8.8.0"
FOLDER = "org/hl7/fhir/r4/model/"
TYPES = "profile/profiles-types.xml"
RESOURCES = "profile/profiles-resources.xml"
SEARCH = "sp/search-parameters.json"
FILES = (TYPES, RESOURCES, SEARCH, "valueset/valuesets.xml", "valueset/v3-codesystems.xml")
LISTS = {
    ("Bundle", "entry"), ("snapshot", "element"), ("element", "type"), ("type", "targetProfile"), ("compose", "include"),
    ("compose", "exclude"), ("include", "concept"), ("include", "filter"), ("include", "valueSet"),
    ("CodeSystem", "concept"), ("concept", "concept"), ("CompartmentDefinition", "resource"), ("resource", "param"),
}  # fmt: skip
"""Elements that repeat, where this program reads them as lists; extensions do everywhere."""
SUBJECT_PARAMETERS = ("patient", "subject", "beneficiary", "individual")
# A Device is shown beside what refers to it, a Provenance by its targets: neither is "about" the patient it names.
NOT_SUBJECTS = {"Device", "Provenance"}
FHIRPATH_TYPE = "http://hl7.org/fhirpath/System."
FHIR_TYPE = "http://hl7.org/fhir/StructureDefinition/structuredefinition-fhir-type"


def main() -> None:
    package = Path(sys.argv[1])
    output = Path(sys.argv[2] if len(sys.argv) > 2 else "fhirshield/fhir/tables/r4.json")
    output.write_text(generate(package), encoding="utf-8")


def generate(package: Path) -> str:
    """The text of the table file for one downloaded package."""
    with zipfile.ZipFile(package) as archive:
        raw = {name: archive.read(FOLDER + name) for name in FILES}
    bundles = {name: json.loads(text) if name.endswith(".json") else _json(ET.fromstring(text)) for name, text in raw.items()}
    structures = [
        entry["resource"]
        for name in (TYPES, RESOURCES)
        for entry in bundles[name]["entry"]
        if entry["resource"]["resourceType"] == "StructureDefinition"
    ]
    value_sets = _value_sets([bundles[name] for name in FILES[3:]])
    used: set[str] = set()
    types = _types(structures, value_sets, used)
    search = _search(bundles[SEARCH], types)
    compartments = [
        entry["resource"] for entry in bundles[RESOURCES]["entry"] if entry["resource"]["resourceType"] == "CompartmentDefinition"
    ]
    head = {
        "fhir": "4.0.1",
        "package": PACKAGE,
        "version": VERSION,
        "licence": "HL7 FHIR R4 definitions, CC0-1.0; package Apache-2.0",
        "files": {name: hashlib.sha256(text).hexdigest() for name, text in raw.items()},
    }
    sections = {
        "types": types,
        "search": search,
        "subjects": _subjects(search),
        "compartments": {c["code"]: {r["code"]: r["param"] for r in c["resource"] if r.get("param")} for c in compartments},
        "codes": {url: value_sets[url] for url in sorted(used)},
        "above": _above(bundles["valueset/v3-codesystems.xml"]),
    }
    lines = ["{", f'"source": {_compact(head)},']
    for section, rows in sections.items():
        lines.append(f'"{section}": {{')
        lines += [f"{_compact(key)}: {_compact(rows[key])}," for key in sorted(rows)]
        lines[-1] = lines[-1].rstrip(",")
        lines.append("},")
    lines[-1] = "}"
    return "\n".join([*lines, "}", ""])


def _json(node: ET.Element) -> Any:
    """FHIR XML as FHIR JSON, as far as this program reads it; narrative is left out."""
    tag = _tag(node)
    if "value" in node.attrib and not len(node):
        return node.attrib["value"]
    made: dict[str, Any] = {"url": node.attrib["url"]} if tag == "extension" else {}
    if tag[:1].isupper():
        made["resourceType"] = tag
    for child in node:
        name = _tag(child)
        if name in {"text", "div"} and tag[:1].isupper():
            continue
        value = _json(child[0]) if tag == "entry" and name == "resource" else _json(child)
        if (tag, name) in LISTS or name == "extension":
            made.setdefault(name, []).append(value)
        else:
            made[name] = value
    return made


def _tag(node: ET.Element) -> str:
    return node.tag.rpartition("}")[2]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# --- elements ---------------------------------------------------------------------------------------------------


def _types(structures: list[Any], value_sets: dict[str, list[str]], used: set[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for structure in structures:
        if structure.get("derivation") == "constraint":
            continue
        name, kind = structure["name"], structure["kind"]
        if kind == "primitive-type":
            result[name] = {"kind": "primitive", "pattern": _pattern(structure)}
            continue
        if kind not in {"resource", "complex-type"} or structure["type"] != name:
            continue
        kind = "abstract" if kind == "resource" and structure["abstract"] == "true" else kind.removesuffix("-type")
        result[name] = {"kind": kind, "elements": {}}
        for element in structure["snapshot"]["element"][1:]:
            parent, _, last = element["path"].rpartition(".")
            owner = result.setdefault(parent, {"kind": "backbone", "elements": {}})
            owner["elements"].update(_element(element, last, value_sets, used))
    return result


def _pattern(structure: Any) -> str | None:
    for element in structure["snapshot"]["element"]:
        if element["path"].endswith(".value"):
            for kind in element.get("type", []):
                for extension in kind.get("extension", []):
                    if extension["url"].endswith("/regex"):
                        return str(extension["valueString"])
    return None


def _element(element: Any, last: str, value_sets: dict[str, list[str]], used: set[str]) -> dict[str, Any]:
    """JSON names of one element -> [type, min, max, flags, choice, targets, binding]; ``m`` modifier, ``s`` summary."""
    flags = ("m" if element.get("isModifier") == "true" else "") + ("s" if element.get("isSummary") == "true" else "")
    maximum = "1" if element["max"] == "1" else "*"
    shape = [int(element["min"]), maximum, flags]
    if reference := element.get("contentReference"):
        return {last: _trim([reference.lstrip("#"), *shape])}
    rows: dict[str, Any] = {}
    choice = last.removesuffix("[x]") if last.endswith("[x]") else ""
    for kind in element["type"]:
        code = _code(kind)
        if code in {"BackboneElement", "Element"} and len(element["type"]) == 1:
            code = element["path"]
        targets = sorted(t.rsplit("/", 1)[1] for t in kind.get("targetProfile", []))
        name = choice + code[0].upper() + code[1:] if choice else last
        rows[name] = _trim([code, *shape, choice, targets, _binding(element, value_sets, used)])
    return rows


def _trim(row: list[Any]) -> list[Any]:
    while not row[-1] and len(row) > 2:
        row = row[:-1]
    return row


def _code(kind: Any) -> str:
    for extension in kind.get("extension", []):
        if extension["url"] == FHIR_TYPE:
            return str(extension["valueUrl"])
    code = str(kind["code"])
    return code.removeprefix(FHIRPATH_TYPE).lower() if code.startswith(FHIRPATH_TYPE) else code


def _binding(element: Any, value_sets: dict[str, list[str]], used: set[str]) -> str:
    binding = element.get("binding", {})
    url = binding.get("valueSet", "").split("|")[0]
    if binding.get("strength") != "required" or url not in value_sets:
        return ""
    used.add(url)
    return str(url)


def _value_sets(bundles: list[Any]) -> dict[str, list[str]]:
    """The codes of every value set that is an enumeration of whole code systems or of listed codes."""
    resources = [entry["resource"] for bundle in bundles for entry in bundle["entry"]]
    systems = {r["url"]: r for r in resources if r["resourceType"] == "CodeSystem" and r.get("content") == "complete"}
    result = {}
    for value_set in resources:
        if value_set["resourceType"] != "ValueSet":
            continue
        compose = value_set.get("compose", {})
        codes: set[str] = set()
        for include in compose.get("include", []):
            listed = [c["code"] for c in include.get("concept", [])]
            system = systems.get(include.get("system"))
            if include.get("filter") or include.get("valueSet") or not (listed or system):
                codes.clear()
                break
            codes.update(listed or _concepts(system))
        if codes and not compose.get("exclude") and len(codes) <= 1000:
            result[value_set["url"]] = sorted(codes)
    return result


HIERARCHIES = {"v3-ActReason": "PurposeOfUse", "v3-ActCode": "_InformationSensitivityPolicy"}
"""The parts of v3 code systems whose order decisions need: purposes of use, and kinds of sensitive information."""


def _above(bundle: Any) -> dict[str, dict[str, list[str]]]:
    """For each code below these, the codes above it, the nearest first."""
    found: dict[str, dict[str, list[str]]] = {}
    for entry in bundle["entry"]:
        resource = entry["resource"]
        top = HIERARCHIES.get(str(resource.get("url", "")).rpartition("/")[2])
        if resource["resourceType"] == "CodeSystem" and top:
            rows = found.setdefault(resource["url"], {})
            waiting: list[tuple[Any, list[str]]] = [(concept, []) for concept in resource["concept"]]
            while waiting:
                concept, above = waiting.pop()
                code = concept["code"]
                if code == top or top in above:
                    rows[code] = above[: above.index(top) + 1] if top in above else []
                waiting += [(inner, [code, *above]) for inner in concept.get("concept", ())]
    return {url: dict(sorted(rows.items())) for url, rows in sorted(found.items())}


def _concepts(node: Any) -> list[str]:
    return [code for c in node.get("concept", []) for code in (c["code"], *_concepts(c))]


# --- search parameters --------------------------------------------------------------------------------------------


def _search(bundle: Any, types: dict[str, Any]) -> dict[str, Any]:
    """type -> code -> [search type, paths, targets]; a path is JSON names, ``name[field=value]`` and a last ``~Type``."""
    result: dict[str, Any] = {}
    for entry in bundle["entry"]:
        parameter = entry["resource"]
        for base in parameter["base"]:
            parts = [p.strip() for p in parameter.get("expression", "").split("|") if p.strip()]
            paths: list[list[str]] = []
            for part in parts:
                paths += _paths(part, base, types)
            row = [parameter["type"], paths, sorted(parameter.get("target", []))]
            if parameter["type"] == "composite":
                row.append([c["definition"].rsplit("/", 1)[1] for c in parameter["component"]])
            result.setdefault(base, {})[parameter["code"]] = row
    return {base: dict(sorted(rows.items())) for base, rows in result.items()}


def _paths(part: str, base: str, types: dict[str, Any]) -> list[list[str]]:
    if part == "Patient.deceased.exists() and Patient.deceased != false":
        return [["deceasedBoolean"], ["deceasedDateTime"]]
    target = ""
    if found := re.fullmatch(r"(.+)\.where\(resolve\(\) is (\w+)\)", part):
        part, target = found[1], found[2]
    cast = ""
    rest = ""
    if found := re.fullmatch(r"\((.+) as (\w+)\)(?:\.(\w+))?", part):
        part, cast, rest = found[1], found[2], found[3] or ""
    elif found := re.fullmatch(r"(.+)\.as\((\w+)\)", part):
        part, cast = found[1], found[2]
    part = part.replace("[0]", "")
    if part[:1].islower():
        part = f"{base}.{part}"
    steps = re.findall(r"(\w+)(?:\.where\((\w+)='([^']*)'\))?(?:\.|$)", part)
    if ".".join(s[0] + (f".where({s[1]}='{s[2]}')" if s[1] else "") for s in steps) != part:
        raise SystemExit(f"search expression not understood: {part}")
    if steps[0][0] not in {base, "Resource", "DomainResource"}:
        return []
    walks: list[tuple[str, list[str]]] = [(steps[0][0], [])]
    for index, (name, field, value) in enumerate(steps[1:]):
        last = index == len(steps) - 2
        walks = [
            (element[0], [*walked, json_name + (f"[{field}={value}]" if field else "")])
            for owner, walked in walks
            for json_name, element in types.get(owner, {"elements": {}})["elements"].items()
            if json_name == name or (element[4:5] == [name] and (not (last and cast) or element[0] == cast))
        ]
    if not walks:
        raise SystemExit(f"search expression leads nowhere: {part}")
    tail = ([rest] if rest else []) + ([f"~{target}"] if target else [])
    return [walked + tail for _, walked in walks]


def _subjects(search: dict[str, Any]) -> dict[str, Any]:
    """type -> [the parameter to narrow a search with, the paths that say whom a resource is about]."""
    result: dict[str, Any] = {}
    for base, parameters in search.items():
        chosen = [
            code
            for code in SUBJECT_PARAMETERS
            if base not in NOT_SUBJECTS and code in parameters and "Patient" in parameters[code][2]
        ]
        if chosen:
            paths = [path for code in chosen for path in parameters[code][1]]
            plain = [path for path in paths if not path[-1].startswith("~")]
            filtered = [path for path in paths if path[-1].startswith("~") and path[:-1] not in plain]
            unique = [list(p) for p in dict.fromkeys(tuple(p) for p in plain + filtered)]
            result[base] = [chosen[0], unique]
    return result


if __name__ == "__main__":
    main()
