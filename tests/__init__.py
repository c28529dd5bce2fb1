"""A package of that name lies in some installations (mmsegmentation brings one); this one comes first on the path."""
