"""Search over chains: Optuna draws them, the optimizer builds them, a real server is measured."""
