"""How hard the campaigns try: a seeded part usually, all of it with LAZYFS_THOROUGH=1 (`scripts/test --thorough`).

LAZYFS_SEED chooses where faults fall; the same seed lets them fall in the same places.
"""

from __future__ import annotations

import os

THOROUGH = os.environ.get("LAZYFS_THOROUGH", "") not in {"", "0"}
SEED = int(os.environ.get("LAZYFS_SEED", "2026"))


def times(usually: int, thorough: int) -> int:
    """How often, or how many."""
    return thorough if THOROUGH else usually
