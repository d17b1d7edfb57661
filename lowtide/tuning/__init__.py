"""A backbone with methods in place: applied, checked, run, saved, loaded, merged.

`apply` makes a `Tuned`; side networks run along the blocks; adapter files hold what trained.

Imports errors, paths, values, zoo, core, memory, methods, families.
"""
