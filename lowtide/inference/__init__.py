"""Use finished runs: classify images, and score splits.

It opens a run folder or a merged file and asks nothing of how it was trained.

Imports errors, versions, paths, extras, values, core, memory, methods, families, tuning, targets,
multi_adapter, planning, data, dense, training.
"""
