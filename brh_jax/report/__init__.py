"""Pictures and pages from arrays."""
