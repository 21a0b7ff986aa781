"""pyvene: a collecting intervention, and addition during `generate`.

It has no early stop, so that all blocks and the head are run.
"""

import pyvene
import torch
from serve import batches

PACKAGES = ("pyvene",)


class Library:
    """A batch is of so many texts."""

    def __init__(self, model, tokenizer, job):
        self.model, self.tokenizer, self.job = model, tokenizer, job
        self.place = {"layer": job["layer"], "component": "block_output"}
        if job["task"] == "direction":
            self.place["intervention_type"] = pyvene.CollectIntervention
            self.reading = pyvene.IntervenableModel(self.place, model=model)

    def direction(self, pairs, batch_size):
        """The mean difference at the job's layer."""
        texts = [pair[side] for side in (0, 1) for pair in pairs]
        found = []
        for batch in batches(texts, batch_size):
            inputs = self._inputs(batch)
            last = inputs["input_ids"].shape[1] - 1
            (_, read), _ = self.reading(inputs, unit_locations={"base": last})
            found.append(torch.cat([part.reshape(len(batch), -1) for part in read]))
        rows = torch.cat(found)
        return (rows[: len(pairs)] - rows[len(pairs) :]).mean(0)

    def steered(self, vector):
        """All prompts in one batch under the vector."""
        addition = pyvene.AdditionIntervention(
            embed_dim=len(vector), source_representation=vector
        )
        steering = pyvene.IntervenableModel(
            {**self.place, "intervention": addition}, model=self.model
        )
        _, tokens = steering.generate(
            self._inputs(self.job["prompts"]),
            unit_locations=None,
            intervene_on_prompt=True,
            max_new_tokens=self.job["max_new_tokens"],
        )
        return tokens

    def _inputs(self, texts):
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        inputs = inputs.to(self.model.device)
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}
