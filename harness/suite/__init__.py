"""Suites: many grids under one name, run as far as their data is on this machine."""
