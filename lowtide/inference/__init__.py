"""What a finished run answers: classes of images, and scores on a split.

It opens a run folder or a merged file and asks nothing of how it was trained.

Imports errors, versions, paths, extras, values, core, memory, methods, families, tuning, targets,
multi_adapter, planning, data, dense, training.
"""
