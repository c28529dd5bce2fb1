"""Semi-supervised methods, a file each."""
