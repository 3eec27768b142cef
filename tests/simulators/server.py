"""A whole FHIR R4 server in memory for the tests: everything that the shield may ask of an upstream, answered plainly.

It stands on the demo's store, which shares no code with the shield, and adds chains, ``_has``, free text, history in time's
order with paging, batches and transactions, operations, integrity of references. It hides nothing, on purpose: whatever the
shield lets through, shows. ``tests/e2e/test_simulator.py`` holds its answers against HAPI's.
"""

from __future__ import annotations

import copy
import json
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jsonpatch

from fhirshield.demo.store import PATHS as STORED
from fhirshield.demo.store import Resource, Store, matches_one, references, values

Reply = tuple[int, str, list[tuple[bytes, bytes]]]
PATHS = STORED | {
    "telecom": ("telecom", "token"),
    "link": ("link.other", "reference"),
    "value-quantity": ("valueQuantity", "quantity"),
    "value-string": ("valueString", "string"),
    "clinical-status": ("clinicalStatus", "token"),
    "based-on": ("basedOn", "reference"),
    "has-member": ("hasMember", "reference"),
    "focus": ("focus", "reference"),
    "target": ("target", "reference"),
    "agent": ("agent.who", "reference"),
    "author": ("author", "reference"),
    "location": ("content.attachment.url", "uri"),
    "requester": ("requester", "reference"),
    "participant": ("participant.individual", "reference"),
    "type": ("type", "token"),
    "period": ("context.period.start", "date"),
    "_tag": ("meta.tag", "token"),
    "_source": ("meta.source", "uri"),
    "_profile": ("meta.profile", "uri"),
    "url": ("url", "uri"),
    "class": ("class", "token"),
    "practitioner": ("practitioner", "reference"),
    "service-provider": ("serviceProvider", "reference"),
}
_SHAPING = {"_count", "_sort", "_offset", "_format", "_pretty", "_include", "_revinclude", "_total", "_summary", "_elements"}
_ORDER = {"DELETE": 0, "POST": 1, "PUT": 2, "GET": 3}


class Simulator(Store):
    """The server. ``integrity``: writes may refer only to what is there, and nothing goes that is referred to."""

    def __init__(self, base: str, page: int = 20, *, integrity: bool = False) -> None:
        super().__init__(base, page)
        self._integrity = integrity
        self.jobs: dict[str, Any] = {}
        self._log: list[tuple[str, str, int, str]] = []
        """Versions in the order in which they came to be."""

    def put(self, text: str, version: str = "1") -> None:
        super().put(text, version)
        parsed = json.loads(text)
        self._log.append((parsed["resourceType"], parsed["id"], int(version), self.now))

    def clear(self) -> None:
        super().clear()
        self._log.clear()

    def save(self, resource: Resource) -> None:
        """One more version of a resource."""
        self.write("PUT", [resource["resourceType"], resource["id"]], json.dumps(resource), {})

    def remove(self, name: str) -> None:
        """Delete ``Type/id``."""
        self.write("DELETE", name.split("/"), "", {})

    # --- REST -----------------------------------------------------------------------------------------------------

    def serve(self, method: str, segments: list[str], query: list[tuple[str, str]], body: str, headers: dict[str, str]) -> Reply:
        operation = segments[-1] if segments and segments[-1].startswith("$") else ""
        if operation:
            return self._later(headers, method, segments, query, body) or self._operate(method, segments, query, body)
        if method == "POST" and not segments:
            return self._bundle(json.loads(body))
        if method == "GET" and segments and segments[-1] == "_history":
            return self._past(segments[:-1], dict(query))
        if method in {"PUT", "PATCH", "DELETE"} and len(segments) == 1:
            found = self._matches(segments[0], query)
            if len(found) > 1:
                return 412, _outcome("multiple-matches"), []
            segments = [segments[0], found[0]["id"]] if found else segments
            if found and method == "PUT":
                body = json.dumps({**json.loads(body), "id": found[0]["id"]})
            method = method if found else {"PUT": "POST"}.get(method, method)
        if method == "PATCH":
            if len(segments) != 2 or segments[1] not in self._texts.get(segments[0], {}):
                return 404, _outcome("not-found"), []
            body = json.dumps(jsonpatch.apply_patch(self._parsed[segments[0]][segments[1]], json.loads(body)))
            method = "PUT"
        return super().serve(method, segments, query, body, headers)

    def write(self, method: str, segments: list[str], body: str, headers: dict[str, str]) -> Reply:
        if method == "POST" and "if-none-exist" in headers:
            found = self._matches(segments[0], parse_qsl(headers["if-none-exist"]))
            if len(found) > 1:
                return 412, _outcome("multiple-matches"), []
            if found:
                kind, identity = segments[0], found[0]["id"]
                where = f"{self.base}/{kind}/{identity}/_history/{len(self._versions[kind, identity])}"
                return 200, self._texts[kind][identity], [(b"location", where.encode())]
        if self._integrity and not self._is_whole(method, segments, body):
            return 409, _outcome("conflict"), []
        status, text, fields = super().write(method, segments, body, headers)
        if method == "DELETE" and status == 204 and self._versions.get((segments[0], segments[1])):
            self._log.append((segments[0], segments[1], len(self._versions[segments[0], segments[1]]), self.now))
        return status, text, fields

    def _is_whole(self, method: str, segments: list[str], body: str) -> bool:
        if method == "DELETE":
            name = "/".join(segments)
            return not any(name in references(r, "*") for r in self.everything() if f"{r['resourceType']}/{r['id']}" != name)
        return all(self._there(text) for text in references(json.loads(body), "*"))

    def _there(self, text: str) -> bool:
        kind, _, identity = text.removeprefix(self.base + "/").partition("/")
        return text.startswith(("#", "urn:", "http")) or identity in self._parsed.get(kind, {})

    def _bundle(self, bundle: Resource) -> Reply:
        whole = bundle["type"] == "transaction"
        kept = copy.deepcopy((self._texts, self._parsed, self._versions, self._log, self._made))
        entries = bundle.get("entry", [])
        names: dict[str, str] = {}
        for entry in entries if whole else ():
            request = entry["request"]
            if "fullUrl" in entry and request["method"] == "POST":
                found = self._matches(request["url"], parse_qsl(request.get("ifNoneExist", ""))) if "ifNoneExist" in request else []
                self._made += not found
                names[entry["fullUrl"]] = f"{request['url']}/" + (found[0]["id"] if found else f"made-{self._made}")
        answers: dict[int, Resource] = {}
        order = sorted(range(len(entries)), key=lambda i: _ORDER[entries[i]["request"]["method"]] if whole else i)
        check, self._integrity = self._integrity, self._integrity and not whole
        for place in order:
            answer = self._entry(entries[place], names)
            if whole and answer["response"]["status"][:1] != "2":
                self._texts, self._parsed, self._versions, self._log, self._made = kept
                self._integrity = check
                return int(answer["response"]["status"]), json.dumps(answer["response"]["outcome"]), []
            answers[place] = answer
        self._integrity = check
        if whole and check and any(not self._there(text) for r in self.everything() for text in references(r, "*")):
            self._texts, self._parsed, self._versions, self._log, self._made = kept
            return 409, _outcome("conflict"), []
        listed = ",".join(_written(answers[place]) for place in range(len(entries)))
        return 200, f'{{"resourceType":"Bundle","type":"{bundle["type"]}-response","entry":[{listed}]}}', []

    def _entry(self, entry: Resource, names: dict[str, str]) -> Resource:
        request = entry["request"]
        url, _, query = request["url"].partition("?")
        headers = {"if-match": request["ifMatch"]} if "ifMatch" in request else {}
        headers |= {"if-none-exist": request["ifNoneExist"]} if "ifNoneExist" in request else {}
        body = json.dumps(entry["resource"]) if "resource" in entry else ""
        for name, text in names.items():
            body = body.replace(json.dumps(name), json.dumps(text))
        method, segments = request["method"], url.split("/")
        named = names.get(entry.get("fullUrl", ""))
        if method == "POST" and named and named.split("/")[1] not in self._parsed.get(segments[0], {}):
            method, segments = "PUT", named.split("/")
        status, text, fields = self.serve(method, segments, parse_qsl(query), body, headers)
        given = {name.decode(): value.decode() for name, value in fields}
        response: Resource = {"status": str(status)} | {n: given[n] for n in ("etag", "location") if n in given}
        if status >= 400:
            return {"response": {**response, "outcome": json.loads(text)}}
        return {"response": response, "resource": text} if text else {"response": response}

    def _past(self, place: list[str], query: dict[str, str]) -> Reply:
        """A history, newest first (FHIR R4 §3.1.0.9), paged by ``_count`` and ``_offset``."""
        since = query.get("_since", "")[:19]
        rows = [row for row in reversed(self._log) if list(row[: len(place)]) == place and row[3][:19] >= since]
        if len(place) == 2 and not self._versions.get((place[0], place[1])):
            return 404, _outcome("not-found"), []
        size, offset = int(query.get("_count", self._page)), int(query.get("_offset", 0))
        entries = []
        for kind, identity, number, when in rows[offset : offset + size]:
            text = self._versions[kind, identity][number - 1]
            request = {"method": "DELETE" if text is None else ("POST" if number == 1 else "PUT"), "url": f"{kind}/{identity}"}
            status = "204" if text is None else ("201" if number == 1 else "200")
            response = {"status": status, "etag": f'W/"{number}"', "lastModified": when}
            entry = {"fullUrl": f"{self.base}/{kind}/{identity}", "request": request, "response": response}
            entries.append(json.dumps(entry)[:-1] + (f',"resource":{text}}}' if text is not None else "}"))
        link = [{"relation": "self", "url": "/".join([self.base, *place, "_history"])}]
        if offset + size < len(rows):
            rest = urlencode({**query, "_count": size, "_offset": offset + size})
            link.append({"relation": "next", "url": "/".join([self.base, *place, "_history"]) + f"?{rest}"})
        head = {"resourceType": "Bundle", "type": "history", "total": len(rows), "link": link}
        return 200, json.dumps(head)[:-1] + (f',"entry":[{",".join(entries)}]' if entries else "") + "}", []

    # --- search ---------------------------------------------------------------------------------------------------

    def _search(self, kind: str, query: list[tuple[str, str]]) -> Reply:
        criteria = [(n, v) for n, v in query if n.split(":")[0] not in _SHAPING]
        given = dict(query)
        try:
            matches = self._matches(kind, criteria)
            for key in reversed(given["_sort"].split(",") if "_sort" in given else []):
                path = PATHS[key.removeprefix("-")][0]
                matches.sort(key=lambda r: str(next(iter(values(r, path)), "")), reverse=key.startswith("-"))
        except KeyError as error:
            return 400, _outcome("processing", f"Unknown search parameter {error}"), []
        total = len(matches)
        size, offset = int(given.get("_count", self._page)), int(given.get("_offset", 0))
        rest = [(n, v) for n, v in query if n not in {"_offset", "_count"}]
        link = [{"relation": "self", "url": f"{self.base}/{kind}?{urlencode(rest)}"}]
        if offset + size < total:
            onward = urlencode([*rest, ("_count", str(size)), ("_offset", str(offset + size))])
            link.append({"relation": "next", "url": f"{self.base}/{kind}?{onward}"})
        shown = matches[offset : offset + size]
        rows = [(r, "match") for r in shown] + [(r, "include") for r in self._included(shown, query)]
        head = json.dumps({"resourceType": "Bundle", "type": "searchset", "total": total, "link": link})
        if given.get("_summary") == "count":
            return 200, head, []
        entries = [self._listed(r, mode) for r, mode in rows]
        return 200, head[:-1] + (f',"entry":[{",".join(entries)}]' if entries else "") + "}", []

    def _listed(self, resource: Resource, mode: str, **search: Any) -> str:
        kind, identity = resource["resourceType"], resource["id"]
        said = json.dumps({"mode": mode, **search})
        return f'{{"fullUrl":"{self.base}/{kind}/{identity}","resource":{self._texts[kind][identity]},"search":{said}}}'

    def _matches(self, kind: str, criteria: list[tuple[str, str]]) -> list[Resource]:
        """In the order of ids. Raises KeyError for a parameter that is not known."""
        found = [r for r in self._parsed.get(kind, {}).values() if all(self._holds(r, n, v) for n, v in criteria)]
        return sorted(found, key=lambda r: str(r["id"]))

    def _holds(self, resource: Resource, name: str, text: str) -> bool:
        if name.startswith("_has:"):
            _, kind, parameter, inner = name.split(":", 3)
            own = f"{resource['resourceType']}/{resource['id']}"
            return any(own in references(r, _element(parameter)) for r in self._matches(kind, [(inner, text)]))
        if "." in name:
            step, _, inner = name.partition(".")
            parameter, _, kind = step.partition(":")
            for reference in references(resource, _element(parameter)):
                other = self._parsed.get(reference.split("/")[0], {}).get(reference.split("/")[-1])
                if other and kind in {"", other["resourceType"]} and self._holds(other, inner, text):
                    return True
            return False
        if name in {"_content", "_text"}:
            return text.lower() in json.dumps(resource if name == "_content" else resource.get("text", {})).lower()
        if name == "_filter":
            parameter, verb, value = text.split(" ", 2)
            return self._holds(resource, parameter, value.strip('"')) is (verb != "ne")
        code, _, modifier = name.partition(":")
        path, kind = PATHS[code]
        if kind == "quantity":
            return any(str(v.get("value")) == text.split("|", maxsplit=1)[0] for v in values(resource, path))
        if kind == "uri":
            return any(v == option for v in values(resource, path) for option in text.split(","))
        if modifier[:1].isupper():
            name, text = code, f"{modifier}/{text}"
        return matches_one(resource, name, text) if code in STORED else _plain(resource, path, kind, text, modifier)

    # --- operations -----------------------------------------------------------------------------------------------

    def _later(
        self, headers: dict[str, str], method: str, segments: list[str], query: list[tuple[str, str]], body: str
    ) -> Reply | None:
        """A job: begun by ``respond-async``, done when it is asked about the second time."""
        if segments == ["$job-status"]:
            number = dict(query).get("_jobId", "")
            if number not in self.jobs:
                return 404, _outcome("not-found"), []
            if method == "DELETE":
                del self.jobs[number]
                return 202, "", []
            asked, *job = self.jobs[number]
            self.jobs[number] = (asked + 1, *job)
            return (202, "", [(b"retry-after", b"3"), (b"x-progress", b"half")]) if asked == 0 else self._operate(*job)
        if "respond-async" in headers.get("prefer", ""):
            number = str(len(self.jobs) + 1)
            self.jobs[number] = (0, method, segments, query, body)
            return 202, "", [(b"content-location", f"{self.base}/$job-status?_jobId={number}".encode())]
        return None

    def _operate(self, method: str, segments: list[str], query: list[tuple[str, str]], body: str) -> Reply:
        *place, operation = segments
        given = dict(query)
        if operation == "$everything" and len(place) == 2:
            return self._everything(place, given)
        if operation == "$match" and place == ["Patient"]:
            return self._match(json.loads(body))
        if operation == "$validate":
            return 200, json.dumps({"resourceType": "OperationOutcome", "issue": [{"severity": "information", "code": "informational", "diagnostics": "all fine"}]}), []  # fmt: skip
        if operation == "$expand":
            found = self._matches("ValueSet", [("_id", place[1])] if len(place) == 2 else [("url", given.get("url", ""))])
            contains = [{"system": "http://example.org/cs", "code": code} for code in "ab"]
            expansion = {"timestamp": "2026-01-01", "contains": contains}
            return (200, json.dumps({**found[0], "expansion": expansion}), []) if found else (404, _outcome("not-found"), [])
        if operation in {"$lookup", "$translate", "$validate-code", "$subsumes"}:
            return 200, json.dumps({"resourceType": "Parameters", "parameter": [{"name": "name", "valueString": "a code"}]}), []
        if operation == "$process" and place:
            resource = self._parsed[place[0]][place[1]] if len(place) == 2 else json.loads(body)
            others = [{"name": "row", "resource": r} for r in self.everything()]
            return (
                200,
                json.dumps({"resourceType": "Parameters", "parameter": [{"name": "return", "resource": resource}, *others]}),
                [],
            )
        return 404, _outcome("not-found"), []

    def _everything(self, place: list[str], given: dict[str, str]) -> Reply:
        kind, identity = place
        centre = self._parsed.get(kind, {}).get(identity)
        if centre is None:
            return 404, _outcome("not-found"), []
        name = f"{kind}/{identity}"
        about = [centre] + [r for r in self.everything() if name in references(r, "*") and r is not centre]
        known = {(r["resourceType"], r["id"]) for r in about}
        for resource in list(about):
            for text in references(resource, "*"):
                other = self._parsed.get(text.split("/")[0], {}).get(text.split("/")[-1])
                if other and (key := (other["resourceType"], other["id"])) not in known and other["resourceType"] != "Patient":
                    known.add(key)
                    about.append(other)
        wanted = given["_type"].split(",") if "_type" in given else None
        since = {(kind, identity): place for place, (kind, identity, *_) in enumerate(self._log)}
        rows = [r for r in about if wanted is None or r["resourceType"] in wanted]
        rows = [r for r in rows if "start" not in given or _began(r) >= given["start"]]
        rows.sort(key=lambda r: since[r["resourceType"], r["id"]], reverse=True)  # as servers do, by when they changed
        size, offset = int(given.get("_count", 1000)), int(given.get("_offset", 0))
        link = [{"relation": "self", "url": f"{self.base}/{name}/$everything"}]
        if offset + size < len(rows):
            onward = urlencode({**given, "_count": size, "_offset": offset + size})
            link.append({"relation": "next", "url": f"{self.base}/{name}/$everything?{onward}"})
        head = json.dumps({"resourceType": "Bundle", "type": "searchset", "total": len(rows), "link": link})
        entries = ",".join(self._listed(r, "match" if r is centre else "include") for r in rows[offset : offset + size])
        return 200, f'{head[:-1]},"entry":[{entries}]}}', []

    def _match(self, parameters: Resource) -> Reply:
        asked = {p["name"]: p for p in parameters["parameter"]}
        wanted = asked["resource"]["resource"]
        rows = []
        for resource in self._parsed.get("Patient", {}).values():
            keys = [k for k in ("name", "birthDate", "gender", "identifier", "telecom") if k in wanted]
            hits = sum(json.dumps(wanted[k], sort_keys=True) == json.dumps(resource.get(k), sort_keys=True) for k in keys)
            if hits:
                rows.append((hits / 5, resource))
        rows.sort(key=lambda row: (-row[0], row[1]["id"]))
        rows = rows[: asked.get("count", {}).get("valueInteger", 100)]
        entries = ",".join(self._listed(r, "match", score=score) for score, r in rows)
        return 200, f'{{"resourceType":"Bundle","type":"searchset","total":{len(rows)},"entry":[{entries}]}}', []


def _began(resource: Resource) -> str:
    return str(resource.get("effectiveDateTime") or resource.get("period", {}).get("start", "9"))


def _element(parameter: str) -> str:
    """What ``references`` knows a parameter by."""
    return parameter if parameter in STORED or parameter not in PATHS else PATHS[parameter][0]


def _plain(resource: Resource, path: str, kind: str, text: str, modifier: str) -> bool:
    found = values(resource, path)
    if modifier == "missing":
        return (not found) is (text == "true")
    STORED["_any"] = (path, kind)
    try:
        return matches_one(resource, f"_any:{modifier}" if modifier else "_any", text)
    finally:
        del STORED["_any"]


def _written(entry: Resource) -> str:
    """An entry whose resource is text already."""
    text = entry.get("resource")
    head = json.dumps({"response": entry["response"]})
    return head[:-1] + f',"resource":{text}}}' if text else head


def _outcome(code: str, diagnostics: str = "no") -> str:
    return json.dumps(
        {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": code, "diagnostics": diagnostics}]}
    )
