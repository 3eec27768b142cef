"""Interaction × Permit -> Plan: one upstream request, built from parsed parts. Synchronous and pure."""

from fhirshield.rewrite.plan import onward, rewrite

__all__ = ["onward", "rewrite"]
