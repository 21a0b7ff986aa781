"""nnsight: a trace that stops after the block, and `generate` with the block edited."""

import torch
from nnsight import TransformersModel
from serve import batches

PACKAGES = ("nnsight",)


class Library:
    """A batch is of so many texts."""

    def __init__(self, model, tokenizer, job):
        self.job = job
        self.model = TransformersModel(model, tokenizer=tokenizer)
        self.block = self.model.model.layers[job["layer"]]

    def direction(self, pairs, batch_size):
        """The mean difference at the job's layer."""
        texts = [pair[side] for side in (0, 1) for pair in pairs]
        found = []
        for batch in batches(texts, batch_size):
            with self.model.trace(batch) as tracer:
                read = self.block.output[:, -1].save()
                tracer.stop()
            found.append(read)
        rows = torch.cat(found)
        return (rows[: len(pairs)] - rows[len(pairs) :]).mean(0)

    def steered(self, vector):
        """All prompts in one batch under the vector."""
        prompts, new = self.job["prompts"], self.job["max_new_tokens"]
        greedy = {"max_new_tokens": new, "do_sample": False}
        with self.model.generate(prompts, **greedy) as tracer:
            for _ in tracer.iter[:new]:
                self.block.output = self.block.output + vector
            tokens = tracer.result.save()
        return tokens
