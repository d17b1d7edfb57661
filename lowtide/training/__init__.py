"""A run: its options, the loop, and the files it leaves.

`RunConfig` holds every option; `prepare` reads data and makes the model; the loop trains, scores,
keeps a checkpoint to resume from, and writes the summary.

Imports errors, paths, extras, values, yaml_text, kernels, core, methods, families, tuning, targets,
planning, data, presets, dense.
"""
