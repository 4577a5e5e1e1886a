"""A stage's model as a Hugging Face folder (`export.py`) with a model card (`model_card.py`)."""
