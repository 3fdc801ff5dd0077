"""Vocabulary of the whole project: axis letters, trees of named leaves, keys, durations, tables, sharding."""
