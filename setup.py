"""Packaging: everything is said in setup.cfg; this file is what setuptools looks for."""

from setuptools import setup

setup()
