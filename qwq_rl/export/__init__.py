"""A stage's model as a Hugging Face folder with a model card."""
