"""What a reader who has not read the paper needs to know.

Sources: activation addition, arXiv 2308.10248; mean difference over contrast pairs,
arXiv 2312.06681; the perpendicular comparison, arXiv 2602.06801; sign flips, arXiv
2608.24335. The page names them and loads nothing.
"""

from collections.abc import Mapping
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.cases import has_experiments
from steergauge.report.steering import ablated

Entries = tuple[tuple[str, str], ...]

GLOSSARY: Entries = (
    (
        "Steering vector, v",
        "A direction that is added to a language model's inner state while it writes, "
        "so as to move a trait of what it writes (arXiv 2308.10248). Here usually the "
        "mean difference between the states of contrasting texts (arXiv 2312.06681).",
    ),
    (
        "Stream, h",
        "The model's inner state at one token after one block: the residual stream. "
        "Steering replaces h by h + alpha v.",
    ),
    (
        "Strength, alpha",
        "How many times v is added. Negative alpha steers the other way.",
    ),
    (
        "Dose curve",
        "The effect at several strengths, measured on prompts of its own. It "
        "recommends the largest alpha at which the texts stay coherent.",
    ),
    (
        "Perplexity ratio",
        "How surprising the steered texts are to the unsteered model, over how "
        "surprising its own are. Up to 1.5 they count as coherent.",
    ),
    (
        "Probe, score",
        "What turns a text into a number from 0 to 1, for instance by counting words. "
        "It sees one trait and nothing else.",
    ),
    (
        "Lift, L",
        "The mean score of the steered texts minus that of the unsteered ones. "
        "Positive means: in the direction that alpha promises. 0 means no effect.",
    ),
    (
        "v⊥",
        "A random vector, perpendicular to v and as long. If v + v⊥ did what v does, "
        "many vectors would, and v would not be the only answer to “which direction "
        "is this trait?” (a question raised by arXiv 2602.06801).",
    ),
    (
        "Random step",
        "A random direction of v's length. What v does has to exceed what such steps "
        "do, or its direction does not matter.",
    ),
    (
        "Sign flip",
        "A vector made from v's own contrast pairs, with the sign of each pair drawn "
        "at random: made of the same differences as v, but blind to which side is "
        "which (arXiv 2608.24335). Where the pairs agree closely, a flip can lie "
        "near v or near -v; the table of arms shows its cosine.",
    ),
    (
        "KL, in nats",
        "How far apart two distributions of texts are. 0 is identical. With K nats "
        "between them, a perfect judge needs about 3 / K texts to tell them apart "
        "at 5 % error.",
    ),
    (
        "Certificate",
        "A mathematical ceiling that follows from the KL: no score between 0 and 1 of "
        "these texts, thought of or not, differs on average by more. Near 1 it says "
        "nothing.",
    ),
    (
        "TOST",
        "Two one-sided tests. “Not significantly different” is no proof of sameness, "
        "so sameness is tested by itself: the difference must be shown to lie above "
        "the lower and below the upper margin.",
    ),
    (
        "Control",
        "A condition whose answer is known beforehand. If a control comes out wrong, "
        "the measurement could not tell.",
    ),
    (
        "Noise floor, κ₀",
        "The KL between two ways to compute the same arm (alone, in a batch, with a "
        "cache). No difference near it means anything.",
    ),
    (
        "95 % interval",
        "The range of values that the prompts and random directions at hand leave "
        "plausible; other prompts of the same kind would give such ranges that "
        "contain the true value 95 times in 100.",
    ),
)

EXPERIMENTS: Entries = (
    (
        "v turned",
        "v + v⊥ scaled back to v's length: 45 degrees from v, and no longer than it. "
        "v + v⊥ itself is 1.41 times as long as v.",
    ),
    (
        "Drawn anew",
        "An arm with random numbers of its own. The published statistics compare "
        "independent texts; all other comparisons here share their random numbers, so "
        "that two arms differ by the vector alone.",
    ),
    (
        "|d|, Cohen's d",
        "The difference of two mean scores over their standard deviation, without its "
        "sign. Hedges' d keeps the sign and corrects for small samples.",
    ),
    (
        "Noise floor of |d|",
        "The mean of |d| between two samples of one and the same vector. It falls with "
        "the number of texts and is never 0.",
    ),
    (
        "ICC",
        "The share of the scores' variance that lies between prompts. Two arms that "
        "answer the same prompts correlate by about that much, whatever they do.",
    ),
    (
        "Reliability",
        "How much of the variance of prompts' mean scores is not the noise of few "
        "samples. Means of two arms that do the same correlate by that much on "
        "average, so a small correlation may be noise alone.",
    ),
    (
        "Raw ratio, lift ratio",
        "Mean score of v⊥ over that of v; and the same with the unsteered score taken "
        "out of both. A vector that does nothing has a lift ratio of 0.",
    ),
    (
        "Fieller's interval",
        "The ratios that the data do not rule out. It has no ends where the "
        "denominator cannot be told from 0.",
    ),
    (
        "R, rho and T",
        "R: how far v⊥ moves the next-token logits from v's, over how far v lies from "
        "a random vector. rho: how much more v moves logits than a random step, "
        "squared. First-order geometry gives an R of about 1 / √(1 + rho); T is R² "
        "over the square of that number, and 1 if R is what geometry gives.",
    ),
    (
        "Environment",
        "A family of prompts, such as another topic or genre. Vectors are extracted in "
        "one and tested in others.",
    ),
    (
        "Intersection-union",
        "“The same in all” is claimed only if every single comparison shows it; then "
        "no correction for their number is needed.",
    ),
    (
        "Steerability",
        "The slope of one prompt's score over alpha (arXiv 2407.12404). Below 0, v "
        "steers that prompt the wrong way.",
    ),
)


GEOMETRY: Entries = (
    (
        "Fisher matrix, F_bar",
        "What a small step r of the stream costs: half of r-transposed F r, in nats, "
        "to second order. F_x is that of one text, F_bar the mean over texts.",
    ),
    (
        "sigma, lambda",
        "lambda: eigenvalues of F_bar, how well the output sees each of the directions "
        "that it keeps apart. sigma is the root of lambda.",
    ),
    (
        "Floor of the arithmetic",
        "How exactly sigma is known, measured on this model. Nothing below ten times "
        "the floor is called null or counted, for rounding could have made it.",
    ),
    (
        "Effective rank",
        "How many directions matter. Each way to count has its own answer: above a "
        "threshold, by the entropy of the spectrum, by its largest value. Only if all "
        "directions are seen equally well do they agree.",
    ),
    (
        "D_eq",
        "Directions of F_bar along which a step as long as alpha v costs no more than "
        "a budget of nats: a count without a threshold, in units of v's own effect.",
    ),
    (
        "k_id",
        "Coordinates of a vector that so many observed tokens could fix at best, to "
        "the stated accuracy (the bound of Cramér and Rao).",
    ),
    (
        "rho_F",
        "What a small step along v costs over what one in a random direction costs. 1 "
        "is what a random direction has.",
    ),
    (
        "Null space: hard, soft",
        "Hard: directions below ten floors. Soft: directions along which a step of v's "
        "length stays in a budget. A direction is null for all texts only if it is "
        "null for each.",
    ),
    (
        "Canonical representative",
        "The shortest of the vectors that cost the same: v without its part in the "
        "null space.",
    ),
    (
        "Most different equivalent, v'",
        "The vector at the widest angle from v, no longer than v, that does what v "
        "does within a budget. Made by the quadratic model, whose budget is scaled on "
        "other prompts, and then measured on prompts that it has not seen.",
    ),
    (
        "cos_F",
        "The cosine of two vectors as the output sees them, in the metric F_bar. 1 "
        "means that it cannot tell them apart at matched strength.",
    ),
    (
        "Gauge",
        "A change of description that no output can see, such as another basis of the "
        "stream. Whatever changes with it is a fact about the description.",
    ),
    (
        "Radius of linearisation, r_lin",
        "The longest step, in multiples of alpha v, up to which the true KL is what "
        "second-order theory says, within a quarter.",
    ),
)


REACHABILITY: Entries = (
    (
        "Reachable",
        "A state is reachable if some text gives it. Since texts can be counted and "
        "strengths cannot, nearly no steered state is reachable exactly, in any model "
        "and for any v; what can be asked is how near texts come, and whether nearer "
        "than to other steps.",
    ),
    (
        "eta",
        "The distance from the steered state to the nearest token's state, over the "
        "length of the step. 1: nothing is nearer than the state that the step started "
        "from.",
    ),
    (
        "d1, d2",
        "The distances to the states of the nearest and of the second nearest token. "
        "A state is told apart from others while the tolerance is below half of d2.",
    ),
    (
        "Step",
        "The difference between steered and natural state where it is read: what v "
        "has made of it there.",
    ),
    (
        "Tolerance",
        "How far two computations of one and the same state may lie apart, measured "
        "on texts of their own: five times the 99 % quantile of that noise, place by "
        "place. A fixed number would be too small in one precision and too large in "
        "another.",
    ),
    (
        "Token swap",
        "The difference between the states of two tokens behind the same beginning: a "
        "step that a prompt can make.",
    ),
    (
        "Collision",
        "Two tokens whose states lie within the tolerance. The state then cannot say "
        "which of them was read.",
    ),
    (
        "Inversion (SipIt)",
        "Reading a text off its states, one token after another, by trying tokens "
        "behind what was read so far (arXiv 2510.15511).",
    ),
    (
        "Many-shot",
        "A prompt made of answers that the steered model gave to other texts, in the "
        "hope that the model goes on like them.",
    ),
    (
        "Soft prefix",
        "Embeddings put before the text that are no token's: free numbers, fitted. "
        "It needs the weights, as steering does, and is what gradient descent reached, "
        "not the least that there could be.",
    ),
    (
        "Power",
        "How often the same search, with the same budget, finds a prompt where one "
        "was hidden on purpose. Not to find says as much as the power is high.",
    ),
    (
        "Conformal p",
        "The share of natural states, not used in the fit, that are at least as "
        "strange; of two scores, twice the smaller share. Natural states are below "
        ".01 no more often than one time in a hundred, whatever their shape.",
    ),
    (
        "Mahalanobis distance",
        "The distance from the centre of the natural states, in units of how far they "
        "themselves spread in that direction.",
    ),
)


_OF_ADDITION = ("Strength, alpha", "Dose curve", "v⊥")
_ABLATION = (
    "Ablation",
    "Taking out of the stream what lies along v, so that it has no part along v any "
    "more: h becomes h - (u'h) u, with u = v / ||v||. There is no strength to choose.",
)
_STREAM = (
    "Stream, h",
    "The model's inner state at one token after one block: the residual stream.",
)
"""What takes the place of words about addition."""


def glossary(findings: Mapping[str, Finding], facts: Mapping[str, Any]) -> Entries:
    """The words of a run's report."""
    own = _fitting(GLOSSARY, facts)
    return (*own, *EXPERIMENTS) if has_experiments(findings) else own


def _fitting(entries: Entries, facts: Mapping[str, Any]) -> Entries:
    """The words that fit what was done: ablation has no strength, but a name."""
    if not ablated(facts):
        return entries
    kept = (entry for entry in entries if entry[0] not in _OF_ADDITION)
    return (_ABLATION, *(_STREAM if one[0] == _STREAM[0] else one for one in kept))


def paper_glossary() -> Entries:
    """The words of the paper's page: its own first."""
    needed = {"Steering vector, v", "Strength, alpha", "Probe, score", "Lift, L", "v⊥",
              "KL, in nats", "Certificate", "TOST", "95 % interval"}  # fmt: skip
    basic = tuple(entry for entry in GLOSSARY if entry[0] in needed)
    return (*basic, *EXPERIMENTS)


def geometry_glossary() -> Entries:
    """The words of the geometry page: its own first."""
    needed = {"Steering vector, v", "Stream, h", "Strength, alpha", "KL, in nats",
              "Control", "95 % interval"}  # fmt: skip
    return (*GEOMETRY, *(entry for entry in GLOSSARY if entry[0] in needed))


def reachability_glossary(facts: Mapping[str, Any]) -> Entries:
    """The words of the reachability page: its own first."""
    needed = {"Steering vector, v", "Stream, h", "Strength, alpha", "Probe, score",
              "Lift, L", "Random step", "Sign flip", "KL, in nats", "Control",
              "95 % interval"}  # fmt: skip
    basic = tuple(entry for entry in GLOSSARY if entry[0] in needed)
    return (*REACHABILITY, *_fitting(basic, facts))
