"""Value sets and code systems pinned at load: what `:in`, `:above` and `:below` mean, with nobody to ask (FHIR R4 §4.8, §4.9).

A value set is taken by its expansion, or by a composition that can be worked out from what is pinned with it. Whatever
cannot be worked out is a CriteriaError: a set is never smaller than it says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fhirshield.errors import CriteriaError

Code = tuple[str, str]
"""(system, code)"""


class Terminology:
    """Code systems by URL with their hierarchies, value sets by URL with their codes."""

    def __init__(self, resources: Iterable[Any] = ()) -> None:
        self._systems: dict[str, dict[str, frozenset[str]]] = {}
        self._declared: dict[str, dict[str, Any]] = {}
        self._sets: dict[str, frozenset[Code]] = {}
        for resource in resources:
            self._add(resource)
        for url in self._declared:
            self._set(url, ())

    def codes(self, modifier: str, value: str) -> frozenset[Code]:
        """The codes that ``modifier`` (``in``, ``above``, ``below``) with this value stands for. Raises CriteriaError."""
        if modifier == "in":
            if value not in self._sets:
                raise CriteriaError(f"the value set `{value}` is not pinned: name its file under `terminology`")
            return self._sets[value]
        system, mark, code = value.partition("|")
        known = self._systems.get(system)
        if not mark or known is None:
            raise CriteriaError(f"`{value}` is not `system|code` of a code system that is pinned under `terminology`")
        if code not in known:
            raise CriteriaError(f"the code system `{system}` has no code `{code}`")
        if modifier == "above":
            return frozenset((system, one) for one in known[code] | {code})
        return frozenset((system, one) for one, above in known.items() if one == code or code in above)

    def _add(self, resource: Any) -> None:
        kind = resource.get("resourceType") if isinstance(resource, dict) else None
        if kind == "Bundle":
            for entry in resource.get("entry", ()):
                self._add(entry.get("resource"))
            return
        url = resource.get("url") if isinstance(resource, dict) else None
        if kind not in {"ValueSet", "CodeSystem"} or not isinstance(url, str):
            raise CriteriaError("is no ValueSet, CodeSystem or Bundle of them with a `url`")
        if url in self._systems or url in self._declared:
            raise CriteriaError(f"`{url}` is pinned twice")
        if kind == "ValueSet":
            self._declared[url] = resource
        elif resource.get("content") != "complete":
            raise CriteriaError(f"the code system `{url}` is not complete, so what lies below a code cannot be known")
        else:
            self._systems[url] = dict(_hierarchy(resource.get("concept", ()), frozenset()))
            if resource.get("count", len(self._systems[url])) != len(self._systems[url]):
                raise CriteriaError(f"the code system `{url}` has not as many codes as it says")

    # --- value sets -------------------------------------------------------------------------------------------------

    def _set(self, url: str, within: tuple[str, ...]) -> frozenset[Code]:
        if url in within:
            raise CriteriaError(f"the value set `{url}` includes itself")
        if url not in self._sets:
            resource = self._declared.get(url)
            if resource is None:
                raise CriteriaError(f"the value set `{within[-1]}` includes `{url}`, which is not pinned with it")
            self._sets[url] = self._expand(resource, url, (*within, url))
        return self._sets[url]

    def _expand(self, resource: dict[str, Any], url: str, within: tuple[str, ...]) -> frozenset[Code]:
        if "expansion" in resource:
            return _expanded(resource["expansion"], url)
        compose = resource.get("compose")
        if not isinstance(compose, dict) or not compose.get("include"):
            raise CriteriaError(f"the value set `{url}` has neither an expansion nor a composition")
        if any("version" in part for part in compose.get("exclude", ())):
            raise CriteriaError(f"the value set `{url}` excludes codes of one version only: pin an expansion")
        included: frozenset[Code] = frozenset().union(*(self._part(p, url, within) for p in compose["include"]))
        return included.difference(*(self._part(p, url, within) for p in compose.get("exclude", ())))

    def _part(self, part: dict[str, Any], url: str, within: tuple[str, ...]) -> frozenset[Code]:
        sets = [self._set(one, within) for one in part.get("valueSet", ())]
        if "system" in part:
            sets.append(self._of_system(part, url))
        if not sets:
            raise CriteriaError(f"the value set `{url}` has a part that names nothing")
        return frozenset.intersection(*sets)

    def _of_system(self, part: dict[str, Any], url: str) -> frozenset[Code]:
        system = part["system"]
        if "concept" in part:
            return frozenset((system, concept["code"]) for concept in part["concept"])
        known = self._systems.get(system)
        if known is None:
            raise CriteriaError(f"the value set `{url}` takes codes of `{system}`, which is not pinned with it: pin an expansion")
        found = set(known)
        for one in part.get("filter", ()):
            if one.get("property") != "concept" or one.get("op") not in {"is-a", "descendent-of"}:
                raise CriteriaError(f"the value set `{url}` filters otherwise than by is-a: pin an expansion")
            root = one.get("value")
            if root not in known:
                raise CriteriaError(f"the value set `{url}` speaks of `{root}`, which `{system}` does not have")
            found &= {code for code, above in known.items() if root in above or (code == root and one["op"] == "is-a")}
        return frozenset((system, code) for code in found)


def _hierarchy(concepts: Any, above: frozenset[str]) -> Iterable[tuple[str, frozenset[str]]]:
    for concept in concepts:
        code = concept["code"]
        if any(one.get("code") in {"parent", "child", "subsumedBy"} for one in concept.get("property", ())):
            raise CriteriaError(f"the code `{code}` has its place in the hierarchy by properties: nest the concepts")
        yield code, above
        yield from _hierarchy(concept.get("concept", ()), above | {code})


def _expanded(expansion: dict[str, Any], url: str) -> frozenset[Code]:
    """A whole expansion. Raises CriteriaError for a page of one, or one that its server cut."""
    rows = list(_rows(expansion.get("contains", ())))
    said = expansion.get("total", len(rows))
    if expansion.get("offset", 0) or said != len(rows) or not rows or expansion.get("extension"):
        raise CriteriaError(f"the expansion of `{url}` is not whole: it says {said} and holds {len(rows)}")
    return frozenset(_contained(expansion["contains"]))


def _rows(rows: Any) -> Iterable[Any]:
    for row in rows:
        yield row
        yield from _rows(row.get("contains", ()))


def _contained(rows: Any) -> Iterable[Code]:
    for row in rows:
        if "code" in row and not row.get("abstract"):
            yield (row.get("system", ""), row["code"])
        yield from _contained(row.get("contains", ()))
