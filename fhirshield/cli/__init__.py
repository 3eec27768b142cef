"""The command line: one file a command. Exit codes: 0 done, 1 something is wrong, 2 the call itself was wrong."""

from __future__ import annotations

import argparse
import sys

from fhirshield import __version__
from fhirshield.cli import audit, breakglass, check, consent, demo, explain, serve, test
from fhirshield.errors import OperatorError

COMMANDS = {
    "serve": serve,
    "demo": demo,
    "check": check,
    "test": test,
    "explain": explain,
    "audit": audit,
    "breakglass": breakglass,
    "consent": consent,
}

EPILOG = """\
Exit codes: 0 done and nothing wrong; 1 something is wrong (settings, rules, tests, a journal); 2 the call was wrong.
Start with `fhirshield demo`; then docs/tutorial.md puts the shield before your own server.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="fhirshield",
        description="A privacy reverse proxy for FHIR R4.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fhirshield {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        doc = module.__doc__ or ""
        summary = doc.splitlines()[0].rstrip(".")
        one = commands.add_parser(name, help=summary, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        module.arguments(one)
    options = parser.parse_args(arguments)
    try:
        code: int = COMMANDS[options.command].run(options)
        return code
    except OperatorError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)
        print(f"\n{len(error.faults)} fault{'s' if len(error.faults) > 1 else ''}; nothing was started.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
