"""Kinds of targets: losses, starts and scores against their equations written out another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as PlainRidge

from lowtide import InputError, LowtideError, UnknownName
from lowtide.targets import KINDS, blank, construct, describe
from lowtide.targets.calibration import expected_calibration_error, fit_temperature
from lowtide.targets.classify import Classify, draw_weights
from lowtide.targets.multilabel import Multilabel
from lowtide.targets.regress import Regress

RNG = np.random.default_rng(7)
ABC = ("a", "b", "c")


def test_the_weighted_loss_is_its_equation_and_does_not_depend_on_how_a_batch_is_cut():
    labels = [0] * 6 + [1] * 3 + [2]
    kind = Classify.of(ABC, labels, balance="weights", smoothing=0.1)
    assert kind.weights == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert np.mean([kind.weights[k] for k in labels]) == pytest.approx(1)
    logits, truth = torch.randn(10, 3, dtype=torch.float64).float(), torch.tensor(labels)
    smooth = F.one_hot(truth, 3) * 0.9 + 0.1 / 3
    each = -(smooth * logits.log_softmax(-1)).sum(-1) * torch.tensor(kind.weights)[truth]
    assert kind.loss(logits, truth).item() == pytest.approx(each.mean().item(), abs=1e-6)
    parts = sum(kind.loss(logits[i], truth[i]) * len(truth[i]) for i in (slice(3), slice(3, 10)))
    assert parts.item() / 10 == pytest.approx(each.mean().item(), abs=1e-6)
    assert Classify.of(ABC, [0, 0, 2], balance="weights").weights == pytest.approx((0.75, 0, 1.5))


def test_mixed_images_weigh_what_their_classes_do():
    kind = Classify.of(ABC, [0, 0, 0, 1, 2, 2], balance="weights")
    logits, truth = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    shares = F.one_hot(truth, 3).float()
    assert kind.loss(logits, shares).item() == pytest.approx(kind.loss(logits, truth).item())
    mixed = (shares + shares.flip(0)) / 2
    weights = mixed @ torch.tensor(kind.weights)
    wanted = (-(mixed * logits.log_softmax(-1)).sum(-1) * weights).mean()
    assert kind.loss(logits, mixed).item() == pytest.approx(wanted.item())


def test_averaged_answers_are_means_of_answers():
    one, other = torch.randn(2, 5, 3)
    shares = Classify.averaged((one, other)).softmax(-1)
    assert torch.allclose(shares, (one.softmax(-1) + other.softmax(-1)) / 2)
    each = Multilabel.averaged((one, other)).sigmoid()
    assert torch.allclose(each, (one.sigmoid() + other.sigmoid()) / 2)
    kind = Regress(("n",), mean=3.0, std=2.0)
    numbers = [kind.numbers(x[:, :1]) for x in (one, other)]
    assert torch.allclose(kind.numbers(kind.averaged((one[:, :1], other[:, :1]))), sum(numbers) / 2)


def test_draws_give_each_class_as_much_weight():
    labels = [0] * 6 + [2] * 2
    weights = draw_weights(labels, 3)
    assert [sum(w for w, k in zip(weights, labels, strict=True) if k == c) for c in (0, 2)] == [
        pytest.approx(1),
        pytest.approx(1),
    ]


def test_the_other_losses_are_their_equations():
    logits, truth = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).double()
    kind = Multilabel.of(ABC, [])
    p = logits.double().sigmoid()
    wanted = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    assert kind.loss(logits, kind.encode(truth)).item() == pytest.approx(wanted.item(), abs=1e-6)
    numbers = [(1e9 + v,) for v in (3.0, 5.0, 10.0)]
    outputs = torch.tensor([[0.5], [-2.0], [1.0]])
    for name in ("mse", "smooth_l1"):
        kind = Regress.of(("age",), numbers, loss=name)
        y = np.array(numbers)[:, 0]
        d = np.abs(outputs.numpy()[:, 0] - (y - y.mean()) / y.std())
        each = d**2 if name == "mse" else np.where(d < 1, d**2 / 2, d - 0.5)
        encoded = kind.encode(torch.tensor(numbers, dtype=torch.float64))
        assert kind.loss(outputs, encoded).item() == pytest.approx(each.mean(), rel=1e-5)
        assert kind.numbers(encoded).flatten().tolist() == pytest.approx(y, abs=1e-3)


def test_scores_of_classes_are_those_of_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    logits = torch.randn(400, 5) * 2
    truth = torch.where(torch.rand(400) < 0.6, logits.argmax(-1), torch.randint(0, 5, (400,)))
    found = Classify(tuple("abcde")).scores(logits, truth)
    of = {"num_classes": 5}
    p = logits.double().softmax(-1)
    wanted = {
        "accuracy": metrics.multiclass_accuracy(p, truth, average="micro", **of),
        "mean_class_accuracy": metrics.multiclass_accuracy(p, truth, average="macro", **of),
        "macro_f1": metrics.multiclass_f1_score(p, truth, average="macro", **of),
        "auroc": metrics.multiclass_auroc(p, truth, average="macro", **of),
        "ece": metrics.multiclass_calibration_error(p, truth, n_bins=15, norm="l1", **of),
    }
    assert found == pytest.approx({k: float(v) for k, v in wanted.items()}, abs=1e-6)


def test_scores_of_labels_are_those_of_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    logits, truth = torch.randn(200, 4), torch.randint(0, 2, (200, 4))
    truth[:, 3] = 0
    found = Multilabel(tuple("abcd")).scores(logits, truth.double())
    of, p = {"num_labels": 3}, logits.sigmoid()
    each = metrics.multilabel_average_precision(p[:, :3], truth[:, :3], average="macro", **of)
    f1 = metrics.multilabel_f1_score(p[:, :3], truth[:, :3], average="macro", **of)
    micro = metrics.multilabel_f1_score(p, truth, num_labels=4, average="micro")
    assert found["map"] == pytest.approx(float(each), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(float(f1), abs=1e-6)
    assert found["micro_f1"] == pytest.approx(float(micro), abs=1e-6)
    assert found["exact"] == pytest.approx(
        float(((logits > 0) == truth.bool()).all(1).double().mean())
    )


def test_scores_of_numbers_are_their_equations():
    kind = Regress(("age",), mean=10.0, std=4.0)
    outputs, truth = torch.tensor([[0.0], [1.0], [-1.0]]), torch.tensor([[12.0], [13.0], [5.0]])
    error = np.array([10, 14, 6]) - np.array([12, 13, 5])
    spread = np.array([12, 13, 5]) - 10
    assert kind.scores(outputs, truth.double()) == pytest.approx({
        "mae": np.abs(error).mean(),
        "rmse": math.sqrt((error**2).mean()),
        "r2": 1 - (error**2).sum() / (spread**2).sum(),
    })
    assert kind.answer(outputs[1], 5) == {"value": 14.0}


@pytest.mark.parametrize("largest", [1e200, 1e300])
def test_numbers_without_a_deviation_are_refused(largest):
    with pytest.raises(InputError, match="n reaches 1e\\+.00: its deviation is no number"):
        Regress.of(("n",), [(0.0,), (largest,)])
    with pytest.raises(InputError, match="every training image has n 2: expected numbers that"):
        Regress.of(("n",), [(2.0,), (2.0,)])


def test_what_is_not_defined_is_left_out_and_what_is_no_number_refused():
    assert "auroc" not in Classify(ABC).scores(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    assert set(Multilabel(ABC).scores(torch.randn(4, 3), torch.zeros(4, 3).double())) == {
        "micro_f1",
        "exact",
    }
    assert "r2" not in Regress(("n",)).scores(torch.zeros(2, 1), torch.ones(2, 1).double())
    for kind in (Classify(ABC), Multilabel(ABC), Regress(("n",))):
        outputs = torch.full((2, len(kind.names)), math.nan)
        targets = torch.zeros(2, dtype=torch.long) if kind.task == "classify" else outputs.double()
        with pytest.raises(LowtideError, match="2 of 2 images is no number"):
            kind.scores(outputs, targets)


def test_temperature_undoes_what_logits_were_multiplied_by():
    logits = torch.randn(4000, 3) * 2
    truth = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(0))[
        :, 0
    ]
    assert fit_temperature(logits * 3, truth) == pytest.approx(3, rel=0.1)
    spoilt = expected_calibration_error(logits * 3, truth)
    mended = expected_calibration_error(logits * 3, truth, fit_temperature(logits * 3, truth))
    assert mended < spoilt / 3


def test_starts_are_those_of_scikit_learn():
    x = ((RNG.normal(size=(60, 5)) + 20) * (1, 2, 3, 4, 5)).astype(np.float32)
    z = (x - x.mean(0)) / x.std(0)  # none so small as a tenth of all together
    y = (z @ RNG.normal(size=(5, 3)) + RNG.normal(size=(60, 3)) > 0).astype(float)
    y[:, 2] = 0
    found = Multilabel(ABC).fit(x, y, 0)
    for k in (0, 1):
        plain = LogisticRegression(C=found.strength, max_iter=1000).fit(z, y[:, k])
        assert x @ found.weight[k] + found.bias[k] == pytest.approx(
            plain.decision_function(z), abs=2e-2
        )
    assert not found.weight[2].any() and found.bias[2] == pytest.approx(math.log(1 / 61))
    numbers = 50 + 9 * (z @ RNG.normal(size=(5, 1))) + RNG.normal(size=(60, 1))
    kind = Regress.of(("n",), [tuple(v) for v in numbers.tolist()])
    found = kind.fit(x, numbers, 0)
    plain = PlainRidge(alpha=1 / found.strength).fit(z, numbers)
    outputs = torch.from_numpy(x @ found.weight.T + found.bias)
    assert kind.numbers(outputs).numpy()[:, 0] == pytest.approx(plain.predict(z).ravel(), abs=1e-2)


@pytest.mark.parametrize("task", KINDS)
def test_every_kind_reads_back_and_stands_in_for_a_plan(task):
    kind = KINDS[task]
    made = kind.of(ABC[: 1 if task == "regress" else 3], kind.examples(1))
    again = construct(made.names, describe(made))
    assert describe(again) == describe(made) and again.names == made.names
    stand_in = blank(task, 4)
    outputs = torch.randn(6, 4, requires_grad=True)
    stand_in.loss(outputs, stand_in.batch(6)).backward()
    assert outputs.grad.abs().sum() > 0


def test_answers_name_what_is_probable():
    logits = torch.tensor([2.0, -1.0, 3.0])
    assert list(Classify(ABC).answer(logits, 2)["probabilities"]) == ["c", "a"]
    assert Multilabel(ABC).answer(logits, 2)["labels"] == ["a", "c"]
    assert Multilabel(ABC).text(ABC, (1.0, 0.0, 1.0)) == "a;c"


def test_damaged_files_are_refused():
    with pytest.raises(UnknownName, match="regres"):
        construct(("n",), {"task": "regres"})
    for wrong in ({}, {"mean": 0, "std": 0}, {"mean": "x", "std": 1}):
        with pytest.raises(InputError):
            construct(("n",), {"task": "regress", **wrong})
