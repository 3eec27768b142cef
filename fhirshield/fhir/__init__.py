"""Facts about FHIR R4 4.0.1: no privacy, no I/O, no policy."""
