"""Records: one an exchange, chained under a key, durable before the first byte of the answer leaves.

``record`` says what stands in one, ``journal`` keeps them, ``chain`` proves them. Nothing here decides about data.
"""

from fhirshield.audit.journal import Journal

__all__ = ["Journal"]
