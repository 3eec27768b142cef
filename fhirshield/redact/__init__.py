"""Answer -> View: each resource judged once, hidden elements gone, links and names ours. Synchronous and pure.

``operations`` changes one value, ``program`` carries out all obligations on one resource, ``names`` cleans references,
``body`` makes one resource, ``searchset`` a page of them, ``links`` rewrites what points to the upstream; ``written`` and ``merge``
make the new image of what a caller writes back.
"""

from fhirshield.redact.body import Redactor
from fhirshield.redact.history import History, Past
from fhirshield.redact.operation import Everything, Matches, as_meta, newest, operated
from fhirshield.redact.searchset import Searchset

__all__ = ["Everything", "History", "Matches", "Past", "Redactor", "Searchset", "as_meta", "newest", "operated"]
