"""Restore: bring the full tier back beside the fallback and shift traffic in judged steps."""
