"""What recipes/tiny needs and the project generates itself: tasks, demonstrations, preferences, tokenizer and model."""
