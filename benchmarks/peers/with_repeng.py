"""repeng: the reading behind `ControlVector.train`, and `ControlModel.generate`.

`train` itself reads every layer and makes the first principal component of each, of
length 1. Here its own function reads the one layer, and the difference of the means is
taken of what it gives, which is all that the others do as well.
"""

import torch
from repeng import ControlModel
from repeng.extract import batched_get_hiddens

PACKAGES = ("repeng",)


class Library:
    """A batch is of so many texts, positive and negative by turns."""

    def __init__(self, model, tokenizer, job):
        self.model, self.tokenizer, self.job = model, tokenizer, job
        if job["task"] == "tokens":  # It wraps the block for good.
            self.model = ControlModel(model, [job["layer"]])

    def direction(self, pairs, batch_size):
        """The mean difference at the job's layer."""
        layer = self.job["layer"]
        texts = [text for pair in pairs for text in pair]
        found = batched_get_hiddens(
            self.model, self.tokenizer, texts, [layer], batch_size
        )[layer]
        return torch.from_numpy((found[::2] - found[1::2]).mean(0))

    def steered(self, vector):
        """All prompts in one batch under the vector."""
        inputs = self.tokenizer(self.job["prompts"], return_tensors="pt", padding=True)
        inputs = inputs.to(self.model.device)
        self.model.set_raw_control({self.job["layer"]: vector})
        try:
            return self.model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=self.job["max_new_tokens"],
            )
        finally:
            self.model.reset()
