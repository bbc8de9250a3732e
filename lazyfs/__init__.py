"""lazyfs mounts an S3-compatible bucket as a file system for machine learning."""

__version__ = "0.1.0"
