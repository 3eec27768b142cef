"""Run the benchmark: ``python -m tests.bench [--rounds 5] [--seconds 4] [--profile] [--hapi URL]``.

nginx as a plain proxy, a bare starlette + httpx pass-through and the shield with everything on stand before the same upstream
(nginx with files) and are asked in turn by wrk. Proxies are pinned to one core, upstream and load to the other. What is printed
is medians of interleaved rounds and their ratios. Needs nginx and wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from fhirshield.demo.issuer import Issuer
from fhirshield.fhir import json as fhir_json
from tests.bench import material, stages

PROXY_CORE, LOAD_CORE = "0", "1"
LUA = """
local tokens, n = {}, 0
for line in io.lines("%(tokens)s") do tokens[#tokens + 1] = "Bearer " .. line end
function request()
  n = n + 1
  return wrk.format("GET", %(target)s, {["Authorization"] = tokens[n %% #tokens + 1], ["Accept"] = "application/fhir+json"})
end
function done(summary, latency, requests)
  io.write(string.format("RESULT %%d %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), summary.errors.status + summary.errors.read + summary.errors.timeout, summary.bytes))
end
"""
TARGETS = {
    "Patient": '"/fhir/Patient/p" .. (n * 7919 % 2000)',
    "Bundle": '"/fhir/Observation?_id=" .. (n * 7919 % 200)',
}


def main() -> int:
    options = arguments()
    if options.profile:
        stages.show()
        return 0
    for program in ("nginx", "wrk"):
        if not (shutil.which(program) or shutil.which(program, path="/usr/sbin")):
            print(f"{program} is not on this machine; Debian has it as a package")
            return 1
    with tempfile.TemporaryDirectory(prefix="fhirshield-bench-", dir=options.disk) as folder, contextlib.ExitStack() as stack:
        bench = Bench(Path(folder), stack, options)
        bench.start()
        bench.compare()
        if options.hapi:
            bench.before_hapi(options.hapi)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--disk", default="/var/tmp", help="a folder on a real disk, for the journal")
    parser.add_argument("--hapi", default="", help="the base URL of a HAPI server: also measure what the shield adds to a read")
    parser.add_argument("--profile", action="store_true", help="only print where the shield's CPU goes, by stage, in process")
    return parser.parse_args()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Bench:
    """Starts the servers, asks them in turn."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, options: argparse.Namespace) -> None:
        self.folder = folder
        self.stack = stack
        self.options = options
        self.admin = {name: free_port() for name in ("shield", "shield-200", "before-hapi")}
        self.processes: dict[str, tuple[int, int]] = {}
        """name -> (port, pid)"""

    def start(self) -> None:
        material.write(self.folder / "files")
        ports = {name: free_port() for name in ("upstream", "nginx", "bare", "shield", "shield-200")}
        self._nginx("upstream", ports["upstream"], LOAD_CORE, UPSTREAM_CONF % {"root": self.folder / "files"})
        self._nginx("nginx", ports["nginx"], PROXY_CORE, PROXY_CONF % ports)
        environment = {**os.environ, "BENCH_UPSTREAM": f"http://127.0.0.1:{ports['upstream']}", "BENCH_PORT": str(ports["bare"])}
        self._run("bare", ports["bare"], [sys.executable, "-m", "tests.bench.passthrough"], environment)
        issuer = Issuer("http://issuer.bench")
        (self.folder / "jwks.json").write_text(json.dumps(issuer.jwks()))
        (self.folder / "tokens").write_text("\n".join(material.tokens(issuer, "https://bench.example/fhir")))
        for name, count in (("shield", 40), ("shield-200", 200)):
            self._shield(name, ports[name], f"http://127.0.0.1:{ports['upstream']}/fhir", count)
        for name, (port, _) in self.processes.items():
            _wait(port, name)

    def _shield(self, name: str, port: int, upstream: str, rules: int) -> None:
        home = self.folder / name
        home.mkdir()
        (home / "rules.yaml").write_text(yaml.safe_dump(material.rules(rules)))
        issuer = {
            "issuer": "http://issuer.bench",
            "jwks_file": str(self.folder / "jwks.json"),
            "profile": "smart",
            "roles": {"from": "roles"},
            "claims": {"vip_cleared": "vip"},
        }
        settings = {
            "listen": f"127.0.0.1:{port}",
            "public_url": "https://bench.example",
            "issuers": {"bench": issuer},
            "upstreams": [{"path": "/fhir", "url": upstream, "issuers": ["bench"]}],
            "rules": "rules.yaml",
            "audit": {"journal": "audit"},
            "admin": f"127.0.0.1:{self.admin[name]}",
        }
        (home / "fhirshield.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "fhirshield", "serve", str(home / "fhirshield.yaml")]
        self._run(name, port, command, dict(os.environ))

    def _run(self, name: str, port: int, command: list[str], environment: dict[str, str]) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        pinned = ["taskset", "-c", PROXY_CORE, *command]
        process = subprocess.Popen(pinned, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.stack.callback(_end, process)
        self.processes[name] = (port, process.pid)

    def _nginx(self, name: str, port: int, core: str, body: str) -> None:
        home = self.folder / name
        home.mkdir()
        user = "user root;" if os.getuid() == 0 else ""
        (home / "nginx.conf").write_text(NGINX_CONF % {"home": home, "user": user, "body": body.replace("PORT", str(port))})
        command = [
            "taskset",
            "-c",
            core,
            shutil.which("nginx") or "/usr/sbin/nginx",
            "-c",
            str(home / "nginx.conf"),
            "-p",
            str(home),
        ]
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        self.stack.callback(_end, process)
        self.processes[name] = (port, process.pid)

    # --- asking -----------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        codec = self.codec()
        for what in TARGETS:
            for concurrency in self.options.concurrency:
                names = ["nginx", "bare", "shield"] + (["shield-200"] if concurrency == 16 else [])
                rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
                for turn in range(self.options.rounds + 1):
                    for name in names:
                        result = self.ask(name, what, concurrency)
                        if turn:
                            rounds[name].append(result)
                self.show(what, concurrency, rounds, codec[what])

    def codec(self) -> dict[str, float]:
        """The codec's CPU on the same bytes, with the other core as busy as it is beside the shield."""
        os.sched_setaffinity(0, {int(PROXY_CORE)})
        plain = codec_cost(self.folder / "files")
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        alone = codec_cost(self.folder / "files")
        port = self.processes["upstream"][0]
        load = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", "-c16", "-d60s", f"http://127.0.0.1:{port}/fhir/Observation?_id=1"]
        process = subprocess.Popen(load, stdout=subprocess.DEVNULL)
        try:
            found = codec_cost(self.folder / "files")
        finally:
            process.terminate()
            process.wait()
        os.sched_setaffinity(0, {0, 1})
        for what in TARGETS:
            print(
                f"codec (decode + encode, same bytes) on {what}: {found[what]:.0f} us beside a busy core, {alone[what]:.0f} us beside an"
                f" idle one, {plain[what]:.0f} us with Python's own thresholds of the garbage collector"
            )
        print()
        return found

    def ask(self, name: str, what: str, concurrency: int) -> dict[str, float]:
        port, pid = self.processes[name]
        script = self.folder / "ask.lua"
        script.write_text(LUA % {"tokens": self.folder / "tokens", "target": TARGETS[what]})
        before, syncs = cpu(pid), self.syncs(name)
        command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{concurrency}", f"-d{self.options.seconds}s", "-s", str(script)]
        text = subprocess.run([*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True).stdout
        spent = cpu(pid) - before
        found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", text)
        assert found is not None, text
        requests, micros, p50, p99, errors, size = map(int, found.groups())
        if errors:
            print(f"  {name} {what}: {errors} errors")
        return {
            "rate": requests / micros * 1e6, "p50": p50 / 1000, "p99": p99 / 1000, "cpu": spent / max(requests, 1) * 1e6,
            "errors": errors, "bytes": size / max(requests, 1), "syncs": (self.syncs(name) - syncs) / max(requests, 1),
        }  # fmt: skip

    def syncs(self, name: str) -> float:
        """fdatasyncs of a shield so far, as its metrics say; 0 for the others."""
        if name not in self.admin:
            return 0.0
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin[name]}/metrics", timeout=10) as answer:
            found = re.search(r"^fhirshield_journal_syncs ([0-9.e+]+)", answer.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def before_hapi(self, url: str) -> None:
        """What the shield adds to a read of HAPI, one connection, direct and through it in turn."""
        port = free_port()
        self._shield("before-hapi", port, url, 40)
        _wait(port, "before-hapi")
        with urllib.request.urlopen(f"{url}/Patient?_count=1", timeout=30) as answer:
            identity = json.loads(answer.read())["entry"][0]["resource"]["id"]
        TARGETS["HAPI"] = f'"{urlsplit(url).path}/Patient/{identity}"'
        direct = urlsplit(url).port or 80
        found: dict[str, list[float]] = {"direct": [], "shield": []}
        self.processes["direct"] = (direct, 0)
        for turn in range(self.options.rounds + 1):
            for name, process in (("direct", "direct"), ("shield", "before-hapi")):
                result = self.ask(process, "HAPI", 1)
                if turn:
                    found[name].append(result["p50"])
        one, other = statistics.median(found["direct"]), statistics.median(found["shield"])
        print(f"read of HAPI, 1 connection: p50 {one:.2f} ms direct, {other:.2f} ms through the shield: {other - one:.2f} ms added")

    def show(self, what: str, concurrency: int, rounds: dict[str, list[dict[str, float]]], codec: float) -> None:
        print(f"{what}, {concurrency} connections")
        middle = {name: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for name, rows in rounds.items()}
        for name, rows in rounds.items():
            rates = [row["rate"] for row in rows]
            m = middle[name]
            print(
                f"  {name:<11} {m['rate']:>9.0f}/s ({min(rates):.0f}-{max(rates):.0f})  p50 {m['p50']:.2f} ms  p99 {m['p99']:.2f} ms"
                f"  CPU {m['cpu']:.0f} us  {m['bytes']:.0f} B" + (f"  {m['syncs']:.2f} fdatasyncs" if name in self.admin else "")
            )
        shield = middle["shield"]
        print(
            f"  ratios: {shield['rate'] / middle['nginx']['rate']:.3f} of nginx, {shield['rate'] / middle['bare']['rate']:.1f} x bare,"
            f" CPU {shield['cpu'] / codec:.2f} x codec"
            + (f", 200 rules {middle['shield-200']['cpu'] / shield['cpu']:.2f} x 40" if "shield-200" in middle else "")
            + "\n"
        )


def codec_cost(files: Path) -> dict[str, float]:
    """CPU microseconds to decode and encode one document, pinned, median of five rounds."""
    found = {}
    for what, folder in (("Patient", "patients"), ("Bundle", "bundles")):
        bodies = [path.read_bytes() for path in sorted((files / folder).iterdir())[:200]]
        times = []
        for _ in range(5):
            begin = time.process_time()
            for body in bodies:
                fhir_json.encode(fhir_json.decode_unchecked(body))
            times.append((time.process_time() - begin) / len(bodies) * 1e6)
        found[what] = statistics.median(times)
    return found


def cpu(pid: int) -> float:
    """CPU seconds that a process and its children (nginx's worker) have used."""
    total = 0.0
    for one in [pid, *_children(pid)]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)


def _wait(port: int, name: str) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise SystemExit(f"{name} did not start")


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait(20)


NGINX_CONF = """
daemon off; %(user)s worker_processes 1; pid %(home)s/pid; error_log /dev/null;
events { worker_connections 2048; }
http {
  access_log off; keepalive_requests 1000000; default_type application/fhir+json; client_body_temp_path %(home)s/body;
  proxy_temp_path %(home)s/proxy; fastcgi_temp_path %(home)s/f; uwsgi_temp_path %(home)s/u; scgi_temp_path %(home)s/s;
  sendfile on; open_file_cache max=4000;
  %(body)s
}
"""
UPSTREAM_CONF = """
  server { listen 127.0.0.1:PORT; root %(root)s;
    location /fhir/Patient/ { alias %(root)s/patients/; }
    location = /fhir/Observation { rewrite ^ /bundles/$arg__id break; }
  }
"""
PROXY_CONF = """
  upstream behind { server 127.0.0.1:%(upstream)d; keepalive 100; keepalive_requests 1000000; }
  server { listen 127.0.0.1:PORT;
    location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection ""; }
  }
"""

if __name__ == "__main__":
    sys.exit(main())
