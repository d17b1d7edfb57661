"""Callbacks that put a policy into other libraries' training loops.

Each module needs the library it is named after; nothing else of lowtide imports it.

Imports errors, memory, tuning.
"""
