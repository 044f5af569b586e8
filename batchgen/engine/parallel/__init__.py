"""One forward over the ranks of a replica: items over `cfg`, tokens over `ring` x `ulysses`."""
