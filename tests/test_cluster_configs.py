"""The test cluster's configuration files: pure text, so these need no Slurm."""

from __future__ import annotations

from pathlib import Path

from cluster import configs
from cluster.layout import Layout, Settings


def test_options_go_before_defaults(tmp_path: Path) -> None:
    """A parameter given by hand replaces the default line, and a later override replaces both."""
    settings = Settings(options={'KillWait': '30'})
    layout = Layout(tmp_path)
    assert 'KillWait=30\n' in configs.slurm_conf(layout, settings, 'host.example')
    text = configs.slurm_conf(layout, settings, 'host.example', {'KillWait': '1'})
    assert text.count('KillWait=') == 1
    assert 'KillWait=1\n' in text
    assert 'SlurmctldHost=host(127.0.0.1)' in text
