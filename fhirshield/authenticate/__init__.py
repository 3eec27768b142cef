"""Bearer token -> Principal. ``token`` verifies, ``keys`` finds keys, ``profiles`` reads claims. Decides nothing else."""

from fhirshield.authenticate.token import Authenticator

__all__ = ["Authenticator"]
