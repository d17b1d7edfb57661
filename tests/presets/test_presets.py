"""Presets: every recipe resolves, overriding works, and the values are the published ones."""

from __future__ import annotations

import dataclasses
from statistics import mean

import pytest
import timm
import torch
import yaml
from PIL import Image

from lowtide import METHODS
from lowtide.cli import main
from lowtide.errors import UnknownName
from lowtide.families import FAMILIES
from lowtide.methods.noah import PARTS
from lowtide.presets import SUITES, preset, presets, recipes
from lowtide.targets import DENSE
from lowtide.training.config import RunConfig
from lowtide.training.loop import CONFIG
from lowtide.training.options import Parser, run_config
from lowtide.tuning.applying import apply
from lowtide.versions import on_meta

PRESETS = presets()


def resolved(*args):
    parser = Parser("train", "")
    parser.add_argument("--config", type=str)
    return run_config(parser, args)[0]


@pytest.mark.parametrize("recipe", recipes(), ids=lambda r: r.name)
def test_every_preset_resolves(recipe):
    """To options that exist and, where the method does, to a method that takes its own."""
    assert recipe.source
    assert recipe.differs
    assert recipe.presets
    for key in recipe.presets:
        name, options = preset(f"{recipe.name}/{key}")
        method = options["method"]["name"]
        assert name == f"{recipe.name}/{key}"
        assert timm.is_model(options["model"].partition(".")[0])
        assert options["model"] in timm.list_pretrained("*" + options["model"])
        if method not in METHODS:
            options = options | {"method": "linear"}
        config = RunConfig.from_dict({**options, "data": "d"})
        explicit = options.keys() | {"data", "preset"}
        assert explicit >= DECIDED, DECIDED - explicit
        for option in options.keys() - {"method"}:
            assert type(getattr(config, option)) is type(options[option]), option


DECIDED = {
    "model",
    "method",
    "lr",
    "min_lr",
    "weight_decay",
    "epochs",
    "warmup_epochs",
    "cooldown_epochs",
    "batch_size",
    "opt",
    "drop_path",
    "smoothing",
    "augment",
    "normalize",
    "clip_grad",
}
"""What a recipe may not leave to a default."""


@pytest.mark.parametrize("method", sorted({o["method.name"] for o in PRESETS.values()}))
def test_methods_that_exist_apply_with_a_recipes_options(method):
    """To the smallest member of the recipe's family, every distinct set of options."""
    if method not in METHODS:
        pytest.skip(f"the method {method} is not there yet")
    seen = set()
    for name, options in PRESETS.items():
        inner = {k: v for k, v in options.items() if k.startswith("method.")}
        family = {"v": "vit", "s": "swin", "c": "convnext"}[options["model"][0]]
        if inner["method.name"] != method or (family, str(inner)) in seen:
            continue
        seen.add((family, str(inner)))
        chosen = RunConfig.from_dict({"data": "d", **preset(name)[1]}).method
        if "method.start_block" in inner:  # the tiny backbone has fewer blocks
            chosen = dataclasses.replace(chosen, start_block=0)
        backbone = FAMILIES[family].tiny()
        if "method.prompts" in inner:
            widths = {n: getattr(chosen, n)[: len(backbone.blocks)] for n in PARTS}
            chosen = dataclasses.replace(chosen, **widths)
        trained, _ = apply(backbone, chosen, num_classes=3).trainable_counts()
        assert trained > 0
    assert seen


def test_names_and_their_spellings():
    assert preset("dtl+/vtab/cifar100")[0] == "dtl_plus/vtab/cifar"
    assert preset("DTL-Swin/VTAB/pets")[0] == "dtl_swin/vtab/oxford_iiit_pet"
    assert preset("ssf/fgvc/CUB-200-2011")[0] == "ssf/fgvc/cub"
    assert preset("dtl/few-shot/stanford-cars-8")[0] == "dtl/few_shot/cars_8"
    for others in SUITES.values():
        spelt = [n for task, more in others.items() for n in (task, *more)]
        assert len(spelt) == len(set(spelt))
    for name in PRESETS:
        assert name.split("/")[2] in SUITES[name.split("/")[1]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("dtl/vtab/cifr", "did you mean dtl/vtab/cifar or"),
        ("ssf/fvgc/cub", "did you mean ssf/fgvc/cub or"),
        ("nothing", "known: adapter/SUITE/TASK"),
    ],
)
def test_an_unknown_preset_gets_one_line(given, said, capsys):
    with pytest.raises(UnknownName, match="unknown preset"):
        preset(given)
    for args in (["train", "--preset", given], ["presets", given]):
        assert main(args) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err


def test_all_tasks_of_vtab_where_a_recipe_has_the_suite():
    for recipe in recipes():
        tasks = [key.partition("/")[2] for key in recipe.presets if key.startswith("vtab/")]
        assert len(tasks) in {0, 19} or recipe.name == "vpt"


def column(recipe, option, suite="vtab"):
    rows = next(r for r in recipes() if r.name == recipe).presets
    return [options[option] for key, options in rows.items() if key.startswith(suite)]


def test_parameter_counts_that_follow_from_the_published_tables():
    """Means over the 19 tasks: an independent check on every rank and kernel."""
    tt = [2 * 768 * r + 144 * r * r for r in column("fact_tt", "method.rank")]
    tk = [2 * 768 * r + r**3 + 144 * r for r in column("fact_tk", "method.rank")]
    plus = [12 * 2 * 2 * 768 + 768 * k * k for k in column("dtl_plus", "method.kernel")]
    assert round(mean(tt)) == 39_734
    assert round(mean(tk)) == 68_985
    assert round(mean(plus)) == 50_728
    assert set(column("dtl_plus_swin", "method.kernel")) == {5}
    assert column("rlrr", "augment").count("none") == 9


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dtl/vtab/cifar", 36_864),
        ("dtl_plus/vtab/cifar", 43_776),
        ("dtl_plus/vtab/clevr_dist", 49_152),
        ("dtl_plus/vtab/dtd", 56_064),
        ("dtl_swin/vtab/cifar", 90_112),
        ("dtl_plus_swin/vtab/cifar", 128_512),
        ("rlrr/vtab/cifar", 288_768),
        ("ssf/vtab/cifar", 205_824),
        ("ssf_swin/whole/cifar100", 267_264),
        ("ssf_convnext/whole/cifar100", 255_232),
        ("fact_tt/vtab/clevr_dist", 8_448),
        ("fact_tt/vtab/svhn", 61_440),
        ("fact_tk/vtab/svhn", 86_528),
        ("fact_tk/vtab/sun397", 30_976),
        ("lora/vtab/cifar", 294_912),
        ("adapter/vtab/cifar", 156_768),
        ("adaptformer/vtab/cifar", 156_768),
        ("adaptformer/whole/svhn", 1_189_632),
        ("arc/vtab/cifar", 96_432),
        ("arc_swin/vtab/cifar", 218_464),
        ("vpt/vtab/dmlab", 921_600),
        ("noah/vtab/cifar", 320_330),
        ("noah/vtab/svhn", 431_686),
        ("linear/whole/cifar100", 0),
    ],
)
def test_on_the_recipes_own_backbone_the_published_count_trains(name, count):
    _, options = preset(name)
    if options["method"]["name"] not in METHODS:
        pytest.skip(f"the method {options['method']['name']} is not there yet")
    with on_meta():
        backbone = timm.create_model(options["model"], num_classes=100)
        head = sum(p.numel() for p in backbone.get_classifier().parameters())
        tuned = apply(backbone, RunConfig.from_dict({**options, "data": "d"}).method)
    assert tuned.trainable_counts()[0] - head == count


def test_a_preset_decides_everything_but_the_data():
    config = resolved("--data", "d", "--preset", "rlrr/vtab/dmlab")
    assert config.method == METHODS["rlrr"]()
    assert config.head_init == "zero"
    config = resolved("--data", "d", "--preset", "arc/vtab/dmlab", "--head-init", "own")
    assert config.head_init == "own"
    config = resolved("--data", "d", "--preset", "ssf/vtab/dmlab")
    assert config == RunConfig(
        model="vit_base_patch16_224.augreg_in21k",
        data="d",
        method=METHODS["ssf"](),
        epochs=110,
        warmup_epochs=10.0,
        cooldown_epochs=10,
        batch_size=64,
        lr=5e-3,
        min_lr=1e-8,
        weight_decay=5e-5,
        drop_path=0.1,
        head_init="trunc_normal",
        keep="last",
        preset="ssf/vtab/dmlab",
    )


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_leaves_nothing_to_be_decided(name):
    """Options that a run may leave open are the paper's, whatever the defaults are or become."""
    config = resolved("--data", "d", "--preset", name)
    assert config.keep == ("best" if "few_shot" in name else "last")
    assert config.head_init != "probe" or config.task in DENSE  # which have no classifier
    assert None not in (config.lr, config.epochs, config.warmup_epochs)


def test_arguments_override_a_file_and_a_file_a_preset(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("lr: 0.02\nbatch_size: 8\nmethod: {rank: 4}\n")
    args = ["--preset", "lora/vtab/cifar-100", "--config", str(file), "--batch-size", "16"]
    config = resolved("--data", "d", *args, "--method.dropout", "0.3")
    assert (config.lr, config.batch_size, config.drop_path) == (0.02, 16, 0.1)
    assert config.method == METHODS["lora"](rank=4, dropout=0.3)
    assert config.preset == "lora/vtab/cifar"
    file.write_text("preset: lora/vtab/svhn\nlr: 0.5\n")
    config = resolved("--data", "d", "--config", str(file))
    assert (config.lr, config.epochs, config.preset) == (0.5, 100, "lora/vtab/svhn")


def test_another_method_keeps_the_recipe_and_drops_its_options():
    config = resolved("--data", "d", "--preset", "lora/vtab/cifar", "--method", "bias")
    assert config.method == METHODS["bias"]()
    assert config.batch_size == 64


def test_a_run_folder_needs_no_preset(tmp_path, monkeypatch):
    """Its config is complete: the name is a record, and may be one nobody knows any more."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    run = tmp_path / "run"
    args = ["train", "--preset", "lora/vtab/cifar", "--data", str(tmp_path / "images")]
    args += ["--model", "vit_micro_patch4_32", "--epochs", "1", "--warmup-epochs", "0"]
    assert main([*args, "--device", "cpu", "--output", str(run)]) == 0
    left = yaml.safe_load((run / CONFIG).read_text())
    assert left.keys() == {f.name for f in dataclasses.fields(RunConfig)}
    assert (left["preset"], left["drop_path"], left["epochs"]) == ("lora/vtab/cifar", 0.1, 1)
    (run / CONFIG).write_text(yaml.safe_dump({**left, "preset": "gone/vtab/cifar"}))
    config = resolved("--config", str(run / CONFIG))
    assert config.to_dict() == {**left, "preset": "gone/vtab/cifar"}


def test_the_list_can_be_searched(capsys):
    assert main(["presets", "ssf/*/cifar"]) == 0
    out = capsys.readouterr().out
    assert "ssf/vtab/cifar" in out
    assert "ssf/whole/cifar100" in out
    assert "lora" not in out


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "ssf/whole/cifar100",
            {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25, "ema": 0.99992},
        ),
        ("ssf/whole/imagenet", {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25, "epochs": 40}),
        ("ssf/fgvc/cub", {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "ema": 0.9998}),
        ("ssf/vtab/cifar", {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "random_erasing": 0.0}),
        ("rlrr_augmented/fgvc/cub", {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "ema": 0.9998}),
        ("rlrr/fgvc/cub", {"mixup": 0.0, "ema": 0.0}),
        ("dtl/few_shot/food_1", {"auto_augment": "rand-m9-mstd0.5-inc1", "keep": "best"}),
    ],
)
def test_augmented_recipes_are_what_the_authors_run(name, wanted):
    config = resolved("--data", "d", "--preset", name)
    assert {option: getattr(config, option) for option in wanted} == wanted
