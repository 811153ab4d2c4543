"""The certificate for a reader: ``certificate.md``, made of ``certificate.json`` and nothing else.

Whoever has the JSON can make the text again; ``dvib-export verify`` does, and compares. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from export.certificate import Certificate, GraphFacts, PathParity, RemovedFacts

_PATHS = {
    "onnx": "`model.onnx`, ONNX Runtime with its optimisations (folded at load where that takes at most 2 GB)",
    "onnx_unfolded": "`model.onnx`, ONNX Runtime without optimisations (everything computed in each call)",
    "program": "`model.pt2`, the `torch.export` program",
    "torchscript": "`model.ts`, TorchScript",
    "towers_index": "`user_tower.onnx` and the stored item vectors: what a request runs",
}
_VARIANTS = {"none": "plain, trained without DVIB", "constant": "DVIB_c", "adaptive": "DVIB_a"}


def render(certificate: Certificate) -> str:
    """Return the Markdown text of a certificate."""
    sections = [
        _head(certificate),
        _verdicts(certificate),
        _identity(certificate),
        _architecture(certificate),
        _parity(certificate),
        _removed(certificate.removed),
        _limits(certificate),
    ]
    return "\n\n".join(sections) + "\n"


def _head(certificate: Certificate) -> str:
    variant = _VARIANTS.get(certificate.variant, certificate.variant)
    return (
        f"# Certificate: {certificate.model}, {variant}, on {certificate.dataset}\n\n"
        f"Data set fingerprint `{certificate.dataset_fingerprint}`. ONNX operator set {certificate.exported.opset}, "
        f"proven with ONNX Runtime {certificate.onnxruntime}. Made from `certificate.json`, which holds every figure "
        "below in full."
    )


def _verdicts(certificate: Certificate) -> str:
    claims = {
        "transplant": "A freshly built baseline with this model's tensors exports to the same bytes.",
        "blanked": "With the learned tensors zeroed, a baseline made without them exports to the same bytes.",
        "architecture": "Operators, attributes, edges, shapes and types equal that baseline's; nothing is random.",
        "parity": "Every way of scoring gives every user the trained model's scores and best items.",
    }
    rows = [(name, claims.get(name, ""), "holds" if held else "FAILS") for name, held in certificate.proofs.items()]
    return "## What is proven\n\n" + _table(("proof", "claim", "verdict"), rows)


def _identity(certificate: Certificate) -> str:
    ours, of = certificate.exported, "its outline" if certificate.exported.outline else "`model.onnx`"
    outline = (
        "\n\nThe graph is larger than a file may be. Compared is its outline: the same protobuf, with the SHA-256 of "
        "each large tensor in the tensor's place. Two graphs have equal outlines exactly if they have equal bytes."
        if ours.outline
        else ""
    )
    return (
        "## Identity of bytes\n\n"
        f"SHA-256 of {of}, and of the same export from two baselines that never had a wrapper around them:\n\n"
        + _table(
            ("graph", "SHA-256", "SHA-256, learned tensors zero"),
            [
                ("this bundle's", _code(ours.sha256), _code(ours.blanked_sha256)),
                (
                    "baseline with this checkpoint's tensors",
                    _code(certificate.transplanted.sha256),
                    _code(certificate.transplanted.blanked_sha256),
                ),
                (
                    certificate.independent_source,
                    _code(certificate.independent.sha256),
                    _code(certificate.independent.blanked_sha256),
                ),
            ],
        )
        + "\n\n`transplant` compares the first column's first two rows, `blanked` the second column's first and third. "
        "Zeroed are the tensors that training determines; features and edges stay as they are." + outline
    )


def _architecture(certificate: Certificate) -> str:
    ours, theirs = certificate.exported, certificate.independent
    rows = [
        (label, _shown(getattr(ours, name)), _shown(getattr(theirs, name)))
        for label, name in (
            ("fingerprint", "fingerprint"),
            ("wiring (fingerprint with tensor names)", "wiring"),
            ("operator set", "opset"),
            ("learned parameters", "parameters"),
            ("constant elements (features, edges)", "constants"),
            ("FLOPs for one user, nothing folded", "flops_per_user"),
            ("of these in matrix products", "matmul_flops_per_user"),
            ("bytes", "size"),
        )
    ]
    rows.append(("nodes", _number(sum(ours.operators.values())), _number(sum(theirs.operators.values()))))
    rows.append(("random operators", _listed(ours.random_operators), _listed(theirs.random_operators)))
    return (
        "## Architecture\n\n"
        + _table(("", "this bundle", certificate.independent_source), rows)
        + "\n\nThe fingerprint is a hash of the graph as it is met walking from its outputs: it ignores names, the "
        "order of independent nodes and the values of tensors (short integer constants aside, which are shapes and "
        "axes), and nothing else. FLOPs are counted from shapes: 2·m·n·k for a matrix product, one per element of an "
        "element-wise result, of a reduction's input and of a scatter's updates; moving data counts nothing."
        + _uncounted(ours)
        + "\n\n"
        + _per_operator(ours)
    )


def _uncounted(facts: GraphFacts | RemovedFacts) -> str:
    return f" Not counted: {_listed(facts.uncounted)}." if facts.uncounted else ""


def _per_operator(facts: GraphFacts) -> str:
    names = sorted(facts.operators.keys() | facts.flops_by_operator.keys())
    rows = [
        (name, _number(facts.operators.get(name, 0)), _number(facts.flops_by_operator.get(name, 0))) for name in names
    ]
    return _table(("operator", "nodes", "FLOPs for one user"), rows)


def _parity(certificate: Certificate) -> str:
    users = max((entry.users for entry in certificate.parity.values()), default=0)

    def row(name: str, entry: PathParity) -> tuple[str, ...]:
        worst = f"{entry.max_relative_error:.2g}" + (f" (row {entry.worst_user})" if entry.max_relative_error else "")
        return (
            _PATHS.get(name, name),
            f"{entry.max_absolute_error:.2g}",
            worst,
            f"{entry.mean_relative_error:.2g}",
            _number(entry.top_k_differing_users),
            "holds" if entry.passed else "FAILS",
        )

    top = f"users whose top {certificate.top_k} differs"
    return (
        "## Equality of numbers\n\n"
        f"Against the trained model in PyTorch, every score of all {_number(users)} users. An error is relative to the "
        f"largest score of the same user; up to {certificate.tolerance:g} is allowed. Two lists agree if at every rank "
        "their items score the same within that tolerance, so that ties may fall either way.\n\n"
        + _table(
            ("way of scoring", "largest error", "largest relative error", "mean of the users' largest", top, "verdict"),
            [row(name, entry) for name, entry in certificate.parity.items()],
        )
    )


def _removed(removed: RemovedFacts) -> str:
    title = "## What was removed\n\n"
    if removed.noise is None:
        return title + "Nothing: the model was trained without DVIB."
    tensors = [(_code(name), _shape(shape)) for name, shape in removed.tensors.items()]
    inputs = [(_code(name), _shape(shape)) for name, shape in removed.inputs.items()]
    names = sorted(removed.operators.keys() | removed.flops_by_operator.keys())
    operators = [
        (
            name + (" (random)" if name in removed.random_operators else ""),
            _number(removed.operators.get(name, 0)),
            _number(removed.flops_by_operator.get(name, 0)),
        )
        for name in names
    ]
    parts = [
        f"Training runs the model a second time on a perturbed hidden state ({removed.noise} noise). The graph of both "
        f"passes, with the noise{' and Net_φ' if tensors else ''} and short of the loss, giving the mean of both "
        "passes' scores, was exported from the same checkpoint and compared with the graph of inference, which has "
        f"{_number(sum(removed.operators.values()))} nodes and "
        f"{_number(removed.flops_per_user)} FLOPs for one user less, {_number(removed.matmul_flops_per_user)} of them "
        f"in matrix products, and {_number(removed.parameters)} parameters in {len(removed.tensors)} training-only "
        f"tensors less.{_uncounted(removed)}",
        _table(("operator", "nodes less", "FLOPs less"), operators),
    ]
    if tensors:
        parts.append(_table(("training-only tensor", "shape"), tensors))
    if inputs:
        parts += ["Read by the second pass alone, so that inference does without:", _table(("tensor", "shape"), inputs)]
    return title + "\n\n".join(parts)


def _limits(certificate: Certificate) -> str:
    trained = "independently" in certificate.independent_source
    limits = [
        "Not that the model recommends well: its metrics are in `manifest.json`.",
        "Not how fast it is: what loading and calling took on one machine is in `measurements.json`, if it is there.",
        f"Not that other versions of ONNX Runtime than {certificate.onnxruntime} give the same numbers to the last "
        "bit; `dvib-export verify` compares again with the version at hand.",
        "Not that an approximate index finds what an exact search finds: parity is that of the stored vectors, and the "
        "index's recall is in `manifest.json`.",
        "Not that PyTorch reads `model.ts` and `model.pt2` back as what was saved: their parity is that of the saved "
        "objects, and `dvib-export verify --trust-torchscript --trust-program` reads the files.",
        "Not anything about items that were added to the bundle later, nor about `item_tower.onnx`.",
        "`dvib-export verify` compares the files with the hashes and facts recorded here, and `model.onnx` with itself "
        "unfolded and with the towers. The baselines, the trained model and the removed part it does not have.",
    ]
    if not trained:
        limits.append(
            "The baseline of `blanked` and `architecture` has the same configuration and data but was never trained. "
            "Export with `--baseline` to compare with one that was trained by itself."
        )
    return "## What this does not prove\n\n" + "\n".join(f"* {limit}" for limit in limits)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _shown(value: object) -> str:
    return _number(value) if isinstance(value, int) else _code(str(value))


def _number(value: int) -> str:
    return f"{value:,}"


def _code(text: str) -> str:
    return f"`{text}`"


def _shape(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes)) or "scalar"


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
