"""What is kept for the backward pass, and what is computed again instead.

A policy pairs ops with codecs; `compress` puts it in place; chunks, gradient checkpointing and the
dtype of frozen weights are the other three ways to need less.

Imports errors, versions, core, codecs, ops.
"""
