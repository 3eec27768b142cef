"""Bytes of a request -> exactly one interaction, or a refusal."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhirshield.fhir.interaction import Interaction, Kind
from fhirshield.model import Refused
from fhirshield.receive import Receiver, Request
from fhirshield.ring import Ring
from fhirshield.settings import Credential, Upstream

UPSTREAM = Upstream("/fhir", "https://up.example/fhir", ("i",), ("i",), Credential(), 1, 1, ("a",), ("https://app.example",), 64)
RECEIVER = Receiver(UPSTREAM, "https://shield.example", Ring(b"k" * 32))
NOW = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)


def request(method: str, target: bytes, *headers: tuple[bytes, bytes], body: bytes = b"") -> Request:
    path, _, query = target.partition(b"?")
    return Request(method, b"/fhir" + path, query, list(headers), body, "127.0.0.1", NOW, "d")


def read(method: str, target: bytes, *headers: tuple[bytes, bytes], body: bytes = b"") -> Interaction:
    return RECEIVER.interaction(request(method, target, *headers, body=body))


@pytest.mark.parametrize(
    ("method", "target", "kind", "kept"),
    [
        ("GET", b"/Patient/1", Kind.READ, {"type": "Patient", "id": "1"}),
        ("HEAD", b"/Patient/1", Kind.READ, {"head": True}),
        ("GET", b"/Patient/1/_history/2", Kind.VREAD, {"version": "2"}),
        ("GET", b"/Patient", Kind.SEARCH_TYPE, {"type": "Patient"}),
        ("GET", b"/Patient?name=x", Kind.SEARCH_TYPE, {}),
        ("POST", b"/Patient/_search", Kind.SEARCH_TYPE, {"by_post": True}),
        ("GET", b"/Patient/1/Observation", Kind.SEARCH_COMPARTMENT, {"type": "Observation", "compartment": "Patient/1"}),
        ("GET", b"/Patient/1/*", Kind.SEARCH_COMPARTMENT, {}),
        ("POST", b"/Patient/1/Observation/_search", Kind.SEARCH_COMPARTMENT, {}),
        ("GET", b"", Kind.SEARCH_SYSTEM, {}),
        ("GET", b"?_type=Patient", Kind.SEARCH_SYSTEM, {}),
        ("POST", b"/_search", Kind.SEARCH_SYSTEM, {}),
        ("GET", b"/_history", Kind.HISTORY_SYSTEM, {}),
        ("GET", b"/Patient/_history", Kind.HISTORY_TYPE, {}),
        ("GET", b"/Patient/1/_history", Kind.HISTORY_INSTANCE, {}),
        ("POST", b"/Patient", Kind.CREATE, {}),
        ("PUT", b"/Patient/1", Kind.UPDATE, {}),
        ("PUT", b"/Patient?identifier=x", Kind.UPDATE, {}),
        ("PATCH", b"/Patient/1", Kind.PATCH, {}),
        ("DELETE", b"/Patient/1", Kind.DELETE, {}),
        ("DELETE", b"/Patient?identifier=x", Kind.DELETE, {}),
        ("POST", b"", Kind.BATCH, {}),
        ("GET", b"/$export", Kind.OPERATION, {"operation": "$export"}),
        ("GET", b"/Patient/1/$everything", Kind.OPERATION, {"operation": "$everything", "id": "1"}),
        ("GET", b"/Patient/1/%24everything", Kind.OPERATION, {"operation": "$everything"}),
        ("POST", b"/Patient/$match", Kind.OPERATION, {}),
        ("GET", b"/metadata", Kind.CAPABILITIES, {}),
        ("GET", b"/.well-known/smart-configuration", Kind.SMART_CONFIGURATION, {}),
    ],
)
def test_every_interaction_of_the_restful_api(method: str, target: bytes, kind: Kind, kept: dict[str, object]) -> None:
    found = read(method, target)
    assert found.kind is kind
    assert {name: getattr(found, name) for name in kept} == kept


@pytest.mark.parametrize(
    "target",
    [
        b"//", b"//Patient", b"/Patient/", b"/Patient//1", b"/Patient/.", b"/Patient/..", b"/Patient/../Observation/1",
        b"/Patient/%2e%2e/1", b"/Patient/1%2f..%2f2", b"/Patient/a%62c", b"/patient/1", b"/PATIENT/1", b"/Foo/1",
        b"/Patient/1;a=b", b"/Patient/1\\2", b"/Patient/a b", b"/Patient/a_b", b"/Patient/" + b"a" * 65, b"/Patient/1/2",
        b"/Patient/1/_history/2/3", b"/Patient/1/Foo", b"/Patient/\xc3\xa9", b"/Patient/1/_history/..", b"/Patient/...",
        b"/Patient/_search", b"/metadata/x", b"/Patient/1/$every$thing", b"/DomainResource/1", b"/Resource",
    ],
)  # fmt: skip
def test_targets_that_are_no_fhir_path(target: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read("GET", target)
    assert caught.value.denial.status == 400


@pytest.mark.parametrize(
    "query",
    [b"%ff=1", b"name=%ff", b"na%00me=1", b"name=a%00b", b"name=a%0ab", b"=x", b"1x=1", b"a b=1", b"&".join([b"name=x"] * 101)],
)
def test_parameters_that_cannot_be_read(query: bytes) -> None:
    with pytest.raises(Refused):
        read("GET", b"/Patient?" + query)


def test_parameters_keep_their_escapes_and_order() -> None:
    found = read("GET", b"/Observation?code=http%3A%2F%2Fl%7Ca%5C%2Cb&code:not=x&_sort=-date,_id&subject:Patient=1&date=ge2020%2B1")
    assert [(p.name, p.modifier, p.value) for p in found.parameters] == [
        ("code", "", "http://l|a\\,b"), ("code", "not", "x"), ("_sort", "", "-date,_id"), ("subject", "Patient", "1"),
        ("date", "", "ge2020+1"),
    ]  # fmt: skip


def test_url_and_body_of_a_posted_search_are_one() -> None:
    form = (b"content-type", b"application/x-www-form-urlencoded; charset=utf-8")
    found = read("POST", b"/Patient/_search?name=a", form, body=b"gender=female&name=b")
    assert [(p.name, p.value) for p in found.parameters] == [("name", "a"), ("gender", "female"), ("name", "b")]
    with pytest.raises(Refused) as caught:
        read("POST", b"/Patient/_search", (b"content-type", b"application/json"), body=b"{}")
    assert caught.value.denial.status == 415


@pytest.mark.parametrize(
    ("accept", "asked", "status"),
    [
        (b"application/fhir+json", b"", 0), (b"application/json", b"", 0), (b"*/*", b"", 0), (b"text/html, */*;q=0.1", b"", 0),
        (b"application/fhir+xml", b"", 406), (b"application/fhir+json;q=0", b"", 406), (b"text/html", b"", 406),
        (b"application/fhir+xml", b"?_format=json", 0), (b"application/fhir+json", b"?_format=xml", 406),
        (b"", b"?_format=application/fhir%2Bjson", 0), (b"", b"?_format=ttl", 406),
    ],
)  # fmt: skip
def test_only_json_is_served(accept: bytes, asked: bytes, status: int) -> None:
    headers = [(b"accept", accept)] if accept else []
    if not status:
        assert read("GET", b"/Patient/1" + asked, *headers).parameters == ()
        return
    with pytest.raises(Refused) as caught:
        read("GET", b"/Patient/1" + asked, *headers)
    assert caught.value.denial.status == status


@pytest.mark.parametrize("name", [b"authorization", b"content-type", b"origin"])
def test_headers_that_matter_stand_once(name: bytes) -> None:
    with pytest.raises(Refused):
        RECEIVER.situation(request("GET", b"/Patient/1", (name, b"a"), (name.upper(), b"b")))


@pytest.mark.parametrize(
    ("value", "credential"),
    [
        (b"Bearer abc", "abc"), (b"bearer  abc ", "abc"), (b"Basic abc", None), (b"Bearer", None), (b"Bearer a b", None),
        (b"Bearer \xe9", None), (b"", None),
    ],
)  # fmt: skip
def test_the_bearer_token(value: bytes, credential: str | None) -> None:
    assert RECEIVER.situation(request("GET", b"/Patient/1", (b"authorization", value))).credential == credential


def test_origins_count_when_settings_list_them() -> None:
    assert RECEIVER.situation(request("GET", b"", (b"origin", b"https://app.example"))).origin == "https://app.example"
    assert RECEIVER.situation(request("GET", b"", (b"origin", b"https://evil.example"))).origin == ""
    preflight = request("OPTIONS", b"/Patient", (b"access-control-request-method", b"GET"))
    assert RECEIVER.interaction(preflight).kind is Kind.PREFLIGHT


@pytest.mark.parametrize("query", [b"_page=x", b"_page=", b"_page=x&name=y", b"_page=a&_page=b"])
def test_page_links_that_are_not_ours(query: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read("GET", b"/Patient?" + query)
    assert caught.value.denial.status in {400, 404}


@pytest.mark.parametrize("query", [b"_summary=true", b"_elements=name", b"foo=x", b"_pretty=true&_x=1"])
def test_a_read_takes_no_parameters(query: bytes) -> None:
    with pytest.raises(Refused):
        read("GET", b"/Patient/1?" + query)


def test_a_body_on_get_is_refused() -> None:
    with pytest.raises(Refused):
        read("GET", b"/Patient/1", body=b"x")


@pytest.mark.promise
@given(st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "TRACE", "get"]), st.binary(max_size=60))
def test_any_bytes_are_an_interaction_or_a_refusal(method: str, target: bytes) -> None:
    try:
        found = read(method, b"/" + target)
    except Refused as refused:
        assert refused.denial.status in {400, 404, 406, 415}
    else:
        assert isinstance(found, Interaction)
        assert ".." not in (found.id, found.version)
