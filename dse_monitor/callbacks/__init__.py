"""DSE inside somebody else's training loop: plain, Lightning, Hugging Face."""
