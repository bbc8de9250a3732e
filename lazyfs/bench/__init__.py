"""What `lazyfs bench` measures: emulated training over ways to get at the data."""
