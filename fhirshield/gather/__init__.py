"""Facts: what the shield itself reads in order to decide. Fresh, in bounded rounds; what it cannot get, denies.

The caller's refusals come after: a source that is away is a 503 before anything is known, for absent ids too.
"""

from fhirshield.gather.before import Gatherer

__all__ = ["Gatherer"]
