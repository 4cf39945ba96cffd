"""Training a changed model on what the original model predicts.

Knows nothing of chains, of stages' places in them, or of how the model came to be changed.
"""
