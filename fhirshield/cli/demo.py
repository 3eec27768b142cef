"""Demo: a FHIR server, an issuer and the shield, with synthetic patients, in one process; nothing leaves this machine.

fhirshield demo            shows one record as six callers see it, then stays up to try
fhirshield demo --smoke    the same walk, then exits
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import shutil
import signal
import socket
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from fhirshield.app import build
from fhirshield.audit import chain
from fhirshield.audit.journal import segments_of, verify
from fhirshield.cli.audit import told
from fhirshield.cli.serve import server_options
from fhirshield.demo.issuer import Issuer
from fhirshield.demo.patients import generate
from fhirshield.demo.store import Store
from fhirshield.demo.walk import RECORD, Walk, callers, hidden, ward
from fhirshield.outbound.pool import Pool
from fhirshield.ring import load_key
from fhirshield.serving import serving
from fhirshield.settings import load

SETTINGS = """\
public_url: {shield}
issuers:
  demo:
    issuer: {issuer}
    jwks_url: {issuer}/jwks
    algorithms: [ES256]
    profile: smart
    roles: {{from: roles}}
    claims: {{vip_cleared: vip}}
upstreams:
  - path: /fhir
    url: {store}
    issuers: [demo]
rules: rules
audit: {{journal: audit}}
consent:
  default: permit
  policies: {{"urn:fhirshield:demo:privacy-policy": ignore}}
  exempt_roles: [consent-office, clinician, nurse, billing, front-desk, researcher, patient]
"""
WARD = """\
consent_elements:
  - id: contact-details
    codes: [urn:fhirshield:demo:consent-form|contact-details]
    redact:
      - {resources: [Patient], path: $.telecom, with: remove}
      - {resources: [Patient], path: $.address, with: remove}
rules:
  - id: ward
    who: {roles: [physician], purposes: [TREAT]}
    allow: {interactions: [read, search], resources: ["*"]}
  - id: ward-in-an-emergency
    who: {roles: [physician]}
    break_glass: {resources: ["*"], replaces: [consent], time: 30m, limit: 3, per: 24h}
  - id: consent-office
    who: {roles: [consent-office]}
    allow: {interactions: [read, search, create, update], resources: [Consent], policy_inputs: [Consent]}
  - id: consent-office-looks-up
    who: {roles: [consent-office]}
    allow: {interactions: [read], resources: ["*"]}
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--smoke", action="store_true", help="exit after the walk")
    parser.add_argument("--port", type=int, default=0, help="the shield's port (default: a free one)")


def run(options: argparse.Namespace) -> int:
    """Run the demo until interrupted; 1 when the walk does not show what it should."""
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="fhirshield-demo-") as folder:
        return asyncio.run(_demo(Path(folder), options.port, smoke=options.smoke))


async def _demo(folder: Path, port: int, *, smoke: bool) -> int:
    sockets = [_listen(0), _listen(0), _listen(port)]
    store_url, issuer_url, shield_url = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    store, issuer = Store(f"{store_url}/fhir"), Issuer(issuer_url)
    resources = generate()
    store.load(resources)
    settings_file = folder / "fhirshield.yaml"
    settings_file.write_text(SETTINGS.format(shield=shield_url, issuer=issuer_url, store=f"{store_url}/fhir"), encoding="utf-8")
    (folder / "rules").mkdir()
    for pack in packs().glob("*.yaml"):
        shutil.copy(pack, folder / "rules")
    (folder / "rules" / "ward.yaml").write_text(WARD, encoding="utf-8")
    settings = load(settings_file)
    shield = build(settings)
    async with contextlib.AsyncExitStack() as stack:
        for app, listener in ((store, sockets[0]), (issuer, sockets[1]), (shield, sockets[2])):
            await stack.enter_async_context(serving(app, listener, server_options(settings)))
        client = Pool(most=4 << 20, connect=2, answer=10)
        stack.push_async_callback(client.close)
        people = callers(issuer, f"{shield_url}/fhir")
        count = sum(1 for r in resources if r["resourceType"] == "Patient")
        print(f"FHIRShield at {shield_url}/fhir, before a FHIR server with {count} synthetic patients.")
        walk = Walk(client, f"{shield_url}/fhir", f"{store_url}/fhir", people)
        lines = [*await walk.lines(), *await walk.decisions(*ward(issuer, f"{shield_url}/fhir"))]
        print("\n".join(lines))
        await shield.parts.publish()
        faults = _trail(folder)
        _tell_curl(shield_url, people, smoke=smoke)
        if not smoke:
            await _until_stopped()
    return 1 if faults else 0


def packs() -> Path:
    """The rule packs: inside the installed package, or beside it in a checkout."""
    inside = Path(str(files("fhirshield"))) / "rules"
    return inside if inside.is_dir() else Path(str(files("fhirshield"))).parent / "rules"


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


def _trail(folder: Path) -> tuple[str, ...]:
    journal = folder / "audit"
    records = [
        json.loads(parts[1])
        for path in segments_of(journal)
        for text in path.read_bytes().splitlines()
        if (parts := chain.split(text))
    ]
    print("\nWhat was hidden, and by which rule\n==================================")
    print("\n".join(hidden(records)))
    secret, _ = load_key(folder / "journal.key")
    proof = verify(journal, secret, folder / "witness.ndjson")
    print("\nThe trail\n=========")
    print("\n".join(f"  {line}" for line in told(proof, True)))
    return proof.faults


def _tell_curl(shield_url: str, people: list[Any], *, smoke: bool) -> None:
    print("\nTry it\n======")
    for person in people[: 1 if smoke else 5]:
        print(f"\n# as {person.name}")
        print(f"curl -s {shield_url}/fhir/Patient/{RECORD} -H 'Authorization: Bearer {person.token}'")
    if not smoke:
        print("\nThe demo stays up; Ctrl-C ends it.", flush=True)


async def _until_stopped() -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
