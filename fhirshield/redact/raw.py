"""A Binary's own bytes, from the view of it that was judged and redacted, under a rule that allows such content."""

from __future__ import annotations

import base64
import re
from typing import Any

from fhirshield.fhir import json as fhir_json
from fhirshield.model import Denial, Permit, Reason, Refused, View

_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}\Z")
_KEPT = {"ETag", "Last-Modified"}


def raw(view: View, permit: Permit) -> View:
    """The bytes of a Binary. Raises Refused where type or size is not what rule and caller take."""
    binary = fhir_json.decode(view.body)
    kind = str(binary.get("contentType", "")).split(";")[0].strip().lower()
    opaque = permit.opaque
    if opaque is None or not _TYPE.match(kind) or not opaque.types & {"*", kind}:
        raise _refused(403, Reason.HIDDEN_PART, "forbidden", "content of this type is not served to this caller")
    if not any(_takes(wanted, kind) for wanted in permit.interaction.raw):
        raise _refused(406, Reason.NOT_ACCEPTABLE, "not-supported", f"the content is {kind}")
    content = _decoded(binary.get("data"))
    headers = tuple((name, value) for name, value in view.headers if name in _KEPT)
    own = (
        ("Content-Type", kind),
        ("Content-Disposition", "attachment"),
        ("Content-Security-Policy", "sandbox; default-src 'none'"),
    )
    return View(200, (*own, *headers), content, view.reason, view.tally, view.rule)


def _decoded(data: Any) -> bytes:
    if type(data) is not str:
        raise _refused(403, Reason.HIDDEN_PART, "forbidden", "this content is not served to this caller")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except ValueError:
        raise _refused(502, Reason.UPSTREAM_MALFORMED, "transient", "the server's answer is not FHIR JSON") from None


def _takes(wanted: str, kind: str) -> bool:
    return wanted == kind or (wanted.endswith("/*") and kind.startswith(wanted[:-1]))


def _refused(status: int, reason: Reason, code: str, text: str) -> Refused:
    return Refused(Denial(status, reason, code, text))
