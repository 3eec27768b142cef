"""Interaction × Permit -> Plan: one upstream request, built from parsed parts. Synchronous and pure."""

from fhirshield.rewrite.plan import fresh, onward, rewrite, together

__all__ = ["fresh", "onward", "rewrite", "together"]
