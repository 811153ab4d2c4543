"""``certificate.md``: made of the JSON alone, says each of its figures, and is compared with it by ``verify``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from export import bundle
from export.certificate import Certificate, judge
from export.certificate_text import render
from export.parity import Agreement
from tests.helpers_export import dvib_export, reseal

Copy = Callable[[Path], Path]


def certificate_of(folder: Path) -> Certificate:
    return Certificate.model_validate_json((folder / bundle.CERTIFICATE).read_bytes())


@pytest.mark.parametrize("name", ["baseline_bundle", "adaptive_bundle"])
def test_the_text_is_made_of_the_json(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    text = (folder / bundle.CERTIFICATE_TEXT).read_text("utf-8")
    certificate = certificate_of(folder)
    assert text == render(certificate)
    facts, removed = certificate.exported, certificate.removed
    for digest in (facts.sha256, facts.blanked_sha256, facts.fingerprint, facts.wiring, certificate.independent.sha256):
        assert f"`{digest}`" in text
    figures = [facts.parameters, facts.constants, facts.flops_per_user, facts.matmul_flops_per_user, facts.size]
    figures += [removed.flops_per_user, removed.parameters] if removed.noise else []
    for number in figures:
        assert f"{number:,}" in text
    for tensor in removed.tensors:
        assert f"`{tensor}`" in text
    assert len(re.findall(r"\| holds \|", text)) == len(certificate.proofs) + len(certificate.parity)
    assert "FAILS" not in text


def test_the_two_baselines_are_told_apart(adaptive_bundle: Path, baseline_bundle: Path) -> None:
    """Whether anybody trained the baseline is said where it matters."""
    independent, untrained = (
        (folder / bundle.CERTIFICATE_TEXT).read_text("utf-8") for folder in (adaptive_bundle, baseline_bundle)
    )
    assert "was never trained" in untrained
    assert "was never trained" not in independent
    assert "baseline trained independently" in independent
    assert "Nothing: the model was trained without DVIB." in untrained
    assert "RandomNormalLike (random)" in independent


def test_every_table_has_cells_as_its_header(adaptive_bundle: Path) -> None:
    text = (adaptive_bundle / bundle.CERTIFICATE_TEXT).read_text("utf-8")
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_failure_is_said(adaptive_bundle: Path) -> None:
    certificate = certificate_of(adaptive_bundle)
    text = render(certificate.model_copy(update={"proofs": certificate.proofs | {"parity": False}}))
    assert re.search(r"\| parity \|.*\| FAILS \|", text)


def test_verify_compares_the_text(adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    path = spoiled / bundle.CERTIFICATE_TEXT
    path.write_text(path.read_text("utf-8").replace("holds", "HOLDS", 1), "utf-8")
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 1
    assert [line for line in outcome.out.splitlines() if line.startswith("FAIL")] == [
        f"FAIL  text: {bundle.CERTIFICATE_TEXT} says what {bundle.CERTIFICATE} says"
    ]
    path.unlink()
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 1
    assert f"FAIL  text: {bundle.CERTIFICATE_TEXT} is missing" in outcome.out


def test_each_fact_of_the_architecture_is_judged(adaptive_bundle: Path) -> None:
    """One by one: no fact is left out of the verdict, and the other proofs do not hang on it."""
    facts = certificate_of(adaptive_bundle).exported
    agreement = Agreement()
    others = {"fingerprint": "0", "wiring": "0", "tensors": {}, "operators": {}, "random_operators": ["Dropout"]}
    numbers = dict.fromkeys(("parameters", "constants", "flops_per_user", "matmul_flops_per_user", "opset", "size"), 1)
    assert judge(facts, facts, facts, {"x": agreement})["architecture"]
    for name, value in (others | numbers).items():
        changed = facts.model_copy(update={name: value})
        verdicts = judge(changed, facts, facts, {"x": agreement})
        assert (verdicts["transplant"], verdicts["blanked"], verdicts["architecture"]) == (True, True, False), name
