"""A small FHIR R4 store in memory: read, vread, writes, history, search with paging by offset. For demo and tests.

It answers as a plain server does, checks no token, and keeps the text of each resource, so that decimals leave as they came.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

Resource = dict[str, Any]
JSON = "application/fhir+json;charset=utf-8"
LAST_UPDATED = "2026-01-01T00:00:00.000+00:00"

PATHS: dict[str, tuple[str, str]] = {
    "_id": ("id", "token"),
    "_security": ("meta.security", "token"),
    "_lastUpdated": ("meta.lastUpdated", "date"),
    "identifier": ("identifier", "token"),
    "name": ("name", "string"),
    "family": ("name.family", "string"),
    "given": ("name.given", "string"),
    "phone": ("telecom", "token"),
    "telecom": ("telecom", "token"),
    "address": ("address", "string"),
    "address-city": ("address.city", "string"),
    "gender": ("gender", "token"),
    "active": ("active", "token"),
    "birthdate": ("birthDate", "date"),
    "status": ("status", "token"),
    "code": ("code", "token"),
    "category": ("category", "token"),
    "date": ("effectiveDateTime", "date"),
    "authoredon": ("authoredOn", "date"),
    "onset-date": ("onsetDateTime", "date"),
    "general-practitioner": ("generalPractitioner", "reference"),
    "patient": ("subject|patient|beneficiary", "reference"),
    "subject": ("subject", "reference"),
    "beneficiary": ("beneficiary", "reference"),
    "organization": ("managingOrganization", "reference"),
    "partof": ("partOf", "reference"),
    "performer": ("performer", "reference"),
    "encounter": ("encounter", "reference"),
}
"""Search parameter -> (dotted path, alternatives by ``|``; kind)."""


class Store:
    """Resources by type and id. ``base`` is the URL under which it is served."""

    def __init__(self, base: str, page: int = 20) -> None:
        self.base = base
        self.now = LAST_UPDATED
        """``lastUpdated`` of what is kept from now on."""
        self._page = page
        self._texts: dict[str, dict[str, str]] = {}
        self._parsed: dict[str, dict[str, Resource]] = {}
        self._versions: dict[tuple[str, str], list[str | None]] = {}
        """All versions of a resource, the first first; None for a deletion."""
        self._made = 0

    def put(self, text: str, version: str = "1") -> None:
        """Keep one resource, as text; ``meta`` gets a version and a time."""
        parsed: Resource = json.loads(text)
        kind, identity = parsed["resourceType"], parsed["id"]
        meta = {"versionId": version, "lastUpdated": self.now, **parsed.get("meta", {})}
        if "meta" not in parsed:
            head = f'"id":{json.dumps(identity)}'
            compact = text.replace(f'"id": {json.dumps(identity)}', head, 1)
            text = compact.replace(head, f'{head},"meta":{json.dumps(meta)}', 1)
        else:
            text = _with(text, {"meta": meta})
        parsed["meta"] = meta
        self._texts.setdefault(kind, {})[identity] = text
        self._parsed.setdefault(kind, {})[identity] = parsed
        if version == "1":
            self._versions[kind, identity] = [text]

    def load(self, resources: list[Resource]) -> None:
        """Keep many."""
        for resource in resources:
            self.put(json.dumps(resource))

    def clear(self) -> None:
        """Forget everything."""
        self._texts.clear()
        self._parsed.clear()
        self._versions.clear()

    def everything(self) -> list[Resource]:
        """All resources as they are now."""
        return [resource for by_id in self._parsed.values() for resource in by_id.values()]

    # --- ASGI -----------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        segments = [part for part in scope["path"].split("/") if part][1:]
        query = parse_qsl(scope["query_string"].decode(), keep_blank_values=True)
        given = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, text, headers = self.serve(scope["method"], segments, query, body.decode(), given)
        fields = [(b"content-type", JSON.encode()), (b"x-powered-by", b"demo store"), *headers]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": text.encode()})

    def serve(
        self, method: str, segments: list[str], query: list[tuple[str, str]], body: str, headers: dict[str, str]
    ) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        """Status, JSON text, headers."""
        if method in {"PUT", "DELETE"} or (method == "POST" and segments[1:] != ["_search"]):
            return self.write(method, segments, body, headers)
        if method == "POST":
            query = query + parse_qsl(body, keep_blank_values=True)
        return self.answer(segments, query)

    def answer(self, segments: list[str], query: list[tuple[str, str]]) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        """Status, JSON text, headers."""
        if segments == ["metadata"]:
            return 200, json.dumps(self._metadata()), []
        if len(segments) == 1 or segments[1:] == ["_search"]:
            return self._search(segments[0], query)
        if segments[-1] == "_history":
            return self._history(segments)
        found, version = self._version(segments)
        if found is None:
            return 404, _outcome("not-found", f"Resource {'/'.join(segments)} is not known"), []
        etag = (b"etag", f'W/"{version}"'.encode())
        return 200, found, [etag, (b"last-modified", b"Thu, 01 Jan 2026 00:00:00 GMT")]

    def _version(self, segments: list[str]) -> tuple[str | None, int]:
        versions = self._versions.get((segments[0], segments[1]), [])
        if len(segments) == 2:
            return (versions[-1] if versions else None), len(versions)
        if len(segments) == 4 and segments[2] == "_history" and segments[3].isdigit():
            number = int(segments[3])
            return (versions[number - 1] if 0 < number <= len(versions) else None), number
        return None, 0

    def _history(self, segments: list[str]) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        """Newest first, of one resource or of a type."""
        wanted = [key for key in self._versions if list(key)[: len(segments) - 1] == segments[:-1]]
        if not wanted and len(segments) == 3:
            return 404, _outcome("not-found", "no such resource"), []
        entries = []
        for kind, identity in wanted:
            versions = self._versions[kind, identity]
            for number in range(len(versions), 0, -1):
                text = versions[number - 1]
                request = {"method": "DELETE" if text is None else "PUT", "url": f"{kind}/{identity}"}
                entry: Resource = {"fullUrl": f"{self.base}/{kind}/{identity}", "request": request}
                entry["response"] = {"status": "200", "etag": f'W/"{number}"'}
                entries.append(json.dumps(entry)[:-1] + (f',"resource":{text}}}' if text is not None else "}"))
        return 200, '{"resourceType":"Bundle","type":"history","entry":[' + ",".join(entries) + "]}", []

    def write(
        self, method: str, segments: list[str], body: str, headers: dict[str, str]
    ) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        """Create, update (creating what is not there) and delete; ``If-Match`` is honoured."""
        parsed: Resource = json.loads(body) if body else {}
        if method == "POST":
            self._made += 1
            segments = [segments[0], f"made-{self._made}"]
            while (segments[0], segments[1]) in self._versions:
                self._made += 1
                segments[1] = f"made-{self._made}"
        if len(segments) != 2 or (method != "DELETE" and parsed.get("resourceType") != segments[0]):
            return 400, _outcome("invalid", "not a write that this server knows"), []
        kind, identity = segments
        versions = self._versions.setdefault((kind, identity), [])
        current = len(versions) if versions and versions[-1] is not None else 0
        wanted = headers.get("if-match", "").removeprefix("W/").strip('"')
        if wanted and wanted != str(current):
            return 412, _outcome("conflict", f"the version is {current}, not {wanted}"), []
        if method == "DELETE":
            if current:
                versions.append(None)
                del self._texts[kind][identity], self._parsed[kind][identity]
            return 204, "", []
        number = str(len(versions) + 1)
        meta = {**parsed.get("meta", {}), "versionId": number, "lastUpdated": self.now}
        text = _with(body, {"id": identity, "meta": meta})
        self.put(text, number)
        versions[int(number) - 1 :] = [self._texts[kind][identity]]
        where = f"{self.base}/{kind}/{identity}/_history/{number}"
        fields = [(b"etag", f'W/"{number}"'.encode()), (b"location", where.encode())]
        if headers.get("prefer") == "return=minimal":
            return (200 if current else 201), "", fields
        return (200 if current else 201), self._texts[kind][identity], fields

    def _search(self, kind: str, query: list[tuple[str, str]]) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        shaping = {"_count", "_sort", "_offset", "_format", "_pretty", "_include", "_revinclude"}
        criteria = [(n, v) for n, v in query if n.split(":")[0] not in shaping]
        given = dict(query)
        if unknown := [name for name, _ in criteria if name.split(":")[0] not in PATHS]:
            return 400, _outcome("processing", f"Unknown search parameter {unknown[0]}"), []
        matches = [r for r in self._parsed.get(kind, {}).values() if all(matches_one(r, n, v) for n, v in criteria)]
        for key in reversed(given.get("_sort", "_id").split(",")):
            path = PATHS[key.removeprefix("-")][0]
            matches.sort(key=_sort_key(path), reverse=key.startswith("-"))
        size, offset = int(given.get("_count", self._page)), int(given.get("_offset", 0))
        links = [("self", offset)]
        if offset + size < len(matches):
            links.append(("next", offset + size))
        if offset:
            links.append(("previous", max(0, offset - size)))
        rest = [(n, v) for n, v in query if n not in {"_offset", "_count"}]
        link = [
            {"relation": r, "url": f"{self.base}/{kind}?{urlencode([*rest, ('_count', size), ('_offset', o)])}"} for r, o in links
        ]
        entries = [
            f'{{"fullUrl":"{self.base}/{kind}/{r["id"]}","resource":{self._texts[kind][r["id"]]},"search":{{"mode":"match"}}}}'
            for r in matches[offset : offset + size]
        ]
        entries += [
            f'{{"fullUrl":"{self.base}/{r["resourceType"]}/{r["id"]}","resource":{self._texts[r["resourceType"]][r["id"]]},'
            '"search":{"mode":"include"}}'
            for r in self._included(matches[offset : offset + size], query)
        ]
        head = f'{{"resourceType":"Bundle","type":"searchset","total":{len(matches)},"link":{json.dumps(link)}'
        return 200, head + (f',"entry":[{",".join(entries)}]' if entries else "") + "}", []

    def _included(self, matches: list[Resource], query: list[tuple[str, str]]) -> list[Resource]:
        """What ``_include`` and ``_revinclude`` add; with ``:iterate`` from what was added too."""
        rows = [(n.partition(":"), v.split(":")) for n, v in query if n.split(":")[0] in {"_include", "_revinclude"}]
        known = {(r["resourceType"], r["id"]) for r in matches}
        added: list[Resource] = []
        source, first = matches, True
        while source:
            new: list[Resource] = []
            for (name, _, modifier), (kind, *code) in rows:
                if not first and modifier != "iterate":
                    continue
                if name == "_include":
                    texts = [t for r in source if kind in {"*", r["resourceType"]} for t in references(r, code[0] if code else "*")]
                    new += [f for t in texts if (f := self._parsed.get(t.split("/")[0], {}).get(t.split("/")[-1]))]
                else:
                    names = {f"{r['resourceType']}/{r['id']}" for r in source}
                    new += [r for r in self._parsed.get(kind, {}).values() if names & set(references(r, code[0]))]
            source = []
            for r in new:
                if (r["resourceType"], r["id"]) not in known:
                    known.add((r["resourceType"], r["id"]))
                    source.append(r)
            added += source
            first = False
        return added

    def _metadata(self) -> Resource:
        interactions = [{"code": code} for code in ("read", "vread", "search-type", "create", "update", "delete")]
        parameters = [{"name": name, "type": kind} for name, (_, kind) in PATHS.items()]
        rows = [{"type": kind, "interaction": interactions, "searchParam": parameters} for kind in sorted(self._texts)]
        return {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": "2026-01-01",
            "kind": "instance",
            "implementation": {"description": "demo store", "url": self.base},
            "fhirVersion": "4.0.1",
            "format": ["json"],
            "rest": [{"mode": "server", "resource": rows}],
        }


class _Number(float):
    """A number that is written as it was read."""

    def __new__(cls, text: str) -> _Number:
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str

    def __repr__(self) -> str:
        return self.text


def _with(body: str, members: Resource) -> str:
    """A resource's text with some members set; its numbers keep their digits."""
    parsed = json.loads(body, parse_float=_Number)
    return _written({**parsed, **members})


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_written(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return value.text if isinstance(value, _Number) else json.dumps(value)


def _sort_key(path: str) -> Callable[[Resource], str]:
    return lambda resource: str(next(iter(values(resource, path)), ""))


def values(resource: Resource, paths: str) -> list[Any]:
    """The values at a dotted path; alternatives by ``|``."""
    found: list[Any] = []
    for path in paths.split("|"):
        nodes: list[Any] = [resource]
        for name in path.split("."):
            nodes = [n[name] for n in nodes if isinstance(n, dict) and name in n]
            nodes = [x for n in nodes for x in (n if isinstance(n, list) else [n])]
        found += nodes
    return found


def references(resource: Resource, code: str) -> list[str]:
    """What a resource refers to by a search parameter: its path where that is known, else the element of that name; ``*`` all."""
    found: list[str] = []
    if code == "*":
        nodes: list[Any] = [resource]
        while nodes:
            node = nodes.pop()
            if isinstance(node, dict):
                found += [node["reference"]] if isinstance(node.get("reference"), str) else []
                nodes += node.values()
            elif isinstance(node, list):
                nodes += node
        return found
    path = PATHS[code][0] if code in PATHS else code
    return [v["reference"] for v in values(resource, path) if isinstance(v, dict) and "reference" in v]


def matches_one(resource: Resource, name: str, text: str) -> bool:
    """Whether one criterion holds; comma is OR."""
    code, _, modifier = name.partition(":")
    path, kind = PATHS[code]
    found = values(resource, path)
    if modifier == "missing":
        return (not found) is (text == "true")
    hit = any(_KINDS[kind](value, option, modifier) for value in found for option in text.split(","))
    return hit is not (modifier == "not")


def _token(value: Any, text: str, modifier: str) -> bool:
    system, bar, code = text.rpartition("|")
    if isinstance(value, dict) and "coding" in value:
        return any(_token(coding, text, modifier) for coding in value["coding"])
    if isinstance(value, dict):
        own = value.get("code", value.get("value"))
        return (not bar or value.get("system", "") == system) and (own == code or not code)
    return str(value).lower() == code.lower() if isinstance(value, bool) else value == code


def _string(value: Any, text: str, modifier: str) -> bool:
    parts = [p for v in value.values() for p in (v if isinstance(v, list) else [v])] if isinstance(value, dict) else [value]
    words = [p for p in parts if isinstance(p, str)]
    if modifier == "exact":
        return text in words
    folded = text.lower()
    return any(folded in w.lower() if modifier == "contains" else w.lower().startswith(folded) for w in words)


def _date(value: Any, text: str, modifier: str) -> bool:
    prefix, day = (text[:2], text[2:]) if text[:2].isalpha() else ("eq", text)
    own = str(value)[: len(day)]
    return {"eq": own == day, "ge": own >= day, "le": own <= day, "gt": own > day, "lt": own < day, "ne": own != day}[prefix]


def _reference(value: Any, text: str, modifier: str) -> bool:
    own = str(value.get("reference", ""))
    return own == text or own.rpartition("/")[2] == text


_KINDS: dict[str, Callable[[Any, str, str], bool]] = {
    "token": _token,
    "string": _string,
    "date": _date,
    "reference": _reference,
}


def _outcome(code: str, diagnostics: str) -> str:
    issue = {"severity": "error", "code": code, "diagnostics": diagnostics}
    return json.dumps({"resourceType": "OperationOutcome", "issue": [issue]})
