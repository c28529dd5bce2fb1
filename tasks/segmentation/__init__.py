"""Semantic segmentation across domains on mmsegmentation: labelled source images, unlabelled target images."""

from dembench.tasks.segmentation.ops import install

install()
