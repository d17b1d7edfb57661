"""Dense tasks: a class for every pixel, boxes, or a mask of every object, on timm backbones.

Models are timm's backbones with decoders of segmentation_models_pytorch or detectors of
torchvision; scores are torchmetrics'. One task is one file in `tasks/`.

Imports errors, versions, extras, values, core, ops, memory, families, tuning, targets, planning,
data.
"""
