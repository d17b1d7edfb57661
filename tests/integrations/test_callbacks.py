"""A policy in other libraries' loops: less is kept, as much is learnt, nothing stays behind."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader

import lowtide
from lowtide import InputError, UnknownName

pytestmark = pytest.mark.filterwarnings("ignore")
SWAPPED = "_lowtide_plain"
ROWS = [(torch.randn(3, 32, 32), i % 3) for i in range(8)]


def tuned():
    torch.manual_seed(0)
    backbone = timm.create_model("vit_micro_patch4_32")
    return lowtide.apply(backbone, lowtide.METHODS["lora"](rank=2), num_classes=3)


def compressed(model):
    return any(hasattr(type(m), SWAPPED) for m in model.modules())


class Kept:
    """Bytes that autograd keeps, weights not counted."""

    def __init__(self, model):
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self.storages = {}

    def __enter__(self):
        self.hooks = saved_tensors_hooks(self.pack, lambda t: t)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)
        self.nbytes = sum(s.nbytes() for k, s in self.storages.items() if k not in self.weights)
        self.storages.clear()

    def pack(self, tensor):
        self.storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor


def directly(policy):
    """What a step keeps where `compress` is called by hand."""
    model = lowtide.compress(tuned(), lowtide.POLICIES[policy]()).train()
    images = torch.stack([image for image, _ in ROWS])
    with Kept(model) as kept:
        nn.functional.cross_entropy(model(images), torch.tensor([label for _, label in ROWS]))
    return kept.nbytes


def lightning_module(pl, fails=False):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = tuned()

        def training_step(self, batch, number):
            assert compressed(self)
            if fails:
                raise ArithmeticError
            with Kept(self) as self.kept:
                loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)

    return Module()


def fit(pl, module, policy):
    from lowtide.integrations.lightning import PolicyCallback

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=[PolicyCallback(policy)],
        **quiet,
    )
    trainer.fit(module, DataLoader(ROWS, batch_size=8))


def test_lightning_keeps_what_the_policy_says():
    pl = pytest.importorskip("pytorch_lightning")
    module = lightning_module(pl)
    fit(pl, module, "tight")
    assert module.kept.nbytes == directly("tight") < directly("exact") / 4
    assert not compressed(module)


def test_lightning_leaves_nothing_where_a_step_fails():
    pl = pytest.importorskip("pytorch_lightning")
    module = lightning_module(pl, fails=True)
    with pytest.raises(ArithmeticError):
        fit(pl, module, "s2a")
    assert not compressed(module)


def hugging_face(folder, policy, **options):
    transformers = pytest.importorskip("transformers")
    from lowtide.integrations.trainer import PolicyCallback

    class Loss(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            assert compressed(model) == (policy != "exact")
            with Kept(model) as self.kept:
                out = model(inputs["x"])
                loss = nn.functional.cross_entropy(out, inputs["y"])
            return (loss, out) if return_outputs else loss

    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=8,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **options,
    )
    rows = [{"x": image, "y": label} for image, label in ROWS]
    trainer = Loss(tuned(), arguments, train_dataset=rows, callbacks=[PolicyCallback(policy)])
    trainer.train()
    return trainer


def test_transformers_trainer_keeps_what_the_policy_says(tmp_path):
    trainer = hugging_face(tmp_path, "tight")
    assert trainer.kept.nbytes == directly("tight")
    assert not compressed(trainer.model)


def test_a_checkpoint_of_the_trainer_has_the_adapter_of_its_step(tmp_path):
    trained = hugging_face(tmp_path, "exact").model.eval()
    x = torch.randn(2, 3, 32, 32)
    outputs = []
    for step in (1, 2):
        torch.manual_seed(0)
        plain = timm.create_model("vit_micro_patch4_32")
        outputs.append(lowtide.load(plain, tmp_path / f"checkpoint-{step}" / "adapter")(x))
    assert torch.equal(outputs[1], trained(x)) and not torch.equal(*outputs)


def test_what_cannot_be_is_said_in_a_line(tmp_path):
    transformers = pytest.importorskip("transformers")
    from lowtide.integrations.trainer import PolicyCallback

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**size))
    arguments = transformers.TrainingArguments(
        str(tmp_path), gradient_checkpointing=True, report_to="none", use_cpu=True
    )
    rows = [{"pixel_values": image, "labels": 0} for image, _ in ROWS]
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, callbacks=[PolicyCallback()]
    )
    with pytest.raises(InputError, match="gradient_checkpointing"):
        trainer.train()
    with pytest.raises(UnknownName, match="tight"):
        PolicyCallback("tigth")
