"""A small OLMoE language model trained for this repository, and the text that it is shown."""
