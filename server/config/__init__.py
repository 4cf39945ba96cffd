"""Configuration: what can be said (``fields``), where it comes from (``sources``)."""
