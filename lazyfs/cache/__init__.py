"""Cached blocks in tiers. A tier may be absent, slow or wrong: then it is a miss and one warning."""
