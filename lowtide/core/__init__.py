"""The words of the library: where a backbone can be edited, and what may be put there.

A site is a place, a graft a module around another, a method the edits it asks for; linear maps,
scale-shift and tensor trains are the arithmetic that grafts share.

Imports errors, versions.
"""
