"""The dry run that finds hook points: on fake tensors as on the host as it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import zoo

from tpo_plugin import Host
from tpo_plugin.host import probe


@pytest.mark.parametrize("kind", [pytest.param(host, id=host.name) for host in zoo.HOSTS if not host.missing])
def test_a_large_host_is_found_as_a_small_one(kind: zoo.TinyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kind.build()
    random_state = torch.get_rng_state()
    as_it_is = Host.locate(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    monkeypatch.setattr(probe, "SMALL", -1)
    on_fakes = Host.locate(model)
    for field in dataclasses.fields(Host):
        assert getattr(on_fakes, field.name) == getattr(as_it_is, field.name), field.name
