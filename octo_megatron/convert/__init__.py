"""Hugging Face folders in and out, each conversion proven before it gets its name."""
