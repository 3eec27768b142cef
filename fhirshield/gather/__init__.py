"""Facts: what the shield itself reads in order to decide. Fresh, in bounded rounds; what it cannot get, denies.

``before`` reads what a write would change and what it names, ``about`` what patients and circumstances say of an answer.
The caller's refusals come after: a source that is away is a 503 before anything is known, for absent ids too.
"""

from fhirshield.gather.about import AboutAnswer, Asked, Stale
from fhirshield.gather.before import Gatherer
from fhirshield.gather.reading import Reading

__all__ = ["AboutAnswer", "Asked", "Gatherer", "Reading", "Stale"]
