"""Random changes of files."""

from __future__ import annotations

import random


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(max(1, len(changed)))
        deed = chance.randrange(6)
        if deed == 0:
            del changed[at : at + chance.choice((1, 4, 100))]
        elif deed == 1:
            changed[at:at] = chance.randbytes(chance.choice((1, 4, 100)))
        elif deed == 2:
            changed[at : at + 40] = bytes(len(changed[at : at + 40]))
        elif deed == 3:
            del changed[max(20, at) :]
        else:
            changed[at : at + 1] = chance.randbytes(1)
    return bytes(changed)
