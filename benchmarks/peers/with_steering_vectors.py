"""steering-vectors: `train_steering_vector`, and `SteeringVector.apply` with HF."""

from steering_vectors import SteeringVector, train_steering_vector

PACKAGES = ("steering-vectors",)


class Library:
    """A batch is of so many pairs, the two sides in passes of their own."""

    def __init__(self, model, tokenizer, job):
        self.model, self.tokenizer, self.job = model, tokenizer, job

    def direction(self, pairs, batch_size):
        """The mean difference at the job's layer."""
        layer = self.job["layer"]
        found = train_steering_vector(
            self.model,
            self.tokenizer,
            [tuple(pair) for pair in pairs],
            layers=[layer],
            batch_size=batch_size,
        )
        return found.layer_activations[layer]

    def steered(self, vector):
        """All prompts in one batch under the vector."""
        inputs = self.tokenizer(self.job["prompts"], return_tensors="pt", padding=True)
        inputs = inputs.to(self.model.device)
        steering = SteeringVector({self.job["layer"]: vector})
        with steering.apply(self.model):
            return self.model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=self.job["max_new_tokens"],
            )
