"""Object storage behind one Protocol; each SDK is named in exactly one file."""
