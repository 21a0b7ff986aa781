"""What a run leaves open, whatever its verdicts: of the audits that it made."""

from collections.abc import Mapping
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.reachability_headline import AUDITS
from steergauge.report.sections import Details
from steergauge.report.steering import ablated

Findings = Mapping[str, Finding]

_ELSEWHERE = (
    "What v does to other traits, to longer texts and in other models was not looked "
    "at."
)
_COUNTED = (
    "The probe counts words. It misses what it has no word for, and it can be moved by "
    "the words alone."
)


def limits(facts: Mapping[str, Any], findings: Findings) -> list[str]:
    """What this run cannot say, whatever its verdicts."""
    reach = {name: one for name, one in findings.items() if one.audit in AUDITS}
    alone = bool(reach) and set(findings) <= {*reach, "plumbing"}
    told = [*(() if alone else _behaviour(facts)), *_reachability(reach)]
    if plan := facts.get("sequential"):
        told.append(plan["reason"])
    scored = not alone or "access" in reach
    if scored and (facts["probe"] or {}).get("high_words"):
        told.append(_COUNTED)
    if reach and ablated(facts):
        told.append("Ablation was audited, which has no strength; adding v was not.")
    return [*told, _ELSEWHERE]


def _behaviour(facts: Mapping[str, Any]) -> list[str]:
    return [
        f"Everything here concerns these {facts['num_prompts']} prompts, this alpha, "
        "this temperature and the first "
        f"{facts['max_new_tokens']} tokens only; so do the certificates.",
        "A lift is what one probe sees. Two vectors with equal lifts may write "
        "different texts; the KL says whether they do.",
        "v⊥ is drawn at random: that such an addition changes what v does shows that "
        "most directions matter, not that no other vector could do the same.",
    ]


def _reachability(findings: Findings) -> list[str]:
    """What was searched, and that no more was."""
    told = []
    if found := findings.get("states"):
        told.append(_states(found))
    if found := findings.get("inversion"):
        told.append(
            f"T17 reads {found.num_prompts} prompts back, token by token; another "
            "prompt, or a longer one, may come out otherwise."
        )
    if found := findings.get("access"):
        told.append(_access(found))
    if found := findings.get("density"):
        told.append(
            f"T19 knows natural states of texts like these {found.num_prompts} "
            "prompts' and of no others: what is rare there may be common elsewhere."
        )
    return told


def _states(found: Finding) -> str:
    details = found.details
    num, places = details.get("num_vocabulary"), details.get("num_positions")
    tokens = "all tokens" if num is None else f"all {num:,} tokens"
    at = "" if places is None else f", at {places} positions"
    return (
        f"T16 searched {found.num_prompts} prompts{at}: {tokens} after the prompt's "
        "own beginning. What other beginnings make, or several tokens more, was not "
        "tried."
    )


def _access(found: Finding) -> str:
    details = found.details
    spent = _spent(details)
    first = (details.get("budget") or {}).get("response_tokens")
    compared = "" if first is None else (
        f" Texts were compared by their first {first} tokens: what comes after is not "
        "in the number."
    )  # fmt: skip
    return (
        f"T18 searched for a prompt with a budget{spent}, and judged it on "
        f"{found.num_prompts} texts. A larger budget or another search may find "
        f"what this one did not.{compared}"
    )


def _spent(details: Details) -> str:
    budget = details.get("budget") or {}
    amounts = [
        f"{amount:,} {name.replace('_', ' ')}"
        for name, amount in budget.items()
        if isinstance(amount, int) and name != "response_tokens"
    ]
    return f" ({', '.join(amounts)})" if amounts else ""
