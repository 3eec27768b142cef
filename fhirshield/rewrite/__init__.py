"""Interaction × Permit -> Plan: one upstream request, built from parsed parts. Synchronous and pure."""

from fhirshield.rewrite.plan import rewrite

__all__ = ["rewrite"]
