"""The demo: synthetic patients, a small FHIR store, a small issuer, and a walk through one record seen by six callers.

``patients``, ``store`` and ``issuer`` share no code with the shield: they stand for somebody else's servers.
"""
