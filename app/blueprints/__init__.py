"""The surfaces: one blueprint (or package of them) each, and the Flask glue they share."""
