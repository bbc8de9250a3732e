"""The kernel's door. The only folder that says pyfuse3."""
