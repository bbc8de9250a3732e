"""The file system itself: verbs that take and return plain values and know nothing of FUSE."""
