"""How sensitive a resource is: the labels that are stored with it, made no less by what its codes say, and by what it names."""

from __future__ import annotations

from typing import Any

from fhirshield.fhir.glance import Glance
from fhirshield.fhir.reference import literal
from fhirshield.fhir.v3 import ACT_CODE, CONFIDENTIALITY, is_sensitivity, rank
from fhirshield.model import Facts, Labels
from fhirshield.policy.sensitivity import Sensitivity


def labels_of(resource: Any, seen: Glance, sensitivity: Sensitivity | None, facts: Facts, bases: tuple[str, ...]) -> Labels | None:
    """The labels of a resource; None where what they rest on was not gathered."""
    stored = seen.security
    kinds = {code for system, code in stored if system == ACT_CODE and is_sensitivity(code)}
    ranks = [one for system, code in stored if system == CONFIDENTIALITY and (one := rank(code)) is not None]
    if sensitivity is None:
        return Labels(max(ranks, default=None), frozenset(kinds), stored, whole=False)
    kinds |= sensitivity.kinds_of(seen.codings)
    for text in sensitivity.inherited(resource):
        named = literal(text, bases)
        source = facts.glances.get(named) if named is not None else None
        if source is None:
            return None
        kinds |= sensitivity.kinds_of(source.codings)
        kinds |= {code for system, code in source.security if system == ACT_CODE and is_sensitivity(code)}
        ranks += [one for system, code in source.security if system == CONFIDENTIALITY and (one := rank(code)) is not None]
    ranks += [sensitivity.rank_of(kind) for kind in kinds]
    return Labels(max(ranks, default=sensitivity.least), frozenset(kinds), stored, whole=True)
