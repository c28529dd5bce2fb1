"""Configurations as package data: Hydra reads them from ``pkg://configs``, installed or not."""
