"""What the optimizer and the server share: artifacts, the store, sessions, tokenizer, measuring.

Knows nothing of torch, of how an artifact is made, or of who is served with it.
"""
