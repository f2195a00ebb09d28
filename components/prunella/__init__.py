"""Prunella keeps a language-model pretraining run alive on accelerators that break."""

__version__ = "0.1.0"
