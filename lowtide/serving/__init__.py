"""Runs behind one HTTP server: one backbone in memory, requests of all tasks in one batch.

LitServe batches, runs the workers and carries requests to them; here is what a request may be,
which tasks there are, and how a batch is answered. `worker` and `app` need the extra `serve`;
`cluster`, which does the same on Ray Serve, needs `ray-serve`.

Imports errors, values, tuning, targets, multi_adapter, data, training, inference.
"""
