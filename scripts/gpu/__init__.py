"""The check of a CUDA device, ``dembench check gpu``: its tests, the losses, and a step of each task, in a few minutes.

Every part is a process of its own with its own time limit (``parts``), so that one that fails or hangs costs the others
nothing. A part reports each figure as soon as it has it (``rows``), and the page and the JSON file are written anew
after every one (``page``).
"""
