"""Mutants of files: the same number of the same file gives the same bytes."""

from __future__ import annotations

import random

from tests.faults.elements import Element, Syntax

# At and around where signed and unsigned numbers of each width end.
MAGIC = (0, 1, 2**7 - 1, 2**7, 2**8 - 1, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
MAGIC += (2**63 - 1, 2**63, 2**64 - 1, 16, 4096, 10**4, 10**6, 10**9)
MOST = 3
"""Mutations of one mutant."""
_HEAD = 256
_LONGEST_BLOCK = 512


def mutant(name: str, number: int, original: bytes, other: bytes, syntax: Syntax | None) -> bytes:
    """One mutant of a file.

    Args:
        name: The original's.
        number: Which one.
        original: The file.
        other: The one that is spliced in.
        syntax: How both are written, where they are made of elements.
    """
    dice = random.Random(f"{name} {number}")
    data = original
    for _ in range(dice.randint(1, MOST)):
        if syntax is not None and dice.random() < 0.5:
            elements = list(syntax.parse(data.removeprefix(syntax.magic)))
            data = syntax.magic + _change_elements(dice, elements, syntax)
        else:
            data = _mutate(dice, data, other)
    return data


def _change_elements(dice: random.Random, elements: list[Element], syntax: Syntax) -> bytes:
    """Changes one element, or one within it, and writes all with their sizes made right."""
    if not elements:
        return b""
    at = dice.randrange(len(elements))
    element = elements[at]
    if element.name in syntax.nested and dice.random() < 0.85:
        front = element.body[: syntax.nested[element.name]]
        inner = list(syntax.parse(element.body[len(front) :]))
        elements[at] = Element(element.name, front + _change_elements(dice, inner, syntax))
    else:
        change = dice.choice(("delete", "copy", "swap", "body", "body", "body", "name", "size"))
        if change == "delete":
            del elements[at]
        elif change == "copy":
            elements[at:at] = [element] * dice.choice((1, 2, 50))
        elif change == "swap":
            place = dice.randrange(len(elements))
            elements[at], elements[place] = elements[place], element
        elif change == "body":
            elements[at] = Element(element.name, _mutate(dice, element.body, element.body))
        elif change == "name":
            elements[at] = Element(dice.choice(elements).name, element.body)
    written = [syntax.write(element) for element in elements]
    if elements and dice.random() < 0.1:
        place = dice.randrange(len(written))
        head, rest = written[place][:16], written[place][16:]
        written[place] = _set_magic(dice, head, b"") + rest if head else rest
    return b"".join(written)


def _mutate(dice: random.Random, data: bytes, other: bytes) -> bytes:
    return dice.choice(_MUTATIONS)(dice, data, other) if data else data


def _place(dice: random.Random, data: bytes) -> int:
    """Headers are short, and most is decided there."""
    return dice.randrange(min(len(data), _HEAD) if dice.random() < 0.5 else len(data))


def _block(dice: random.Random, data: bytes) -> tuple[int, int]:
    start = _place(dice, data)
    return start, start + dice.randint(1, min(_LONGEST_BLOCK, len(data) - start))


def _flip_bits(dice: random.Random, data: bytes, _: bytes) -> bytes:
    flipped = bytearray(data)
    for _count in range(dice.choice((1, 1, 2, 8))):
        flipped[_place(dice, data)] ^= 1 << dice.randrange(8)
    return bytes(flipped)


def _set_bytes(dice: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _block(dice, data)
    end = min(end, start + dice.choice((1, 2, 4, 64)))
    return data[:start] + dice.randbytes(end - start) + data[end:]


def _set_magic(dice: random.Random, data: bytes, _: bytes) -> bytes:
    width = dice.choice((1, 2, 4, 8))
    value = dice.choice([number for number in MAGIC if number < 1 << 8 * width])
    start = _place(dice, data)
    written = value.to_bytes(width, dice.choice(("big", "little")))
    return (data[:start] + written + data[start + width :])[: len(data)]


def _delete(dice: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _block(dice, data)
    return data[:start] + data[end:]


def _duplicate(dice: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _block(dice, data)
    return data[:end] + data[start:end] * dice.choice((1, 1, 10)) + data[end:]


def _swap(dice: random.Random, data: bytes, _: bytes) -> bytes:
    (start, end), (other, _end) = sorted((_block(dice, data), _block(dice, data)))
    end = min(end, other)
    length = min(end - start, len(data) - other)
    one, two = data[start : start + length], data[other : other + length]
    return data[:start] + two + data[start + length : other] + one + data[other + length :]


def _truncate(dice: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: _place(dice, data)]


def _splice(dice: random.Random, data: bytes, other: bytes) -> bytes:
    if not other:
        return data
    if dice.random() < 0.5:
        return data[: _place(dice, data)] + other[_place(dice, other) :]
    start, end = _block(dice, other)
    at = _place(dice, data)
    return data[:at] + other[start:end] + data[at + end - start :]


_MUTATIONS = (
    *(_flip_bits, _set_bytes, _set_magic, _set_magic),
    *(_delete, _duplicate, _swap, _truncate, _splice),
)
