"""What users of the Hookjetty service install: verify what arrives, publish, call the API."""
