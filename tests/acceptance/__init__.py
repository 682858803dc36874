"""Real processes, real signals, and a receiver that keeps its own books."""
