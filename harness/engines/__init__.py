"""Engines carry out planned runs: in this process, in processes of this machine, or on a Ray cluster.

An engine has ``slots``, the runs it can have at a time, and ``run(todo)``, which takes runs from the left of a queue
that may grow meanwhile, and yields ``Progress``. What is retried, recorded and counted is decided in one place,
``harness.engines.execute``.
"""
