"""DEM*: the pair (tau, alpha) of DEM, searched on a labelled part of the data (arXiv 2511.03256, appendix)."""
