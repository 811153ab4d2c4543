from __future__ import annotations

from pathlib import Path

import pytest

from training.common.errors import ConfigError
from training.runs.space import Axis, read_space


def written(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {vbrp: {model.regularisation: {choices: [1]}}}", "models: no model 'vbrp'; did you mean 'vbpr'?"),
        ("models: {mmgcn: {model.regularization: {choices: [1]}}}", "models.mmgcn: unknown key 'model.regularization'"),
        ("constant: {dvib.sgima: {low: 0.1, high: 0.2}}", "constant: unknown key 'dvib.sgima'; did you mean 'dvib.sig"),
        ("adaptive: {dvib.gama_r: {low: 0.1, high: 0.2}}", "adaptive: unknown key 'dvib.gama_r'; did you mean"),
        ("constant: {training.seed: {choices: [1]}}", "constant.training.seed cannot be searched: the luckiest seed"),
        ("models: {bm3: {model.dropout: {low: 2, high: 1}}}", "models.bm3.model.dropout: low 2 is above high 1"),
        ("dvib: {dvib.mix: {low: 0, high: 1}}", "dvib.dvib.mix: it is no number; give choices instead of a range"),
        (
            "dvib: {dvib.net_phi_hidden: {low: 1, high: 2}}",
            "dvib.net_phi_hidden: it is no number; give choices instead",
        ),
        ("dvib: {dvib.sampled_items: {low: 1, high: .inf}}", "sampled_items: finite ends are wanted, got 1 and inf"),
        ("shared: {training.compile: {low: 0, high: 1}}", "training.compile: it is no number; give choices instead"),
        ("shared: {model.dimension: {low: 1.5, high: 8}}", "model.dimension: whole numbers are wanted, got 1.5 and 8"),
    ],
)
def test_a_mistake_is_named_even_where_nobody_searches(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, f"{text}\n{'' if 'shared' in text else 'shared: {model.dimension: {choices: [8]}}'}")
    with pytest.raises(ConfigError) as caught:
        read_space(path, "vbpr", "none")
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_the_key_says_whether_a_range_is_of_whole_numbers(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "shared: {model.dimension: {low: 4.0, high: 8}, training.clip_norm: {low: 1, high: 9}}\n"
        "dvib: {dvib.gamma_d: {low: 0, high: 1}, dvib.gamma_r: {choices: [0, 1]}}\n",
    )
    axes = read_space(path, "vbpr", "adaptive")
    ends = {key: (axis.low, axis.high) for key, axis in axes.items()}
    assert ends["model.dimension"] == (4, 8)
    assert all(type(end) is int for end in ends["model.dimension"])
    for key in ("training.clip_norm", "dvib.gamma_d"):
        assert all(type(end) is float for end in ends[key]), key
    assert axes["dvib.gamma_r"] == Axis(choices=(0, 1))


def test_a_section_that_is_not_of_this_search_adds_nothing(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "shared: {training.learning_rate: {low: 0.001, high: 0.1}}\n"
        "models: {bm3: {model.dropout: {choices: [0.1]}}}\n"
        "constant: {dvib.sigma: {low: 0.1, high: 0.2}}\n",
    )
    assert list(read_space(path, "vbpr", "none")) == ["training.learning_rate"]
    assert list(read_space(path, "bm3", "adaptive")) == ["training.learning_rate", "model.dropout"]
    assert list(read_space(path, "vbpr", "constant")) == ["training.learning_rate", "dvib.sigma"]
