"""Play an incident on a small tier of its own: break it, see it, fall back, mend it, restore. Production is never touched."""
