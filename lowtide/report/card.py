"""A run for the Hugging Face hub: its adapter, and a model card made from its summary."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import InputError, LowtideError
from ..inference.hub import CARD, REFUSED, hub, reason
from ..paths import write_text
from ..training.owner import SUMMARY, refuse_unfinished
from ..training.summary import read_summary
from ..tuning.adapter_config import unfit
from ..tuning.adapter_files import read_adapter, write_adapter
from .repeat import repeat

BODY = """\
# {name}

`{model}` fine-tuned with {method} on {data} by lowtide. The files hold what trained; the backbone's
weights are timm's.

| | |
|---|---|
{rows}

```python
import lowtide

trained = lowtide.from_hub("{repo}")
logits = trained.tuned(trained.transform(image)[None])  # image: PIL, RGB
```

or `lowtide predict hf:{repo} image.jpg`. It was trained by

    {command}

Classes: {classes}.
"""


def push_to_hub(
    run: Path | str, repo_id: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload a finished run: what trained, and a card that says how.

    Args:
        run: The run folder.
        repo_id: `USER/NAME`; made if missing.
        private: Whether a new repository is to be private.
        token: By default the one that `hf auth login` keeps.

    Returns:
        The address.

    Raises:
        LowtideError: The hub refuses, or is out of reach.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_card_folder(Path(run), Path(folder), repo_id)
        api = hub(token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a run")
        except REFUSED as e:
            raise LowtideError(f"cannot upload to {repo_id}: {reason(e)}") from e
    return f"{api.endpoint}/{repo_id}"


def write_card_folder(run: Path, folder: Path, repo_id: str) -> None:
    """Write what is uploaded: adapter and card, without paths of this machine.

    Args:
        run: A finished run folder.
        folder: Where to.
        repo_id: For the card.

    Raises:
        InputError: `run` holds no finished run, or one of a dense task.
    """
    refuse_unfinished(run)
    config, state = read_adapter(run)
    if not (run / SUMMARY).is_file():
        raise InputError(f"{run} holds no {SUMMARY}: only a finished run has a card")
    if "dense" in config:
        raise InputError(unfit(run))
    backbone = config.get("backbone")
    if isinstance(backbone, dict) and isinstance(backbone.get("checkpoint"), str):
        config["backbone"] = {**backbone, "checkpoint": Path(backbone["checkpoint"]).name}
    write_adapter(folder, config, state)
    write_text(folder / CARD, card(run, config, repo_id))


def card(run: Path, config: dict[str, Any], repo_id: str) -> str:
    """Write a model card from a run's summary.

    Args:
        run: The run folder.
        config: What its adapter's config says.
        repo_id: Where the card will stand.

    Returns:
        Markdown, with the hub's metadata in front.
    """
    summary = read_summary(run / SUMMARY).to_dict()
    options, data = summary["config"], Path(summary["config"]["data"]).name
    method = options["method"]["name"]
    scores = {
        name: value
        for name, value in summary.items()
        if name.startswith(("val_", "test_")) and isinstance(value, float)
    }
    about = ModelCardData(
        library_name="lowtide",
        pipeline_tag="image-classification",
        tags=["lowtide", "timm", method],
        model_name=repo_id.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=data,
                dataset_name=data,
                metric_type=name.partition("_")[2],
                metric_value=value,
                dataset_split=name.partition("_")[0],
            )
            for name, value in scores.items()
        ],
    )
    rows = "\n".join(f"| {name} | {said} |" for name, said in _rows(summary, scores))
    text = BODY.format(
        repo=repo_id,
        name=repo_id.rpartition("/")[2],
        model=options["model"],
        method=method,
        data=data,
        rows=rows,
        command=repeat({**options, "data": data}),
        classes=", ".join(map(str, config.get("classes", ()))),
    )
    made = ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)
    return str(made)


def _rows(summary: dict[str, Any], scores: dict[str, float]) -> Iterator[tuple[str, str]]:
    options, data = summary["config"], summary["data"]
    method = {k: v for k, v in options["method"].items() if k != "name"}
    yield "method", f"{options['method']['name']} `{json.dumps(method)}`"
    yield "images", f"{data['train']} train, {data['val']} val, {data['test']} test"
    for name, value in scores.items():
        yield name.replace("_", " "), f"{value:.4f}"
    trained, every = summary["trainable_parameters"], summary["total_parameters"]
    yield "trained parameters", f"{trained:,} of {every:,}"
    yield "peak memory, planned", f"{summary['planned']['peak_bytes'] / 2**20:.1f} MiB"
    if measured := summary.get("measured_peak_bytes"):
        yield "peak memory, measured", f"{measured / 2**20:.1f} MiB"
    yield "policy", str(options["policy"])
    made = summary["environment"]
    yield "made with", f"lowtide {made['lowtide']}, torch {made['torch']}, timm {made['timm']}"
