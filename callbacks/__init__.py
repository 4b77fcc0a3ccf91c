"""Callbacks to give to fit(callbacks=[...])."""
