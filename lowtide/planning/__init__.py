"""What a training step needs, before it runs: simulated on shapes, metered, searched.

`StepConfig` says what a step is; the memory meter and the cost model watch one; `plan` simulates
it, and `search` finds what fits into a budget.

Imports errors, versions, values, core, memory, families, tuning, targets.
"""
