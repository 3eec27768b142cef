"""What has to be asked of the upstream besides the one question, before it and after it.

``before``: what a condition names, what a write would change, where joins lead, what a Binary belongs to.
``together``: the same for a transaction. ``after``: further pages, pasts, all of a record. Everything asked is decided by
``authorize`` like the caller's own, or read by ``gather`` under the shield's name, and bounded.
"""

from fhirshield.inquiry.after import After
from fhirshield.inquiry.search import granted
from fhirshield.inquiry.together import Together, within

__all__ = ["After", "Together", "granted", "within"]
