"""Losses and norms that couple the images of a batch: the code of docs/batch-losses.md."""

from __future__ import annotations

import pages
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import lowtide
from lowtide.planning.meter import Meter


@pytest.fixture(scope="module")
def page():
    """Run every code block of the page, one after the other, and give the names they define."""
    torch.manual_seed(0)
    found = pages.run(*pages.code("batch-losses.md"))
    gradient((found["images"], found["texts"]))  # the page's own step left one
    return found


def gradient(modules):
    parts = [p.grad.flatten() for m in modules for p in m.parameters() if p.grad is not None]
    for m in modules:
        m.zero_grad()
    return torch.cat(parts)


def cosine(a, b):
    return F.cosine_similarity(a.double(), b.double(), 0).item()


def kept(towers, loss):
    """Compute a loss; its value, and the bytes of what it keeps for the backward."""
    with Meter(nn.ModuleList(towers)) as meter:
        value = loss()
        return value, meter.now.parts["saved"]


@pytest.fixture
def cases(page):
    """Two towers and a loss of pairs; one tower and a loss of classes."""
    torch.manual_seed(1)
    pictures, words = torch.randn(8, 3, 64, 64), torch.randint(1000, (8, 12))
    labels = torch.arange(8) % 4
    images, texts = page["images"], page["texts"]

    def pairs(part):
        return page["clip_loss"](images(pictures[part]), texts(words[part]))

    def classes(part):
        return page["supervised_contrastive"](images(pictures[part]), labels[part])

    return {"clip": ((images, texts), pairs), "supervised": ((images,), classes)}


ALL = slice(None)


@pytest.mark.parametrize("name", ["clip", "supervised"])
def test_the_whole_batch_is_one_graph_in_a_few_bits(cases, name):
    towers, loss = cases[name]
    found = {}
    for policy in ("exact", "tight"):
        for tower in towers:
            lowtide.compress(tower, policy)
        value, alive = kept(towers, lambda: loss(ALL))
        value.backward()
        found[policy] = value.item(), gradient(towers), alive
    assert found["tight"][0] == found["exact"][0]
    assert cosine(found["tight"][1], found["exact"][1]) > 0.99
    assert found["tight"][2] < found["exact"][2] / 2


@pytest.mark.parametrize("name", ["clip", "supervised"])
def test_half_batches_are_another_loss(cases, name):
    towers, loss = cases[name]
    whole = loss(ALL)
    whole.backward()
    exact = gradient(towers)
    halves = (loss(slice(0, 4)) + loss(slice(4, 8))) / 2
    halves.backward()
    assert abs(halves.item() - whole.item()) > 0.1
    assert cosine(gradient(towers), exact) < 0.99


def test_the_supervised_loss_is_the_one_of_the_paper(page):
    z, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0])
    u = F.normalize(z, dim=-1)
    total = 0.0
    for i in range(6):
        others = [a for a in range(6) if a != i]
        below = sum(torch.exp(u[i] @ u[a] / 0.1) for a in others)
        same = [p for p in others if labels[p] == labels[i]]
        for p in same:
            total -= torch.log(torch.exp(u[i] @ u[p] / 0.1) / below) / len(same)
    torch.testing.assert_close(page["supervised_contrastive"](z, labels), total / 6)


def test_batch_statistics_stay_those_of_the_whole_batch():
    torch.manual_seed(0)
    backbone = timm.create_model("resnet10t", num_classes=4)
    model = lowtide.apply(backbone, lowtide.METHODS["full"]()).train()
    pictures, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 4
    start = {n: b.clone() for n, b in model.named_buffers()}
    found = {}
    for name, parts in (("exact", 1), ("tight", 1), ("halves", 2)):
        for n, b in model.named_buffers():
            b.copy_(start[n])
        policy = "tight" if name == "tight" else "exact"
        lowtide.compress(model, policy)
        for some, classes in zip(pictures.chunk(parts), labels.chunk(parts), strict=True):
            (F.cross_entropy(model(some), classes) / parts).backward()
        found[name] = gradient([model]), {n: b.clone() for n, b in model.named_buffers()}
    exact, buffers = found["exact"]
    assert cosine(found["tight"][0], exact) > 0.99
    assert all(torch.equal(b, buffers[n]) for n, b in found["tight"][1].items())
    assert cosine(found["halves"][0], exact) < 0.99
    assert not all(torch.equal(b, buffers[n]) for n, b in found["halves"][1].items())
