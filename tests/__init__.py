"""The tests: one file per behaviour; ``acceptance/`` runs the real processes and kills them."""
