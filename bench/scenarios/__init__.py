"""One scenario per file: ``measure(ground)`` does it once and returns its figures."""
