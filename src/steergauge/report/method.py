"""How it was measured: every number that a reader needs to repeat or doubt the run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report import probe, steering, words
from steergauge.report.lifts import looks_of
from steergauge.report.steering import SCOPES
from steergauge.statistics import NUM_DRAWS

NO_STRENGTH = "\N{EN DASH}"
"""In the column of alpha, of what has none."""

READS = {"last": "last token of each text", "": "not stated"}
_KINDS = {
    "lexical": "counts words or phrases",
    "classifier": "probability of a label by a trained classifier",
    "zero-shot": "probability of a label by a model of entailment",
    "judge": "rating by a language model that is asked",
    "function": "a function that was given",
}
METHODS = {
    "mean_difference": "mean difference of the streams of the pairs",
    "median_difference": "median difference of the pairs, coordinate by coordinate",
    "principal_component": "first principal component of the pairs' differences",
    "logistic": "logistic regression of the two sides",
    "discriminant": "linear discriminant with a shrunk covariance",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A name, a value and what it means."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Entries under one caption."""

    caption: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class ArmFamily:
    """Arms of one kind: how many, how long, at what angle to v."""

    name: str
    note: str
    num: int
    alpha: str
    norm: str
    cosine: str


def groups(facts: Mapping[str, Any], findings: Mapping[str, Finding]) -> list[Group]:
    """The whole method, as short tables."""
    return [
        Group("Model", tuple(_model(facts))),
        Group("Vector and strength", tuple(_vector(facts, findings))),
        Group("Prompts and texts", (*_texts(facts), *_elsewhere(findings))),
        Group("Probe", tuple(_probe(facts))),
        Group("Statistics", tuple(_statistics(facts, findings))),
        *_looks(facts),
    ]


def arm_families(facts: Mapping[str, Any]) -> list[ArmFamily]:
    """The arms of the test by family."""
    by_family: dict[str, list[Mapping[str, Any]]] = {}
    for arm in facts["arms"]:
        by_family.setdefault(words.family(arm["name"]), []).append(arm)
    taken_out = {"v"} if steering.ablated(facts) else set()
    return [
        ArmFamily(
            name=words.arm_name(name),
            note=steering.ABLATION if name in taken_out else words.arm_note(name),
            num=len(arms),
            alpha=NO_STRENGTH if name in taken_out else words.plain(arms[0]["alpha"]),
            norm=span([arm["norm"] for arm in arms if arm["norm"]]),
            cosine=span([a["cosine"] for a in arms if a["cosine"] is not None]),
        )
        for name, arms in by_family.items()
    ]


def span(values: list[float]) -> str:
    """One number, or the smallest and largest, to three decimals.

    >>> span([0.7071, 0.7072]), span([0.145, 0.1]), span([])
    ('0.707', '0.100 to 0.145', '')
    """
    texts = [words.fixed(value) for value in values]
    texts = ["0.000" if text == f"{words.MINUS}0.000" else text for text in texts]
    if not texts:
        return ""
    ends = (texts[values.index(min(values))], texts[values.index(max(values))])
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _model(facts: Mapping[str, Any]) -> list[Entry]:
    return [
        Entry("model", facts["model"]),
        Entry("revision", facts["revision"] or "none stated"),
        Entry("fingerprint", facts["fingerprint"], "hash of its weights"),
        Entry("blocks", str(facts["num_layers"])),
        Entry("width of the stream", str(facts["d_model"])),
        Entry("precision", facts["dtype"]),
        Entry("chat template", "used" if facts["chat_template"] else "not used"),
    ]


def _vector(facts: Mapping[str, Any], findings: Mapping[str, Finding]) -> list[Entry]:
    norms = {arm["name"]: arm["norm"] for arm in facts["arms"]}
    cosines = {arm["name"]: arm["cosine"] for arm in facts["arms"]}
    how = METHODS.get(facts["method"], facts["method"]) or "not stated"
    chosen = (
        "recommended by the dose curve: the largest strength at which the texts are "
        "surely coherent in both directions"
        if facts["alpha_was_recommended"]
        else "given by the user"
    )
    entries = [
        Entry("extracted by", how),
        Entry("contrast pairs", str(facts["num_pairs"] or "not known")),
        *([Entry("made from", facts["source"])] if facts.get("source") else []),
        Entry("read at", READS.get(facts["position"], facts["position"])),
        Entry("layer", words.layer(facts),
              "read and written at the output of this block"),
        *_read(findings),
        Entry("steered positions", facts["scope"], SCOPES.get(facts["scope"], "")),
        *_strength(facts, chosen),
        Entry("‖v‖", words.padded(facts["norm"], 4)),
        Entry("median ‖h‖", words.padded(facts["median_stream_norm"], 4),
              "stream at the last token of the dose curve's prompts"),
    ]  # fmt: skip
    for name, label in (
        ("perp[0]", words.PERP),
        ("v_plus_perp[0]", f"v + {words.PERP}"),
    ):
        if name in norms:
            cosine = f"cosine with v {span([cosines[name]])}"
            entries.append(Entry(f"‖{label}‖", words.padded(norms[name], 4), cosine))
    return entries


def _read(findings: Mapping[str, Finding]) -> list[Entry]:
    """Where reachability compares states, if not where v is."""
    block = steering.read_after(findings)
    if block is None:
        return []
    codes = [code for audit, code in steering.READ.items() if audit in findings]
    note = f"of {', '.join(codes)}, at the output of this block"
    return [Entry("states read", f"after block {block}", note)]


def _strength(facts: Mapping[str, Any], chosen: str) -> list[Entry]:
    """How far the stream is moved."""
    if steering.ablated(facts):
        return [Entry("steering", "ablation", "what lies along v is taken out")]
    return [
        Entry("alpha", words.plain(facts["alpha"]), chosen),
        Entry("‖alpha v‖ / median ‖h‖", words.percent(facts["step"], 1),
              "how long the step is, beside what it is added to"),
    ]  # fmt: skip


def _texts(facts: Mapping[str, Any]) -> list[Entry]:
    return [
        Entry("prompts of the test", str(facts["num_prompts"]),
              "they judge; the dose curve did not see them"),
        Entry("prompts of the dose curve", str(facts["num_dose_prompts"]),
              "they choose alpha; none of them is in the test"),
        Entry("responses a prompt and arm", str(facts["num_samples"])),
        Entry("longest response", f"{facts['max_new_tokens']} tokens",
              "the continuation alone is scored, never the prompt"),
        Entry("temperature", words.plain(facts["temperature"]),
              "" if facts["temperature"] else "greedy"),
        Entry("seed", str(facts["seed"])),
        Entry("random numbers", "common to all arms",
              "the noise depends on seed, prompt, sample and step only, so two arms "
              "differ by the steering alone; v again has its own"),
    ]  # fmt: skip


def _elsewhere(findings: Mapping[str, Finding]) -> Iterator[Entry]:
    """The texts of the paper's experiments beside those of the test."""
    if "replication" in findings:
        yield Entry(
            f"v + {words.PERP} drawn anew",
            "random numbers of its own",
            "as in the published protocol, which compares independent texts",
        )
    if found := findings.get("environments"):
        yield Entry(
            "prompts in each environment",
            f"{found.num_prompts}, {found.num_samples} responses each",
            "or more, where an environment has more",
        )


def _probe(facts: Mapping[str, Any]) -> list[Entry]:
    seen = facts["probe"]
    if seen is None:
        return [Entry("probe", "none", "the trait was not scored")]
    kind = probe.kind(seen)
    entries = [
        Entry("probe", seen["name"]),
        Entry("kind", kind, _KINDS.get(kind, "")),
        *(Entry(name, value) for name, value in probe.record(seen)),
        Entry("AUC on labelled texts", f"{seen['auc']:.3f}",
              f"{seen['num_labelled']} texts; below 0.8 a probe may not judge"),
    ]  # fmt: skip
    counted = (("up", "high_words"), ("down", "low_words"))
    return entries + [
        Entry(f"words counted {way}", ", ".join(seen[key]), "whole words or phrases")
        for way, key in counted
        if seen[key]
    ]


def _looks(facts: Mapping[str, Any]) -> Iterator[Group]:
    """What a sequential run saw at each look, and why it ended; nothing of another."""
    if plan := facts.get("sequential"):
        yield Group(
            "Looks",
            tuple(
                Entry(
                    f"{seen['num_prompts']} prompts",
                    _outcome(seen, plan["planned"]),
                    words.typeset(seen["reason"]),
                )
                for seen in plan["decisions"]
            ),
        )


def _outcome(seen: Mapping[str, Any], planned: int) -> str:
    if seen["stop"]:
        return "decided"
    return "planned end" if seen["num_prompts"] == planned else "went on"


def _sequential(facts: Mapping[str, Any]) -> Iterator[Entry]:
    """How a sequential run was planned; nothing of another."""
    looks = looks_of(facts)
    if looks is None:
        return
    used = facts["sequential"]["used"]
    yield Entry(
        "sequential",
        f"{used} of {looks.planned} planned prompts",
        f"looked {looks.listed}, until all was decided",
    )
    yield Entry(
        "width of the intervals",
        f"{looks.widening(used):.2f} times that of a single look",
        "always-valid: Robbins' normal mixture, arXiv 2103.06476, theorem 2.2",
    )


def _statistics(
    facts: Mapping[str, Any], findings: Mapping[str, Finding]
) -> list[Entry]:
    check, same = findings.get("manipulation"), findings.get("equivalence")
    text = findings.get("divergence")
    at_every = " at every look" if facts.get("sequential") else ""
    entries = [
        Entry("intervals",
              "95\N{NO-BREAK SPACE}%" + at_every,
              f"two-way bootstrap with {NUM_DRAWS} draws: prompts and random "
              "directions are resampled, each in its own right"),
        *_sequential(facts),
        *(_of_the_check(check.details) if check else ()),
    ]  # fmt: skip
    if same and "margin" in same.details:
        entries.append(
            Entry("margin of equal lifts", words.percent(same.details["margin"]),
                  "of v's lift, set beforehand; two one-sided 5\N{NO-BREAK SPACE}% "
                  "tests")
        )  # fmt: skip
    if text and "budget" in text.details:
        entries.append(
            Entry("budget of equal texts", words.percent(text.details["budget"]),
                  "of the KL that v itself causes, set beforehand")
        )  # fmt: skip
    return entries


def _of_the_check(details: Mapping[str, Any]) -> Iterator[Entry]:
    """What T1 measured beside the lift."""
    if "rank_p" in details:
        yield Entry(
            "rank p of the lift",
            f"{details['rank_p']:.3f}",
            f"among {len(details['null_lifts'])} matched random steps",
        )
    if details.get("unsteered_score") is not None:
        score = f"{details['unsteered_score']:.3f}"
        yield Entry("unsteered score", score, "mean, on 0 to 1")
    if details.get("icc") is not None:
        note = "share of the unsteered score's variance that lies between prompts"
        yield Entry("ICC", f"{details['icc']:.3f}", note)
    if perplexity := details.get("perplexity"):
        others = ", ".join(
            f"{words.arm_name(arm)} {words.padded(perplexity[arm])}"
            for arm in ("unsteered", "minus_v")
        )
        yield Entry(
            "perplexity of v's texts",
            words.padded(perplexity["v"]),
            f"under the unsteered model; {others}",
        )
