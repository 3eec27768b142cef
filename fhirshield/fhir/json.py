"""FHIR JSON, lossless: a decimal leaves with the digits it came with (FHIR R4 §2.24.0.1, decimal).

Decoding is strict UTF-8 and RFC 8259 by msgspec. Duplicate names collapse to the last value, which is the value that is
judged and the only one that is ever written again.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from fhirshield.errors import MalformedFhir


class ExactDecimal(Decimal):
    """A decimal whose own rendering differs from the text it came as (``1E2``, ``0.00000001``)."""

    text: bytes

    def __new__(cls, text: str) -> ExactDecimal:
        made = super().__new__(cls, text)
        made.text = text.encode()
        return made


def _decimal(text: str) -> Decimal:
    if len(text) > 8 or "e" in text or "E" in text:
        plain = Decimal(text)
        return plain if str(plain) == text else ExactDecimal(text)
    return Decimal(text)


def _exact(value: object) -> msgspec.Raw:
    if isinstance(value, ExactDecimal):
        return msgspec.Raw(value.text)
    raise TypeError(f"not FHIR JSON: {type(value).__name__}")


_decoder = msgspec.json.Decoder(float_hook=_decimal)
_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=_exact)
encode = _encoder.encode


def decode(body: bytes) -> Any:
    """Bytes to the value they hold: dict, list, str, int, bool, None, and Decimal for every non-integer number.

    Raises MalformedFhir, whose text says where and never quotes the content.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, ArithmeticError) as error:
        raise MalformedFhir(f"not JSON: {type(error).__name__}") from None
