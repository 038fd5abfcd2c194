"""Find out what is wrong with this host. Exit 0 healthy, 1 watch, 3 fall back, 4 unknown."""
