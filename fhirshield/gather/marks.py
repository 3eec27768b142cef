"""The marks of what decisions read: what a write of it does to them, so that it binds whoever asks next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from fhirshield.errors import Unavailable
from fhirshield.fhir.consent import patient_of
from fhirshield.fhir.glance import glance
from fhirshield.fhir.reference import Literal, literal, named_in
from fhirshield.fhir.subjects import linked
from fhirshield.gather.kept import EVERYTHING
from fhirshield.gather.reading import away
from fhirshield.gather.relations import parties_of
from fhirshield.gather.relations import touched as written
from fhirshield.model import Denial, Permit, Reason, Refused
from fhirshield.state.epochs import Epochs

MOST_NAMES = 50_000
"""Names of marks that are remembered."""
MEMBERS = frozenset({"CareTeam", "Group", "PractitionerRole"})
_READ = MEMBERS | {"Consent", "Patient"}
"""The types that are read in order to decide, those of relationships aside."""


class Marks:
    """The marks of one source's patients and others. ``digest`` hides whom they speak of; ``relating`` are types of relationships.

    ``births``: how old patients are is read, too. ``lag`` is for how many seconds searches of the source may miss a write.
    """

    def __init__(
        self, url: str, epochs: Epochs, digest: Callable[[str], str], *, consents: bool, relating: frozenset[str], births: bool,
        lag: float,
    ) -> None:  # fmt: skip
        self._url = url
        self._epochs = epochs
        self._digest = digest
        self._relating = relating
        self._births = births
        self._read = consents or births or bool(relating)
        self._lag = lag
        self._names: dict[str, str] = {}
        self.pauses: tuple[float, ...] = (0.0, 0.05, 0.2)
        """Seconds before each try to say that what was written is written."""

    def name(self, key: str) -> str:
        """The name of what is kept of a patient or another resource: ``Patient/1`` -> a digest; one for all that share a source."""
        found = self._names.get(key)
        if found is None:
            if len(self._names) >= MOST_NAMES:
                self._names.clear()
            found = self._names[key] = self._digest(f"{self._url} {key}")
        return found

    def of(self, key: str) -> tuple[str, ...]:
        """The marks under which something is kept."""
        return (self.name(key),)

    def of_parties(self, key: str) -> tuple[str, ...]:
        """Those under which it is kept to whom somebody is related."""
        return tuple(map(self.name, parties_of(key)))

    def touched(self, permits: Iterable[Permit]) -> frozenset[str]:
        """The marks of what decisions keep of what these write: as it was, and as it will be."""
        found: set[str] = set()
        for permit in permits if self._read else ():
            if permit.affects & (_READ | self._relating):
                found.add(EVERYTHING)
            elif permit.writing is not None:
                images = [one for one in (permit.writing.image, permit.writing.stored) if type(one) is dict]
                found |= self._marks(images, permit.situation.bases)
        return frozenset(found)

    def _marks(self, images: list[Any], bases: tuple[str, ...]) -> set[str]:
        found: set[str] = set()
        for image in images:
            if image.get("resourceType") in self._relating:
                named = [one for text in glance(image).references if (one := literal(text, bases)) is not None]
                own = [Literal(image["resourceType"], image["id"])] if type(image.get("id")) is str else []
                found.update(map(self.name, written(image, [*named, *own])))
            kind, identity = image.get("resourceType"), image.get("id")
            if kind == "Consent":
                patient = patient_of(image, bases)
                found.add(self.name(f"Patient/{patient}") if patient else EVERYTHING)
            elif kind == "Patient" and ("link" in image or self._births):
                ids = {identity, *linked(image, bases)} - {None}
                found |= {self.name(f"Patient/{one}") for one in ids}
            elif kind in MEMBERS | {"Organization"} and type(identity) is str:
                found.add(self.name(f"{kind}/{identity}"))
            if kind == "PractitionerRole":
                practitioner = named_in(image.get("practitioner"), bases)
                found.add(self.name(f"roles of {practitioner}") if practitioner else EVERYTHING)
        return found

    @contextlib.asynccontextmanager
    async def writing(self, marks: frozenset[str], permits: Iterable[Permit]) -> AsyncIterator[None]:
        """Around a write of what decisions read: pending before it, of a new epoch after it; then it binds whoever asks next.

        Where nobody knows whether it was carried out it stays pending: nobody keeps what it may have changed. Raises Refused.
        """
        if not marks:
            yield
            return
        try:
            await self._epochs.begin(marks)
        except Unavailable:
            raise Refused(away()) from None
        try:
            yield
        except Refused as refused:
            if refused.denial.reason is not Reason.OUTCOME_UNKNOWN:
                with contextlib.suppress(Refused):  # it stays pending
                    await self._settle(marks)
            raise
        await asyncio.sleep(self._lag)
        await self._settle(marks)
        for permit in permits:
            permit.situation.facts.forget()

    async def _settle(self, marks: frozenset[str]) -> None:
        """Make the marks new. Raises Refused: who began to decide before must not be told that it was written by then."""
        for pause in self.pauses:
            await asyncio.sleep(pause)
            with contextlib.suppress(Unavailable):
                await self._epochs.end(marks)
                return
        text = "it was written, and it is not known whether every replica goes by it yet; read before trying again"
        raise Refused(Denial(500, Reason.OUTCOME_UNKNOWN, "incomplete", text))
