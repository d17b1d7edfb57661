"""What is given to share a backbone: saved adapters, in folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.method import method_name
from ..errors import InputError, Unsupported, shown
from ..paths import path_of
from ..tuning.adapter_config import AdapterConfig
from ..tuning.adapter_files import read_config


def configs_of(adapters: object) -> dict[object, AdapterConfig]:
    """Read what is known of several adapters.

    Args:
        adapters: Folders by name.

    Returns:
        Their configs, by name.

    Raises:
        InputError: They are no folders by name, or a folder holds no adapter.
        Unsupported: One changes the whole backbone.
    """
    if not isinstance(adapters, Mapping):
        raise InputError(f"adapters are folders by their names, not {shown(adapters)}")
    return {name: shared_config(folder) for name, folder in adapters.items()}


def shared_config(folder: Path | str) -> AdapterConfig:
    """Read what is known of an adapter that is to share its backbone.

    Args:
        folder: What `save_pretrained` wrote to, or the folder of a run.

    Returns:
        Its config.

    Raises:
        InputError: It holds no adapter, or a damaged one.
        Unsupported: It changes the whole backbone.
    """
    config = AdapterConfig.of(read_config(path_of("folder", folder)), folder)
    if whole := [method_name(type(m)) for m in config.methods if m.overwrites]:
        raise Unsupported(
            f"{folder}: {whole[0]} changes every weight of the backbone, and nothing is left to"
            " share; load it alone with lowtide.load"
        )
    return config
