"""The pure heart: data types, errors and decisions. No I/O, no clock, no trio; standard library only."""
