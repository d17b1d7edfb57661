"""What a training step of a dense task will need."""

from __future__ import annotations

from torch import nn

from ..core.graft import Method
from ..families import meta_copy
from ..planning.simulate import Plan, set_up_step, simulate_step
from ..planning.step import StepConfig
from ..tuning.tuned import apply
from ..versions import on_meta
from .pyramid import backbone_path
from .tasks.kind import DenseTask


def plan_task(task: DenseTask, body: nn.Module, method: Method, step: StepConfig) -> Plan:
    """Measure a training step that never runs.

    Args:
        task: The task.
        body: A timm backbone, which is not changed.
        method: What would train of it; the rest of the model trains whole.
        step: Batch, policy and everything else that decides a step's memory.

    Returns:
        The plan.
    """
    with on_meta():
        model = task.model(meta_copy(body))
        tuned = apply(model, method, backbone=backbone_path(model))
    return simulate_step(set_up_step(tuned, step), step, learning=task)
