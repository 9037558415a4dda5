"""Fuzzing: changed files for every reader, each of which has to give a sound value or one clear sentence."""
