"""FHIR JSON, lossless: a decimal leaves with the digits it came with (FHIR R4 §2.24.0.1, decimal).

Decoding is strict UTF-8 and RFC 8259 by msgspec, which keeps the last of duplicate names. ``decode`` refuses duplicates:
another reader may keep the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
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

    def __deepcopy__(self, memo: object) -> ExactDecimal:
        return self


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
decode_unchecked = _decoder.decode
"""The codec alone, for measuring."""


def decode(body: bytes, depth: int = 64) -> Any:
    """Bytes to the value they hold: dict, list, str, int, bool, None, and Decimal for every non-integer number.

    Raises MalformedFhir, whose text never quotes the content; for duplicate names and for more than ``depth`` levels too.
    """
    return decoded(body, depth)[0]


def decoded(body: bytes, depth: int = 64) -> tuple[Any, bytes]:
    """The same, with the value's text as ``encode`` writes it: no space between, no name with an escape that it does not need."""
    try:
        value = _decoder.decode(body)
        again = encode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError, ArithmeticError) as error:
        raise MalformedFhir(f"not JSON: {type(error).__name__}") from None
    if again != body and not _as_many_names(body, again):
        _refuse_duplicates(body)
    if not _surely_flat(body, depth // 2):
        _walk(value, depth, lambda text: None)
    return value, again


MOST_VALUES = 50_000
"""Values of a caller's body: what it costs to judge one grows with them."""
MOST_STRING = 1 << 20
"""Characters of a string (FHIR R4 §2.24.0.1); base64 may be longer."""


def decode_strictly(body: bytes, depth: int) -> Any:
    """The same for a caller's body: no deeper than ``depth``, strings no longer than R4 allows and without control characters.

    Raises MalformedFhir.
    """
    value = decode(body, depth)
    _walk(value, depth, _check_text, MOST_VALUES)
    return value


def check_depth(value: Any, depth: int) -> None:
    """Raises MalformedFhir for a value with more levels."""
    _walk(value, depth, lambda text: None)


def _walk(value: Any, depth: int, check: Callable[[str], None], most: int = 1 << 30) -> None:
    """Every level of a value in turn, every string given to ``check``; at most so many values."""
    level, here, seen = 0, [value], 0
    while here:
        seen += len(here)
        if seen > most:
            raise MalformedFhir(f"more than {most} values")
        below: list[Any] = []
        for one in here:
            if type(one) is dict:
                for name in one:
                    check(name)
                below += one.values()
            elif type(one) is list:
                below += one
            elif type(one) is str:
                check(one)
        level += any(type(one) is dict or type(one) is list for one in here)
        if level > depth:
            raise MalformedFhir(f"nested deeper than {depth}")
        here = below


_ALL_BUT_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")


def _surely_flat(body: bytes, rounds: int) -> bool:
    """Whether brackets close within so many rounds of taking away innermost pairs: then they are at most twice as deep.

    Brackets in strings count too; where they do not balance, the answer is no and the value is walked.
    """
    left = body.translate(None, _ALL_BUT_BRACKETS)
    for _ in range(rounds):
        if not left:
            return True
        left = left.replace(b"[]", b"").replace(b"{}", b"")
    return not left


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON, the order of names aside; decimals are compared by their digits."""
    if type(one) is dict:
        return type(other) is dict and one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if type(one) is list:
        return type(other) is list and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Decimal) or isinstance(other, Decimal):
        return isinstance(one, Decimal) and isinstance(other, Decimal) and encode(one) == encode(other)
    return type(one) is type(other) and bool(one == other)


_sorted = msgspec.json.Encoder(order="deterministic", decimal_format="number", enc_hook=_exact)
canonical = _sorted.encode
"""One text for values that are the same JSON, whatever the order of their names."""
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*\Z")


def _check_text(text: str) -> None:
    if len(text) > MOST_STRING and not _BASE64.match(text):
        raise MalformedFhir(f"a string longer than {MOST_STRING} characters (FHIR R4 string)")
    if not text.isprintable() and any(ord(char) < 32 and char not in "\t\r\n" for char in text):
        raise MalformedFhir("a control character in a string (FHIR R4 string)")


# --- duplicate names --------------------------------------------------------------------------------------------------


def _as_many_names(body: bytes, again: bytes) -> bool:
    """Whether text has as many names as its value written again, which has each once; False where that is not certain.

    A name that is dropped takes a colon with it at least, and what is kept keeps its colons, unless they were escaped.
    """
    return body.count(b":") == again.count(b":") and b"\\u003" not in body


def _refuse_duplicates(body: bytes) -> None:
    try:
        json.loads(body, object_pairs_hook=_once, parse_float=str, parse_int=str)
    except MalformedFhir:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedFhir(f"not JSON: {type(error).__name__}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedFhir("a name stands twice in one object")
    return found
