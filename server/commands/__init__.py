"""The commands of ``inference-unlimited``, one module each."""
