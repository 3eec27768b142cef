"""Invariants of R4 that removing an optional element can break, in two mechanical forms (FHIR R4, ``constraint`` of each type).

``REQUIRES``: in a type, the first element may stand only beside the second. ``ANY_OF``: in a type, at least one of these
must stand, else the whole is invalid. Choice elements are named without ``[x]``. Invariants that depend on values (ait-1,
app-3, rng-2) are not here: docs/rules.md names them.
"""

from __future__ import annotations

REQUIRES: dict[str, tuple[tuple[str, str], ...]] = {
    "Age": (("value", "code"), ("code", "system")),  # age-1, qty-3
    "Appointment": (("start", "end"), ("end", "start")),  # app-2
    "Attachment": (("data", "contentType"),),  # att-1
    "Condition": (("abatement", "clinicalStatus"),),  # con-4
    "ContactPoint": (("value", "system"),),  # cpt-2
    "Count": (("value", "code"), ("code", "system")),  # cnt-3, qty-3
    "Distance": (("value", "code"), ("code", "system")),  # dis-1, qty-3
    "Duration": (("code", "system"), ("code", "value")),  # drt-1
    "ElementDefinition": (("sliceIsConstraining", "sliceName"),),  # eld-22
    "FamilyMemberHistory": (("estimatedAge", "age"),),  # fhs-2
    "Goal.target": (("detail", "measure"),),  # gol-1
    "MolecularSequence.referenceSeq": (("chromosome", "genomeBuild"), ("genomeBuild", "chromosome")),  # msq-5
    "OperationDefinition.parameter": (("searchType", "type"), ("targetProfile", "type")),  # opd-2, opd-3
    "Quantity": (("code", "system"),),  # qty-3
    "Ratio": (("numerator", "denominator"), ("denominator", "numerator")),  # rat-1
    "SearchParameter": (("xpath", "xpathUsage"),),  # spd-1
    "ServiceRequest": (("orderDetail", "code"),),  # prr-1
    "StructureMap.group.rule.target": (("element", "context"), ("context", "contextType")),  # smp-1, smp-2
    "TestScript.setup.action.assert": (
        ("compareToSourceExpression", "compareToSourceId"),
        ("compareToSourcePath", "compareToSourceId"),
    ),  # tst-10
    "TestScript.test.action.assert": (
        ("compareToSourceExpression", "compareToSourceId"),
        ("compareToSourcePath", "compareToSourceId"),
    ),  # tst-11
    "Timing.repeat": (
        ("duration", "durationUnit"),
        ("period", "periodUnit"),
        ("periodMax", "period"),
        ("durationMax", "duration"),
        ("countMax", "count"),
        ("offset", "when"),
    ),  # tim-1, tim-2, tim-6 to tim-9
    "TriggerDefinition": (("condition", "data"),),  # trd-2
    "ValueSet.compose.include": (("concept", "system"), ("filter", "system")),  # vsd-2
    "ValueSet.expansion.contains": (("code", "system"),),  # vsd-10
}

ANY_OF: dict[str, tuple[tuple[str, ...], ...]] = {
    "Appointment.participant": (("type", "actor"),),  # app-1
    "AppointmentResponse": (("participantType", "actor"),),  # apr-1
    "Bundle.entry": (("resource", "request", "response"),),  # bdl-5
    "CapabilityStatement": (("messaging", "rest", "document"), ("description", "software", "implementation")),
    "Composition.section": (("text", "entry", "section"),),  # cmp-1
    "Condition.stage": (("summary", "assessment"),),  # con-1
    "Condition.evidence": (("code", "detail"),),  # con-2
    "Consent": (("policy", "policyRule"),),  # ppc-1
    "CoverageEligibilityResponse.insurance.item": (("category", "productOrService"),),  # ces-1
    "DataRequirement.codeFilter": (("path", "searchParam"),),  # drq-1
    "DataRequirement.dateFilter": (("path", "searchParam"),),  # drq-2
    "ElementDefinition.slicing": (("discriminator", "description"),),  # eld-1
    "Expression": (("expression", "reference"),),  # exp-1
    "Extension": (("extension", "value"),),  # ext-1
    "Immunization.education": (("documentType", "reference"),),  # imm-1
    "ImmunizationRecommendation.recommendation": (("vaccineCode", "targetDisease"),),  # imr-1
    "InsurancePlan": (("identifier", "name"),),  # ipn-1
    "Measure.group.stratifier": (("code", "description", "criteria", "component"),),  # mea-1
    "MeasureReport.group.stratifier.stratum": (("value", "component"),),  # mrp-2
    "MedicationAdministration.dosage": (("dose", "rate"),),  # mad-1
    "MessageDefinition.focus": (("max",),),  # md-1
    "MolecularSequence.referenceSeq": (("genomeBuild", "referenceSeqId", "referenceSeqPointer", "referenceSeqString"),),  # msq-6
    "Observation.referenceRange": (("low", "high", "text"),),  # obs-3
    "OperationDefinition.parameter": (("type", "part"),),  # opd-1
    "Organization": (("identifier", "name"),),  # org-1
    "Parameters.parameter": (("value", "part", "resource"),),  # inv-1
    "Patient.contact": (("name", "telecom", "address", "organization"),),  # pat-1
    "Ratio": (("numerator", "extension"),),  # rat-1
    "RequestGroup.action": (("resource", "action"),),  # rqg-1
    "StructureDefinition": (("snapshot", "differential"),),  # sdf-6
    "StructureDefinition.mapping": (("name", "uri"),),  # sdf-2
    "TerminologyCapabilities": (("description", "software", "implementation"),),  # tcp-2
    "TestReport.setup.action": (("operation", "assert"),),
    "TestReport.test.action": (("operation", "assert"),),
    "TestScript.setup.action": (("operation", "assert"),),
    "TestScript.test.action": (("operation", "assert"),),
    "ValueSet.compose.include": (("valueSet", "system"),),  # vsd-1
    "ValueSet.expansion.contains": (("code", "display"),),  # vsd-6
}
