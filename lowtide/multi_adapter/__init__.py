"""Many adapters on one backbone: what they leave untouched runs once, the rest side by side.

An adapter brings its edits and its classifier; the backbone is one, frozen, and as plain between
two calls as it was. Edits are put in place for the length of an element of the chain.

Imports errors, paths, values, core, families, tuning.
"""
