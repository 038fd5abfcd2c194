"""The standby action: start the fallback beforehand, prove it, and keep it asleep or resident."""
