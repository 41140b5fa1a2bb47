"""How much one object may be, whatever way it comes in: checked before anything is built of it (design rule 12).

The largest radiographs have about 20 million pixels of two bytes: 40 MB. What is far beyond is no radiograph, and would
cost memory and time that the others need.
"""

from __future__ import annotations

from dataclasses import dataclass

OBJECT_BYTES = 96 * 2**20  # of a file, an archive's member or a C-STORE data set, also once inflated
PIXELS = 16384 * 16384 // 10  # rows x columns
DEPTH = 16  # of sequences inside sequences, of what is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one data set may hold: a microsecond each for what is passed over, ten for what is kept."""

    elements: int = 100_000  # and items, kept or passed over
    kept: int = 10_000  # elements, items and values that are kept, see `needed`
    kept_bytes: int = 1 << 18  # of them, but for the look-up tables
    table_bytes: int = 1 << 22  # of the look-up tables: each has at most 128 KiB


HEADER = Budget()
COMMITMENT = Budget(elements=600_000, kept_bytes=1 << 24)  # a hundred thousand references
