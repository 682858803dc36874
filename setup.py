"""Everything about the package stands in setup.cfg; installers ask for this file by name."""

from setuptools import setup

setup()
