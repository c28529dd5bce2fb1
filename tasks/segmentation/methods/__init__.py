"""Methods: how a network learns from labelled source and unlabelled target images."""
