"""FHIRShield: a privacy reverse proxy for FHIR R4. Start reading at ``shield.py``."""

__version__ = "0.1.0"
