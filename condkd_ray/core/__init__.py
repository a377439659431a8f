"""Configs, samples, random streams, records and storage, used by all other folders; it imports none of them."""
