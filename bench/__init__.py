"""How fast Hookjetty is on this machine: ``make bench``. See bench/README.md."""
