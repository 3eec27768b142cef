"""Bytes -> Interaction and Situation, or a refusal. Synchronous and pure: no clock, no I/O, no upstream.

``target`` reads path and query, ``headers`` reads headers; a byte that neither understands goes no further.
"""

from fhirshield.receive.request import Receiver, Request

__all__ = ["Receiver", "Request"]
