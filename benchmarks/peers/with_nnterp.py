"""nnterp: its `get_token_activations`, which stops, and `steer` during `generate`."""

import torch
from nnterp import StandardizedTransformer
from nnterp.nnsight_utils import get_token_activations
from serve import batches

PACKAGES = ("nnterp", "nnsight")


class Library:
    """A batch is of so many texts."""

    def __init__(self, model, tokenizer, job):
        self.job = job
        self.model = StandardizedTransformer(
            model, tokenizer=tokenizer, check_renaming=False
        )

    def direction(self, pairs, batch_size):
        """The mean difference at the job's layer."""
        layer = self.job["layer"]
        texts = [pair[side] for side in (0, 1) for pair in pairs]
        found = [
            get_token_activations(self.model, batch, layers=[layer])[0]
            for batch in batches(texts, batch_size)
        ]
        rows = torch.cat(found)
        return (rows[: len(pairs)] - rows[len(pairs) :]).mean(0)

    def steered(self, vector):
        """All prompts in one batch under the vector."""
        new, layer = self.job["max_new_tokens"], self.job["layer"]
        with self.model.generate(self.job["prompts"], max_new_tokens=new) as tracer:
            for _ in tracer.iter[:new]:
                self.model.steer(layer, vector)
            tokens = tracer.result.save()
        return tokens
