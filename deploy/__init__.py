"""Files and code that run the server elsewhere."""
