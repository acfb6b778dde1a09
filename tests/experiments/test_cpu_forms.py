"""The comparison of a CPU's forms with an accelerator's: that both are there, and are compared."""

import jax.numpy as jnp
import pytest

from experiments import cpu_forms
from experiments.cpu_forms import CPUForms
from ops.edge_system import factors


@pytest.mark.slow
def test_both_forms_are_timed_and_come_to_the_same(monkeypatch, capsys):
    traced = {"_written": 0, "_joined": 0}

    def counted(name, form):
        def columns(row):
            traced[name] += 1
            return form(row)

        return columns

    for name in traced:
        monkeypatch.setattr(factors, name, counted(name, getattr(factors, name)))
    assert CPUForms(size=(64, 48), repeats=1).execute() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1::3]] == ["attention", "rays", "pixels"]
    written, stacked = (line.split()[1] for line in lines[4:6])
    assert traced["_written"] == traced["_joined"] > 0
    assert (written, stacked) == ("written", "stacked") and max(map(len, lines)) <= 80


def test_forms_that_differ_are_told(monkeypatch, capsys):
    forms = {"one": lambda: jnp.ones(3), "other": lambda: jnp.ones(3) * 1.001}
    monkeypatch.setattr(cpu_forms.CPUForms, "stages", lambda self: [("sums", forms)])
    assert CPUForms(repeats=1).execute() == 1
    assert "differ by 0.001 of the largest number" in capsys.readouterr().out
