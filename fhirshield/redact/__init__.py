"""Answer -> View: each resource judged once, hidden elements gone, links and names ours. Synchronous and pure.

``operations`` changes one value, ``program`` carries out all obligations on one resource, ``names`` cleans references,
``body`` makes the whole answer, ``links`` rewrites what points to the upstream.
"""

from fhirshield.redact.body import Redactor

__all__ = ["Redactor"]
