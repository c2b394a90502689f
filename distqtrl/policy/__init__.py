"""w_M, observations -> actions: the classical side of the border; needs no MPI and no quantum package."""
