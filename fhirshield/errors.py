"""The error tree.

    ShieldError
    ├── OperatorError       settings or rules are wrong: a list of Fault, told to the operator
    ├── MalformedFhir       bytes that claim to be FHIR and are not
    ├── PathError           a JSONPath that cannot be used on FHIR
    ├── CriteriaError       FHIR search syntax that cannot be used here
    └── Unavailable         a dependency did not answer in time; nothing may be concluded

What a *caller* is told is never one of these: it is a ``Denial`` (``model.py``). The text of these errors may name
operators' input and stays inside.
"""

from __future__ import annotations

from dataclasses import dataclass


class ShieldError(Exception):
    """Everything that FHIRShield raises on purpose."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a file that an operator wrote.

    ``where`` is ``file:line`` (or the file alone), ``path`` the key within it, ``remedy`` what to do about it.
    """

    where: str
    path: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        subject = f"{self.where}: " + (f"{self.path}: " if self.path else "")
        return subject + self.message + (f"\n    -> {self.remedy}" if self.remedy else "")


class OperatorError(ShieldError):
    """Settings or rules that cannot be used; carries every fault, not the first."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class MalformedFhir(ShieldError):
    """Bytes that are not the FHIR JSON they claim to be."""


class PathError(ShieldError):
    """A JSONPath outside RFC 9535, outside the closed list of segments, or impossible in the R4 model."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class CriteriaError(ShieldError):
    """FHIR search syntax that names nothing, or that is not decided here."""


class Unavailable(ShieldError):
    """A dependency (issuer, upstream, journal) is away, slow, or answered nonsense."""

    def __init__(self, message: str, *, slow: bool = False, sent: bool = True) -> None:
        super().__init__(message)
        self.slow = slow
        self.sent = sent
        """The request may have reached the other side."""


def printable(text: object) -> str:
    """Text from elsewhere as a line for people may hold it: control characters and the like are escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text))
