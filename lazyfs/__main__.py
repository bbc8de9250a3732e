"""`python -m lazyfs` is `lazyfs`."""

from lazyfs.cli.main import main

main()
