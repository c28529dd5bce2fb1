"""Entropy-minimisation losses, decoupled: EM, CADF, GMC, DEM and AdaDEM. Imports torch and nothing else."""

from .losses import CADF, DEM, EM, GMC, AdaDEM

__all__ = ["CADF", "DEM", "EM", "GMC", "AdaDEM"]
