"""The committed ledger: nothing missing, nothing typed, nothing old."""

import ast

import pytest

from xaiutils.companion import claims, ledger, notebooks, provenance, results
from xaiutils.data import assets

PROJECT = notebooks.Project(provenance.ROOT)
each_notebook = pytest.mark.parametrize("name", PROJECT.names())

# What the papers claim, and the controls without which the measured values mean little. A claim in
# two parts has an id for each, one measured on two data sets an id for each.
REQUIRED = {
    1: """
        aa-attack-cheap aa-attack-flips-all aa-lime-below-norm aa-lime-top3-flips
        aa-lime-top3-range aa-lime-all-below-norm aa-lime-all-below-norm-each aa-table2-values
        aa-leaving-sing-harder aa-recovery-rare-3 aa-recovery-rare-5 aa-recovery-above-chance-3
        aa-recovery-above-chance-5 aa-fidelity-blind aa-visible-found aa-fig1-values
        aa-norm-is-proxy aa-detector-quality
    """,
    2: """
        lime-alpha-closed-form lime-limit-is-wls lime-converges lime-converges-sd
        lime-converges-slope lime-bound-loose lime-shape-prop3 lime-shape-halving
        lime-shape-halving-off lime-linear-exact lime-linear-exact-fit lime-linear-exact-package
        lime-ig-small-nets lime-ig-large-nets lime-ig-additive lime-ig-pairwise
        lime-ig-pairwise-gap lime-ig-gap-grows lime-nu-inf-banzhaf lime-nu-zero-occlusion
        lime-large-d lime-large-d-rises lime-coin-bias lime-not-local lime-ridge-default
        lime-ridge-small-nu lime-one-run-noise lime-one-run-noise-many lime-pkg-equality
        lime-pkg-seed lime-pkg-slic lime-range-segments lime-range-segments-float lime-paired
        lime-paired-narrow
    """,
    3: """
        fid-beats-random fid-beats-random-digits fid-no-retraining-needed fid-crop-agrees
        fid-artifact-large fid-artifact-large-digits fid-artifact-share fid-sgsq-best
        fid-sgsq-best-digits fid-abs-not-worse fid-abs-not-worse-digits fid-ig-signed-zero
        fid-ig-signed-zero-digits fid-masking-lifts-lif fid-masking-lifts-f fid-fpa-recompute
        fid-paired-ci fid-area-stable-mif fid-area-stable-mif-digits fid-area-stable-lif
        fid-area-stable-lif-digits fid-area-stable-csv fid-fill-matters fid-fill-matters-digits
    """,
    4: """
        gx-baseline-closer gx-baseline-flips gx-baseline-realistic gx-no-gan-unrealistic
        gx-flip-rate-blind-flips gx-flip-rate-blind-transfer gx-exact-contrast
        gx-zero-not-one-vs-one gx-exact-saliency gx-saliency-zero gx-saliency-mdts
        gx-saliency-two-class-zero gx-saliency-two-class-mdts gx-exact-perturbation
        gx-perturbation-zero gx-perturbation-mdts gx-exact-own-filler gx-perturbation-own-zero
        gx-perturbation-own-mdts gx-own-filler-decides gx-absdiff-confound gx-exact-conversion
        gx-deeplift-task gx-exact-region gx-localisation-zero gx-localisation-mdts
        gx-localisation-control gx-exact-cascade gx-cascade-zero gx-cascade-mdts
        gx-cascade-floor gx-cascade-confound gx-ablate-similarity gx-ablate-classifier
        gx-ablate-critic gx-exact-mask-test gx-tests-ordered gx-ig-shap-agree
        gx-ig-shap-agree-zero gx-colour-factor
    """,
}


def typed_values(trees):
    """Calls of `record` and `record_estimate` whose numbers stand in the notebook, as text.

    A number may stand there itself or under a name; an estimate may be put together there. How
    many units were measured (`n`) may be written down, for exact facts it is 1.
    """
    nodes = [node for tree in trees for node in ast.walk(tree)]
    written = {
        target.id
        for node in nodes
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and _is_number(node.value)
        for target in getattr(node, "targets", None) or [node.target]
        if isinstance(target, ast.Name)
    }
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    found = [c for c in calls if ast.unparse(c.func).endswith("Estimate")]
    for call in calls:
        if ast.unparse(call.func) in ("claims.record", "claims.record_estimate"):
            named = {k.arg: k.value for k in call.keywords}
            values = call.args[1:4] + [
                named[key] for key in ("value", "low", "high", "estimate") if key in named
            ]
            found += [call] if any(_names(value) <= written for value in values) else []
    return [ast.unparse(call) for call in found]


def _is_number(node):
    """Whether an expression is made of numbers alone."""
    inner = list(ast.walk(node)) if node else []
    kinds = {type(n.value) for n in inner if isinstance(n, ast.Constant)}
    return bool(kinds & {int, float}) and not any(isinstance(n, ast.Name) for n in inner)


def _names(node):
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


@pytest.mark.parametrize("paper", REQUIRED)
def test_no_claim_of_a_paper_is_missing(paper):
    ledger = claims.load(PROJECT.ledger).values()
    assert set(REQUIRED[paper].split()) <= {c.id for c in ledger if c.paper == paper}


@each_notebook
def test_no_number_of_a_claim_is_typed(name):
    assert typed_values(notebooks.code_trees(PROJECT.read(name))) == []


@pytest.mark.parametrize(
    "source",
    [
        'claims.record("a", 0.3, low, high, n)',
        'claims.record("a", value, -0.3, high, n)',
        'claims.record("a", value=0.3, low=low, high=high, n=n)',
        'claims.record("a", *(0.3, 0.2, 0.4, 9))',
        'value = 0.3\nclaims.record("a", value, low, high, n)',
        'value: float = 0.3\nclaims.record("a", value, low, high, n)',
        'found = [0.3, 0.2, 0.4, 9]\nclaims.record("a", *found)',
        'claims.record_estimate("a", intervals.Estimate(0.3, 0.2, 0.4, 9))',
        'e = intervals.Estimate(0.3, 0.2, 0.4, 9)\nclaims.record_estimate("a", estimate=e)',
    ],
)
def test_a_typed_number_would_be_found(source):
    assert len(typed_values([ast.parse(source)])) == 1


def test_measured_numbers_are_no_typed_ones():
    source = (
        'aucs = {}\nfew = "none"\nclaims.record("a", x, x, x, 1)\nclaims.record("b", *mean(y))\n'
        'claims.record_estimate("c", aucs[1], missing=few)\nclaims.record("d", *table.loc["x"])'
    )
    assert typed_values([ast.parse(source)]) == []


@each_notebook
def test_records_and_figures_come_from_the_notebook_and_package_as_they_are(name):
    defaults = {k: p.default for k, p in notebooks.parameters(PROJECT.read(name)).items()}
    found = results.of_notebook(PROJECT, name)
    assert "claims" in found, "run make notebooks"
    for stem, record in found.items():
        assert record["parameters"] == defaults, f"{stem}: run make notebooks"
        assert record["hashes"]["assets"].items() <= assets.hashes().items(), stem
        assert provenance.is_current(record["hashes"], PROJECT, name), (
            f"{stem} is older than the code: run make notebooks"
        )


@each_notebook
def test_a_record_says_the_verdict_and_the_cell_that_measured_it(name):
    cells = [cell for cell in PROJECT.read(name).cells if cell.cell_type == "code"]
    records, ledger = (
        results.records(results.of_notebook(PROJECT, name)),
        claims.load(PROJECT.ledger),
    )
    for key, found in records.items():
        claim = ledger[key]
        verdict = claims.verdict_of(claim, claims.with_test(claim, records))
        assert found["verdict"] == verdict, key
        assert "claims." in cells[found["cell"] - 1].source, key


def test_the_table_of_claims_is_that_of_the_records():
    text = (PROJECT.root / "figures" / "CLAIMS.md").read_text(encoding="utf-8")
    assert text == ledger.summary(PROJECT), "run make claims"


def test_every_result_is_there_and_current():
    assert ledger.stale(PROJECT) == "", "run make notebooks"
